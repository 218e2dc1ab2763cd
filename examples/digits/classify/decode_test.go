package classify

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/iterait/shepherd/examples/digits/data"
)

// numbers writes a PNG file as a JSON array, white being 255 or 1.
func numbers(t testing.TB, file []byte, white float64) string {
	t.Helper()
	m, err := data.DecodePNG(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	var values []float64
	for _, v := range m {
		values = append(values, float64(v)/255*white)
	}
	b, err := json.Marshal(values)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// array is a JSON array of n times the same value.
func array(n int, value string) string {
	return "[" + strings.TrimSuffix(strings.Repeat(value+",", n), ",") + "]"
}

func uniform(level uint8) data.Image {
	var m data.Image
	for i := range m {
		m[i] = level
	}
	return m
}

type decoded struct {
	index int
	image data.Image
}

func decodeAll(r io.Reader) ([]decoded, error) {
	var all []decoded
	err := decode(r, func(index int, m *data.Image) error {
		all = append(all, decoded{index, *m})
		return nil
	})
	return all, err
}

func TestDecode(t *testing.T) {
	half := uniform(128)
	for _, tc := range []struct {
		name, file string
		want       []decoded
	}{
		{"PNG", string(half.PNG()), []decoded{{-1, uniform(128)}}},
		{"whole numbers", array(784, "128"), []decoded{{-1, uniform(128)}}},
		{"whole numbers as floats", array(784, "2.55e2"), []decoded{{-1, uniform(255)}}},
		{"fractions", array(784, "0.502"), []decoded{{-1, uniform(128)}}},
		{"0 and 1 are fractions", array(784, "1"), []decoded{{-1, uniform(255)}}},
		{"2 is a whole number", array(784, "2"), []decoded{{-1, uniform(2)}}},
		{"spaces and lines", " \n" + strings.ReplaceAll(array(784, "0"), ",", " ,\n") + "\n", []decoded{{-1, uniform(0)}}},
		{"array of one", "[" + array(784, "1") + "]", []decoded{{0, uniform(255)}}},
		{"array of three", "[" + array(784, "0") + "," + array(784, "255") + "," + array(784, "0.5") + "]",
			[]decoded{{0, uniform(0)}, {1, uniform(255)}, {2, uniform(128)}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, r := range []io.Reader{strings.NewReader(tc.file), iotest.OneByteReader(strings.NewReader(tc.file))} {
				got, err := decodeAll(r)
				if err != nil {
					t.Fatal(err)
				}
				if fmt.Sprint(got) != fmt.Sprint(tc.want) {
					t.Errorf("images %v, expected %v", got, tc.want)
				}
			}
		})
	}
}

func TestDecodeRefuses(t *testing.T) {
	black := uniform(0)
	png := string(black.PNG())
	zeros := array(784, "0")
	for _, tc := range []struct{ name, file, want string }{
		{"empty", "", "the file is empty"},
		{"JPEG", "\xff\xd8\xff\xe0\x00\x10JFIF", "the file is neither PNG nor JSON"},
		{"text", "seven", "the file is neither PNG nor JSON"},
		{"damaged PNG", png[:40], "not a 28×28 grey image"},
		{"large PNG", png + strings.Repeat("x", maxPNG), "larger than 1048576 bytes"},
		{"object", `{"image": []}`, "the file holds an object"},
		{"string", `"7"`, "the file holds a string"},
		{"number", `7`, "the file holds the number 7"},
		{"null", `null`, "the file holds null"},
		{"only a start", `[`, "the array is not complete"},
		{"empty array", `[]`, "the array is empty"},
		{"array of objects", `[{}]`, "the array holds an object"},
		{"array of strings", `["7"]`, "the array holds a string"},
		{"one value short", array(783, "0"), "the image has 783 values"},
		{"one value long", array(785, "0"), "the image has 785 values"},
		{"rows", array(28, array(28, "0")), "image 0 has 28 values"},
		{"cut off", zeros[:100], "the image is not a complete array"},
		{"negative", strings.Replace(zeros, "0", "-1", 1), "value 0 of the image is -1"},
		{"too bright", strings.Replace(zeros, "[0", "[256", 1), "value 0 of the image is 256"},
		{"mixed scales", "[0.5," + array(783, "200")[1:], "value 0 of the image is 0.5"},
		{"immense", strings.Replace(zeros, "0", "1e300", 1), "value 0 of the image is 1e+300"},
		{"beyond any float", strings.Replace(zeros, "0", "1e999", 1), "value 0 of the image is 1e999"},
		{"null among values", strings.Replace(zeros, "0", "null", 1), "the array holds null"},
		{"true among values", "[0,true," + array(782, "0")[1:], "value 1 of the image is true"},
		{"array among values", "[0,[0]," + array(782, "0")[1:], "value 1 of the image is an array"},
		{"number among images", "[" + zeros + ",0]", "image 1 holds the number 0"},
		{"second image short", "[" + zeros + ",[1,2]]", "image 1 has 2 values"},
		{"images not ended", "[" + zeros, "the array of images is not complete"},
		{"images not separated", "[" + zeros + zeros + "]", "image 1 is neither PNG nor JSON"},
		{"two arrays", zeros + zeros, "there is something behind the array"},
		{"garbage behind", zeros + "!", "there is something behind the array"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := decodeAll(strings.NewReader(tc.file))
			if !errors.Is(err, ErrInput) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error is %v, expected an ErrInput with %q", err, tc.want)
			}
		})
	}
}

func TestDecodePassesErrorsOn(t *testing.T) {
	cause := errors.New("enough")
	file := "[" + array(784, "0") + "," + array(784, "0") + "]"
	calls := 0
	err := decode(strings.NewReader(file), func(int, *data.Image) error { calls++; return cause })
	if err != cause || calls != 1 {
		t.Errorf("error %v after %d calls, expected %v after 1", err, calls, cause)
	}
	if _, err := decodeAll(iotest.ErrReader(cause)); !errors.Is(err, cause) || errors.Is(err, ErrInput) {
		t.Errorf("error is %v, expected only %v", err, cause)
	}
}

func FuzzDecode(f *testing.F) {
	grey := uniform(7)
	f.Add(grey.PNG())
	f.Add([]byte(array(784, "1")))
	f.Add([]byte("[" + array(784, "0.5") + "," + array(784, "255") + "]"))
	f.Add([]byte("[[1,2],3]"))
	f.Add([]byte(`{"a":[`))
	f.Fuzz(func(t *testing.T, b []byte) {
		images, err := decodeAll(bytes.NewReader(b))
		if err != nil && !errors.Is(err, ErrInput) {
			t.Errorf("error of another kind: %v", err)
		}
		if err == nil && len(images) == 0 {
			t.Error("a file without an image was accepted")
		}
		for i, m := range images {
			if m.index != i && !(m.index == -1 && len(images) == 1) {
				t.Errorf("image %d says it is number %d", i, m.index)
			}
		}
	})
}
