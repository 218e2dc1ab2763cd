package page_test

import (
	"bytes"
	"image/png"
	"testing"

	"github.com/iterait/shepherd/examples/tesseract/page"
)

func TestPageHasInkAndMargins(t *testing.T) {
	content, err := page.PNG(page.Text)
	if err != nil {
		t.Fatal(err)
	}
	img, err := png.Decode(bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	b := img.Bounds()
	ink := 0
	for y := b.Min.Y; y < b.Max.Y; y++ {
		for x := b.Min.X; x < b.Max.X; x++ {
			r, _, _, _ := img.At(x, y).RGBA()
			if r < 0x8000 {
				ink++
				if x < 50 || y < 50 || x >= b.Max.X-50 || y >= b.Max.Y-50 {
					t.Fatalf("ink at %d,%d, in the margin", x, y)
				}
			}
		}
	}
	if ink < 5000 {
		t.Errorf("%d dark pixels are no page of text", ink)
	}
}
