package model_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iterait/shepherd/examples/digits"
	"github.com/iterait/shepherd/examples/digits/data"
	"github.com/iterait/shepherd/examples/digits/data/datatest"
	"github.com/iterait/shepherd/examples/digits/model"
)

const committed = "../models/digits/v1/config.yaml"

func open(t testing.TB) *model.Classifier {
	t.Helper()
	c, err := model.Open(committed)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// atLeast97 fails the test unless 97 % of the samples are classified correctly.
func atLeast97(t *testing.T, samples []data.Sample) {
	t.Helper()
	c := open(t)
	right := 0
	for i := range samples {
		p := c.Classify(&samples[i].Image)
		if p.Digit == samples[i].Label {
			right++
		}
		if p.Confidence < 1.0/data.Classes || p.Confidence > 1 {
			t.Errorf("confidence %v of the likeliest of %d digits", p.Confidence, data.Classes)
		}
	}
	t.Logf("%d of %d right", right, len(samples))
	if right*100 < 97*len(samples) {
		t.Errorf("%d of %d right, expected at least 97 %%", right, len(samples))
	}
}

func TestAccuracyOnTheHundred(t *testing.T) {
	hundred, err := digits.Samples()
	if err != nil {
		t.Fatal(err)
	}
	samples := make([]data.Sample, len(hundred))
	for i, s := range hundred {
		m, err := data.DecodePNG(bytes.NewReader(s.PNG))
		if err != nil {
			t.Fatalf("%s: %v", s.Name, err)
		}
		samples[i] = data.Sample{Image: *m, Label: s.Label}
	}
	atLeast97(t, samples)
}

func TestAccuracyOnTheTestSplit(t *testing.T) {
	_, test := data.Split(datatest.Samples(t))
	atLeast97(t, test)
}

func TestOpenTakesAFolder(t *testing.T) {
	if _, err := model.Open(filepath.Dir(committed)); err != nil {
		t.Error(err)
	}
	t.Chdir(filepath.Dir(committed))
	if _, err := model.Open(""); err != nil {
		t.Errorf("the working directory: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, tc := range []struct{ name, config, want string }{
		{"empty", "", "weights is missing: name the weights file"},
		{"null", "weights:\n", "weights is missing"},
		{"unknown key", "weights: w.bin\nweight: w.bin\n", `[2:1] unknown field "weight"`},
		{"key twice", "weights: a.bin\nweights: b.bin\n", `mapping key "weights" already defined`},
		{"wrong type", "weights: [a, b]\n", "cannot unmarshal"},
		{"not a mapping", "- weights\n", "sequence was used where mapping is expected"},
		{"not YAML", "weights: {\n", "[1:"},
		{"two documents", "weights: w.bin\n---\nweights: w.bin\n", "more than one document"},
		{"outside", "weights: ../w.bin\n", `"../w.bin" is not a path below`},
		{"absolute", "weights: /etc/passwd\n", "is not a path below"},
		{"no such weights", "weights: nowhere.bin\n", "nowhere.bin: no such file"},
		{"other weights", "weights: other.bin\n", "other.bin: unusable weights"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "config.yaml")
			for name, content := range map[string]string{path: tc.config, filepath.Join(dir, "other.bin"): "other"} {
				if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			_, err := model.Open(path)
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), dir) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error is %v, expected one line with %q that names the file", err, tc.want)
			}
		})
	}
	t.Run("no config", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "config.yaml")
		if _, err := model.Open(path); err == nil || !strings.Contains(err.Error(), path+": no such file") {
			t.Errorf("error is %v, expected one that names %s", err, path)
		}
	})
}

func TestClassifyDoesNotAllocate(t *testing.T) {
	c := open(t)
	m := datatest.Image(1, 1)
	if a := testing.AllocsPerRun(10, func() { c.Classify(&m) }); a != 0 {
		t.Errorf("%v allocations per image", a)
	}
}

func BenchmarkClassify(b *testing.B) {
	c := open(b)
	m := datatest.Image(1, 1)
	b.ReportAllocs()
	for b.Loop() {
		c.Classify(&m)
	}
}

func BenchmarkOpen(b *testing.B) {
	for b.Loop() {
		open(b)
	}
}
