package classify

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"

	"github.com/iterait/shepherd/examples/digits/data"
)

// ErrInput is the error of an input file that the classifier cannot read.
var ErrInput = errors.New("expected a 28×28 grey PNG, or JSON: an array of 784 numbers per image, or an array of such arrays")

// maxPNG is the most that is read of a PNG file, in bytes; one of 28×28 needs a few
// kilobytes, plus metadata.
const maxPNG = 1 << 20

const pngSignature = "\x89PNG\r\n\x1a\n"

// decode calls yield for every image of a file, in order. index is the image's
// index in a JSON array of images, or -1 if the file is one image. An invalid file is an
// ErrInput; an error of yield ends reading and is returned unchanged. Memory does not
// grow with the number of images.
func decode(r io.Reader, yield func(index int, m *data.Image) error) error {
	b := bufio.NewReader(r)
	start, err := b.Peek(len(pngSignature))
	switch {
	case err != nil && err != io.EOF:
		return fmt.Errorf("read: %w", err)
	case len(start) == 0:
		return fmt.Errorf("%w; the file is empty", ErrInput)
	case string(start) == pngSignature:
		return decodePNG(b, yield)
	default:
		return decodeJSON(b, yield)
	}
}

func decodePNG(r io.Reader, yield func(int, *data.Image) error) error {
	b, err := io.ReadAll(io.LimitReader(r, maxPNG+1))
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if len(b) > maxPNG {
		return fmt.Errorf("%w; the PNG file is larger than %d bytes", ErrInput, maxPNG)
	}
	m, err := data.DecodePNG(bytes.NewReader(b))
	if err != nil {
		return fmt.Errorf("%w; %w", ErrInput, err)
	}
	return yield(-1, m)
}

// decodeJSON reads one array: of numbers, which is an image, or of arrays of
// numbers, which are images.
func decodeJSON(r io.Reader, yield func(int, *data.Image) error) error {
	d := &jsonDecoder{Decoder: json.NewDecoder(r)}
	d.UseNumber()
	if err := d.open("the file"); err != nil {
		return err
	}
	token, err := d.Token()
	if err != nil {
		return d.syntax("the array is not complete", err)
	}
	switch token := token.(type) {
	case json.Number:
		m, err := d.image("the image", token)
		if err != nil {
			return err
		}
		if err := yield(-1, m); err != nil {
			return err
		}
	case json.Delim:
		if token == ']' {
			return fmt.Errorf("%w; the array is empty", ErrInput)
		}
		if token != '[' {
			return fmt.Errorf("%w; the array holds %s", ErrInput, describe(token))
		}
		if err := d.images(yield); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%w; the array holds %s", ErrInput, describe(token))
	}
	if _, err := d.Token(); err != io.EOF {
		return d.syntax("there is something behind the array", err)
	}
	return nil
}

// jsonDecoder reads token by token: a file of a million images needs as much memory as
// one image.
type jsonDecoder struct{ *json.Decoder }

// images reads an array of images whose first one has been opened.
func (d *jsonDecoder) images(yield func(int, *data.Image) error) error {
	for index := 0; ; index++ {
		m, err := d.image(fmt.Sprintf("image %d", index))
		if err != nil {
			return err
		}
		if err := yield(index, m); err != nil {
			return err
		}
		if !d.More() {
			break
		}
		if err := d.open(fmt.Sprintf("image %d", index+1)); err != nil {
			return err
		}
	}
	if _, err := d.Token(); err != nil {
		return d.syntax("the array of images is not complete", err)
	}
	return nil
}

// open reads the start of an array.
func (d *jsonDecoder) open(name string) error {
	token, err := d.Token()
	if err != nil {
		return d.syntax(name+" is neither PNG nor JSON", err)
	}
	if token != json.Delim('[') {
		return fmt.Errorf("%w; %s holds %s", ErrInput, name, describe(token))
	}
	return nil
}

// image reads numbers, of which some may have been read already, up to the end
// of their array.
func (d *jsonDecoder) image(name string, read ...json.Number) (*data.Image, error) {
	var values [data.Pixels]float64
	n := 0
	add := func(number json.Number) error {
		v, err := strconv.ParseFloat(number.String(), 64)
		if err != nil {
			return fmt.Errorf("%w; value %d of %s is %s", ErrInput, n, name, number)
		}
		if n < len(values) {
			values[n] = v
		}
		n++
		return nil
	}
	for _, number := range read {
		if err := add(number); err != nil {
			return nil, err
		}
	}
	for {
		token, err := d.Token()
		if err != nil {
			return nil, d.syntax(name+" is not a complete array", err)
		}
		switch token := token.(type) {
		case json.Number:
			if err := add(token); err != nil {
				return nil, err
			}
			continue
		case json.Delim:
			if token == ']' {
				if n != data.Pixels {
					return nil, fmt.Errorf("%w; %s has %d values", ErrInput, name, n)
				}
				return pixels(&values, name)
			}
		}
		return nil, fmt.Errorf("%w; value %d of %s is %s", ErrInput, n, name, describe(token))
	}
}

// pixels distinguishes the two scales: if no value is above 1, values are fractions of
// white, otherwise integers from 0 to 255.
func pixels(values *[data.Pixels]float64, name string) (*data.Image, error) {
	white := 1.0
	for _, v := range values {
		if v > 1 {
			white = 255
		}
	}
	var m data.Image
	for i, v := range values {
		level := v * 255 / white
		whole := v == math.Trunc(v)
		if level < 0 || level > 255 || white == 255 && !whole {
			return nil, fmt.Errorf("%w; value %d of %s is %v, expected all from 0 to 1 or all whole numbers from 0 to 255", ErrInput, i, name, v)
		}
		m[i] = uint8(level + 0.5)
	}
	return &m, nil
}

func (d *jsonDecoder) syntax(problem string, err error) error {
	if err == nil {
		return fmt.Errorf("%w; %s", ErrInput, problem)
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%w; %s: %w", ErrInput, problem, err)
}

// describe names a token for an error.
func describe(token json.Token) string {
	switch token := token.(type) {
	case json.Delim:
		if token == '[' {
			return "an array"
		}
		return "an object"
	case string:
		return "a string"
	case nil:
		return "null"
	case bool:
		return strconv.FormatBool(token)
	default:
		return fmt.Sprint("the number ", token)
	}
}
