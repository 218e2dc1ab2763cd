package digits_test

import (
	"bytes"
	"testing"

	"github.com/iterait/shepherd/examples/digits"
	"github.com/iterait/shepherd/examples/digits/data"
	"github.com/iterait/shepherd/examples/digits/data/datatest"
)

func TestSamples(t *testing.T) {
	samples, err := digits.Samples()
	if err != nil {
		t.Fatal(err)
	}
	var count [data.Classes]int
	names := make(map[string]bool)
	images := make(map[data.Image]bool)
	for _, s := range samples {
		m, err := data.DecodePNG(bytes.NewReader(s.PNG))
		if err != nil {
			t.Fatalf("%s: %v", s.Name, err)
		}
		count[s.Label]++
		names[s.Name], images[*m] = true, true
	}
	if want := [...]int{10, 10, 10, 10, 10, 10, 10, 10, 10, 10}; count != want {
		t.Errorf("digits of each kind %v, expected %v", count, want)
	}
	if len(names) != 100 || len(images) != 100 {
		t.Errorf("%d names and %d images, expected 100 different ones", len(names), len(images))
	}
}

// The hundred samples are digits of the package's test split, pixel by pixel.
func TestSamplesAreOfTheTestSplit(t *testing.T) {
	_, test := data.Split(datatest.Samples(t))
	images := make(map[string]data.Image)
	for _, s := range test {
		images[digits.FileName(s.Label, s.Index)] = s.Image
	}
	samples, err := digits.Samples()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range samples {
		m, err := data.DecodePNG(bytes.NewReader(s.PNG))
		if err != nil {
			t.Fatalf("%s: %v", s.Name, err)
		}
		if want, ok := images[s.Name]; !ok || *m != want {
			t.Errorf("%s is not the image of that name in the test split (there is one: %t)", s.Name, ok)
		}
	}
}
