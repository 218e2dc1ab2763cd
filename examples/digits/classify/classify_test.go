package classify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/iterait/shepherd/examples/digits"
	"github.com/iterait/shepherd/examples/digits/data/datatest"
	"github.com/iterait/shepherd/examples/digits/model"
)

func classifier(t testing.TB) *model.Classifier {
	t.Helper()
	c, err := model.Open("../models/digits/v1/config.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// one returns a sample of each digit; the network is sure of these.
func one(t testing.TB) (perDigit [10]digits.Sample) {
	t.Helper()
	samples, err := digits.Samples()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range samples {
		if perDigit[s.Label].PNG == nil {
			perDigit[s.Label] = s
		}
	}
	return perDigit
}

// job makes the folders of a job with these inputs and returns the input
// folder and the output file.
func job(t *testing.T, inputs map[string][]byte) (inputDir, output string) {
	t.Helper()
	dir := t.TempDir()
	inputDir = filepath.Join(dir, "inputs")
	if err := os.Mkdir(inputDir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range inputs {
		path := filepath.Join(inputDir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return inputDir, filepath.Join(dir, "outputs", "output")
}

func read(t *testing.T, output string) Result {
	t.Helper()
	b, err := os.ReadFile(output)
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(strings.NewReader(string(b)))
	d.DisallowUnknownFields()
	var r Result
	if err := d.Decode(&r); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	return r
}

func TestJobOfOneImage(t *testing.T) {
	seven := one(t)[7]
	inputs, output := job(t, map[string][]byte{"input": seven.PNG})
	if err := Job(t.Context(), classifier(t), inputs, output); err != nil {
		t.Fatal(err)
	}
	got := read(t, output).Predictions
	if len(got) != 1 || got[0].Input != "input" || got[0].Digit != 7 || got[0].Confidence < 0.9 {
		t.Errorf("predictions %+v, expected a confident 7", got)
	}
}

func TestJobOfManyFiles(t *testing.T) {
	samples := one(t)
	both := fmt.Sprintf("[%s, %s]", numbers(t, samples[3].PNG, 1), numbers(t, samples[4].PNG, 255))
	inputs, output := job(t, map[string][]byte{
		"b.png":        samples[8].PNG,
		"a/deep/9.png": samples[9].PNG,
		"many.json":    []byte(both),
		"a/one.json":   []byte(numbers(t, samples[0].PNG, 255)),
	})
	if err := Job(t.Context(), classifier(t), inputs, output); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range read(t, output).Predictions {
		got = append(got, fmt.Sprint(p.Input, "=", p.Digit))
	}
	if got, want := strings.Join(got, " "), "a/deep/9.png=9 a/one.json=0 b.png=8 many.json[0]=3 many.json[1]=4"; got != want {
		t.Errorf("predictions %s, expected %s", got, want)
	}
}

func TestJobFails(t *testing.T) {
	good := one(t)[1].PNG
	for _, tc := range []struct {
		name   string
		inputs map[string][]byte
		want   string
	}{
		{"no inputs", nil, "inputs/ holds no file"},
		{"an empty file", map[string][]byte{"input": nil}, "inputs/input: "},
		{"one bad of two", map[string][]byte{"a": good, "b/c": []byte("[1,2]")}, "inputs/b/c: expected a 28×28 grey PNG"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inputs, output := job(t, tc.inputs)
			err := Job(t.Context(), classifier(t), inputs, output)
			if !errors.Is(err, ErrInput) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error is %v, expected an ErrInput with %q", err, tc.want)
			}
			if _, err := os.Stat(output); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("an output was written: %v", err)
			}
		})
	}
	t.Run("no input folder", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "inputs")
		if err := Job(t.Context(), classifier(t), dir, dir+"/output"); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), dir) {
			t.Errorf("error is %v, expected one that names %s", err, dir)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		inputs, output := job(t, map[string][]byte{"input": good})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := Job(ctx, classifier(t), inputs, output); !errors.Is(err, context.Canceled) {
			t.Errorf("error is %v, expected the context's", err)
		}
	})
	t.Run("a link out of the inputs", func(t *testing.T) {
		inputs, output := job(t, nil)
		outside := filepath.Join(t.TempDir(), "outside.png")
		if err := errors.Join(os.WriteFile(outside, good, 0o644), os.Symlink(outside, filepath.Join(inputs, "input"))); err != nil {
			t.Fatal(err)
		}
		if err := Job(t.Context(), classifier(t), inputs, output); err == nil || !strings.Contains(err.Error(), "escapes") {
			t.Errorf("error is %v, expected one that the path escapes", err)
		}
	})
}

// The output does not depend on the format of the image.
func TestSameImageSamePrediction(t *testing.T) {
	five := one(t)[5].PNG
	result, err := Files(t.Context(), classifier(t), fstest.MapFS{
		"png":   {Data: five},
		"bytes": {Data: []byte(numbers(t, five, 255))},
		"parts": {Data: []byte(numbers(t, five, 1))},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range result.Predictions {
		if p.Digit != 5 || p.Confidence != result.Predictions[0].Confidence {
			t.Errorf("%+v differs from %+v", p, result.Predictions[0])
		}
	}
}

func BenchmarkFiles(b *testing.B) {
	c := classifier(b)
	m := datatest.Image(1, 1)
	inputs := fstest.MapFS{"input": {Data: m.PNG()}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Files(b.Context(), c, inputs); err != nil {
			b.Fatal(err)
		}
	}
}
