// Package page draws a page of text, for the tesseract example to read: what it
// should say is known to the letter.
package page

import (
	"bytes"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"strings"

	"golang.org/x/image/font"
	"golang.org/x/image/font/gofont/goregular"
	"golang.org/x/image/font/opentype"
	"golang.org/x/image/math/fixed"
)

// Text is what the example's page says.
const Text = `A shepherd keeps a flock of sheep.
Each sheep has one model loaded
and does one job after another.
In 2026 there were 12,345 jobs; none was lost.
Who is the next? "Job 7", said the shepherd.`

// Sizes in pixels: those of a page scanned with 200 dots an inch.
const (
	fontSize = 32
	margin   = 60
	leading  = 48 // from line to line
)

// PNG draws lines of text, black on white, on a page that is as large as they
// need.
func PNG(text string) ([]byte, error) {
	parsed, err := opentype.Parse(goregular.TTF)
	if err != nil {
		return nil, fmt.Errorf("draw a page: %w", err)
	}
	face, err := opentype.NewFace(parsed, &opentype.FaceOptions{Size: fontSize, DPI: 72, Hinting: font.HintingFull})
	if err != nil {
		return nil, fmt.Errorf("draw a page: %w", err)
	}
	defer face.Close()
	lines := strings.Split(text, "\n")
	width := 0
	for _, line := range lines {
		width = max(width, font.MeasureString(face, line).Ceil())
	}
	img := image.NewGray(image.Rect(0, 0, width+2*margin, len(lines)*leading+2*margin))
	draw.Draw(img, img.Bounds(), image.White, image.Point{}, draw.Src)
	pen := font.Drawer{Dst: img, Src: image.NewUniform(color.Black), Face: face}
	for i, line := range lines {
		pen.Dot = fixed.P(margin, margin+fontSize+i*leading)
		pen.DrawString(line)
	}
	var out bytes.Buffer
	if err := png.Encode(&out, img); err != nil {
		return nil, fmt.Errorf("draw a page: %w", err)
	}
	return out.Bytes(), nil
}
