// Command runner simulates the models of the page's demo and tests. A model's config.yaml
// configures its jobs:
//
//	kind: transcribe   which outputs they write, and what they log
//	load: 1s           how long the model takes to load
//	run: 2s            how long a job takes
//	fail: TEXT         why every job fails
//
// An input that begins with "hold PATH" keeps its job running until the file exists.
package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/iterait/shepherd/runner"
)

type behaviour struct {
	Kind string        `yaml:"kind"`
	Load time.Duration `yaml:"load"`
	Run  time.Duration `yaml:"run"`
	Fail string        `yaml:"fail"`
}

func main() {
	runner.Main(func(ctx context.Context, args runner.Args) (runner.Handler, error) {
		var model behaviour
		text, err := os.ReadFile(args.ConfigPath)
		if err == nil {
			err = yaml.Unmarshal(text, &model)
		}
		if err != nil {
			return nil, err
		}
		if err := sleep(ctx, model.Load); err != nil {
			return nil, err
		}
		return model.do, nil
	})
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// steps is how often a job reports its progress.
const steps = 20

func (b behaviour) do(ctx context.Context, j runner.Job) error {
	fmt.Printf("\x1b[1m%s\x1b[0m takes job %s\n", b.Kind, j.ID)
	fmt.Println("\x1b[2m2026-11-22T10:08:03\x1b[0m \x1b[32mINFO\x1b[0m  reading the inputs")
	input, _ := os.ReadFile(j.Input()) // other files are ignored
	if path, ok := strings.CutPrefix(strings.TrimSpace(string(input)), "hold "); ok {
		j.Progress(0.43, "frame 43 of 100")
		for {
			if _, err := os.Stat(path); err == nil {
				break
			}
			if err := sleep(ctx, 50*time.Millisecond); err != nil {
				return err
			}
		}
	}
	for i := range steps {
		j.Progress(float64(i)/steps, fmt.Sprintf("part %d of %d", i+1, steps))
		fmt.Printf("\x1b[36mpart %2d\x1b[0m/%d  loss=%.4f\n", i+1, steps, 1/float64(i+2))
		if err := sleep(ctx, b.Run/steps); err != nil {
			return err
		}
	}
	if b.Fail != "" {
		fmt.Println("\x1b[31mERROR\x1b[0m " + b.Fail)
		return errors.New(b.Fail)
	}
	fmt.Println("\x1b[33mWARN\x1b[0m  2 segments were shorter than 0.1 s and were joined")
	for name, content := range outputs(b.Kind) {
		path := filepath.Join(j.OutputDir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return err
		}
	}
	if b.Kind == "hostile" {
		fmt.Println(`<img src=x onerror="document.title='the log ran'"><script>document.title='the log ran'</script>`)
		fmt.Println("\x1b]0;a title\x07\x1b[2J\x1b[31mred\x1b[0m \x1b[38;5;200mpalette\x1b[0m\x00\x08 end")
	}
	fmt.Println("\x1b[32mdone\x1b[0m")
	return nil
}

func outputs(kind string) map[string][]byte {
	switch kind {
	case "transcribe":
		return map[string][]byte{
			"transcript.txt": []byte("Good morning. The sheep went up the hill before sunrise,\nand the dog lay down beside the gate.\n"),
			"segments.json":  []byte(`{"language":"en","segments":[{"start":0.0,"end":1.4,"text":"Good morning."},{"start":1.4,"end":5.9,"text":"The sheep went up the hill before sunrise,"}]}`),
			"tone.wav":       tone(),
		}
	case "segment":
		return map[string][]byte{
			"mask.png": picture(), "overlay.svg": []byte(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 20"><rect width="40" height="20" fill="#cde"/><circle cx="20" cy="10" r="7" fill="#276"/></svg>`),
			"regions.csv": []byte("region,pixels,share,comment\n1,18342,0.28,\"sheep, left\"\n2,20114,0.31,\"sheep \"\"Dolly\"\"\"\n3,4410,0.07,dog\n"),
		}
	case "report":
		return map[string][]byte{
			"report.html": []byte("<!DOCTYPE html><title>Report</title><h1>Quality of the night's batch</h1><p id=x>All 240 scans were read.</p><script>document.getElementById('x').textContent='the script ran'</script>"),
			"report.pdf":  paper("Quality of the night's batch", "All 240 scans were read."),
			"summary.txt": []byte("All 240 scans were read.\n"),
		}
	case "hostile":
		return map[string][]byte{
			`<img src=x onerror=alert(1)>.txt`:    []byte("<script>document.title='the file ran'</script>\n"),
			`a&b"c'd.svg`:                         []byte(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 20" onload="parent.document.title='the picture ran'"><script>parent.document.title='the picture ran'</script><rect width="40" height="20"/></svg>`),
			"page.html":                           []byte("<script>parent.document.title='the frame ran'; document.title='x'</script><p>harmless</p>"),
			"page.pdf":                            []byte("<script>parent.document.title='the paper ran'; document.title='x'</script><p>harmful</p>"),
			"data.json":                           []byte(`{"__proto__": {"x": 1}, "html": "<b>not bold</b>"}`),
			strings.Repeat("long-name-", 15) + "": []byte{0, 1, 2, 3},
		}
	}
	return map[string][]byte{"output": []byte(`{"label": "sheep", "confidence": 0.97}`)}
}

// paper is a PDF of one page.
func paper(title, line string) []byte {
	text := fmt.Sprintf("BT /F1 20 Tf 40 150 Td (%s) Tj /F1 12 Tf 0 -40 Td (%s) Tj ET", title, line)
	var out bytes.Buffer
	out.WriteString("%PDF-1.4\n")
	var at []int
	for i, object := range []string{
		"<< /Type /Catalog /Pages 2 0 R >>", "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
		"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 420 200] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
		fmt.Sprintf("<< /Length %d >>\nstream\n%s\nendstream", len(text), text), "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
	} {
		at = append(at, out.Len())
		fmt.Fprintf(&out, "%d 0 obj\n%s\nendobj\n", i+1, object)
	}
	table := out.Len()
	fmt.Fprintf(&out, "xref\n0 %d\n0000000000 65535 f \n", len(at)+1)
	for _, offset := range at {
		fmt.Fprintf(&out, "%010d 00000 n \n", offset)
	}
	fmt.Fprintf(&out, "trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n", len(at)+1, table)
	return out.Bytes()
}

// picture is a mask of two blobs.
func picture() []byte {
	img := image.NewRGBA(image.Rect(0, 0, 480, 240))
	for y := range 240 {
		for x := range 480 {
			shade := color.RGBA{24, 34, 30, 255}
			for i, c := range []struct{ x, y, r float64 }{{150, 130, 80}, {330, 110, 95}} {
				if d := math.Hypot(float64(x)-c.x, (float64(y)-c.y)*1.2); d < c.r+8*math.Sin(d/6+float64(x)/17) {
					shade = []color.RGBA{{90, 190, 140, 255}, {110, 160, 230, 255}}[i]
				}
			}
			img.Set(x, y, shade)
		}
	}
	var out bytes.Buffer
	_ = png.Encode(&out, img) // to memory
	return out.Bytes()
}

// tone is a second of a sine wave as a WAV file, 8 kHz, 16 bits, mono.
func tone() []byte {
	const rate = 8000
	var out bytes.Buffer
	out.WriteString("RIFF")
	header := []any{
		uint32(36 + 2*rate), [8]byte([]byte("WAVEfmt ")), uint32(16), uint16(1), uint16(1), uint32(rate), uint32(2 * rate), uint16(2), uint16(16), [4]byte([]byte("data")), uint32(2 * rate),
	}
	for _, field := range header {
		_ = binary.Write(&out, binary.LittleEndian, field) // to memory
	}
	for i := range rate {
		_ = binary.Write(&out, binary.LittleEndian, int16(8000*math.Sin(2*math.Pi*440*float64(i)/rate)))
	}
	return out.Bytes()
}
