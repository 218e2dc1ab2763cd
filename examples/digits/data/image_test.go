package data

import (
	"bytes"
	"errors"
	"image"
	"image/color"
	"image/png"
	"strings"
	"testing"
)

func encode(t testing.TB, m image.Image) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := png.Encode(&b, m); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// ramp is an image with many different levels.
func ramp() *Image {
	var m Image
	for i := range m {
		m[i] = uint8(i * 7)
	}
	return &m
}

func TestPNGRoundTrip(t *testing.T) {
	got, err := DecodePNG(bytes.NewReader(ramp().PNG()))
	if err != nil {
		t.Fatal(err)
	}
	if *got != *ramp() {
		t.Error("the image decoded is not the image encoded")
	}
}

func TestDecodePNGOfOtherKinds(t *testing.T) {
	square := image.Rect(0, 0, Side, Side)
	greys := make(color.Palette, 256)
	for i := range greys {
		greys[i] = color.Gray{Y: uint8(i)}
	}
	draw := func(m interface {
		image.Image
		Set(x, y int, c color.Color)
	}) []byte {
		for i, v := range ramp() {
			m.Set(i%Side, i/Side, color.Gray{Y: v})
		}
		return encode(t, m)
	}
	for name, file := range map[string][]byte{
		"16 bits": draw(image.NewGray16(square)),
		"RGBA":    draw(image.NewNRGBA(square)),
		"palette": draw(image.NewPaletted(square, greys)),
	} {
		got, err := DecodePNG(bytes.NewReader(file))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if *got != *ramp() {
			t.Errorf("%s: the image decoded is not the image encoded", name)
		}
	}
}

func TestDecodePNGRefuses(t *testing.T) {
	good := ramp().PNG()
	red := image.NewNRGBA(image.Rect(0, 0, Side, Side))
	for i := range Pixels {
		red.Set(i%Side, i/Side, color.Gray{})
	}
	red.Set(3, 5, color.NRGBA{R: 255, A: 255})
	for _, tc := range []struct {
		name, want string
		file       []byte
	}{
		{"empty", "EOF", nil},
		{"not PNG", "not a PNG file", []byte("GIF89a is another format")},
		{"cut off", "EOF", good[:len(good)-20]},
		{"too wide", "it is 29×28", encode(t, image.NewGray(image.Rect(0, 0, 29, 28)))},
		{"huge", "it is 20000×20000", hugeHeader()},
		{"coloured", "column 3, row 5 is coloured", encode(t, red)},
		{"transparent", "column 0, row 0 is coloured or transparent", encode(t, image.NewNRGBA(image.Rect(0, 0, Side, Side)))},
	} {
		_, err := DecodePNG(bytes.NewReader(tc.file))
		if !errors.Is(err, ErrImage) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error is %v, expected an ErrImage with %q", tc.name, err, tc.want)
		}
	}
}

// hugeHeader is the head of a PNG file of 400 million pixels; there are none.
func hugeHeader() []byte {
	return []byte("\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x4e\x20\x00\x00\x4e\x20\x08\x00\x00\x00\x00\xc6\x1b\x19\xe5")
}

func FuzzDecodePNG(f *testing.F) {
	f.Add(ramp().PNG())
	f.Add(hugeHeader())
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodePNG(bytes.NewReader(b))
		if err != nil {
			if !errors.Is(err, ErrImage) {
				t.Errorf("error of another kind: %v", err)
			}
			return
		}
		again, err := DecodePNG(bytes.NewReader(m.PNG()))
		if err != nil || *again != *m {
			t.Errorf("an image that was read cannot be written and read again: %v", err)
		}
	})
}
