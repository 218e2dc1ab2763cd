// Command pick writes the digits in examples/digits/testdata: the first ten samples of
// each digit in the test split, as PNG files.
//
//	go run ./examples/digits/pick -data package -out examples/digits/testdata
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/iterait/shepherd/examples/digits"
	"github.com/iterait/shepherd/examples/digits/data"
)

const perDigit = 10

func main() {
	dir := flag.String("data", "", "folder of the unpacked npm package "+data.PackageName)
	out := flag.String("out", "", "folder to write the PNG files to")
	flag.Parse()
	if err := run(*dir, *out); err != nil {
		fmt.Fprintln(os.Stderr, "pick:", err)
		os.Exit(1)
	}
}

func run(dir, out string) error {
	if dir == "" || out == "" {
		return errors.New("-data and -out are needed; -help explains them")
	}
	samples, err := data.ReadPackage(dir)
	if err != nil {
		return err
	}
	for _, s := range pick(samples) {
		path := filepath.Join(out, digits.FileName(s.Label, s.Index))
		if err := os.WriteFile(path, s.Image.PNG(), 0o644); err != nil {
			return fmt.Errorf("write digits: %w", err)
		}
	}
	return nil
}

// pick returns the first ten test samples of each digit.
func pick(samples []data.Sample) []data.Sample {
	_, test := data.Split(samples)
	var picked []data.Sample
	var count [data.Classes]int
	for _, s := range test {
		if count[s.Label] < perDigit {
			count[s.Label]++
			picked = append(picked, s)
		}
	}
	return picked
}
