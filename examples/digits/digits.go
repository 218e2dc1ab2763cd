// Package digits has the samples of the digit example: a hundred real handwritten digits
// that the network was not trained on. README.md describes the example.
package digits

import (
	"embed"
	"fmt"
	"io/fs"
	"path"
)

// The files are called LABEL-INDEX.png. testdata/README.md tells where they
// come from; examples/digits/pick writes them.
//
//go:embed testdata/*.png
var files embed.FS

// Sample is one handwritten digit.
type Sample struct {
	Name  string // file name, LABEL-INDEX.png; unique
	Label int    // the digit it shows
	PNG   []byte // 28×28, 8-bit grey, white ink on black
}

// FileName returns the name of the sample with the label and the index among the npm
// package's images of that digit.
func FileName(label, index int) string { return fmt.Sprintf("%d-%04d.png", label, index) }

// Samples returns the hundred digits, ten of each, in the order of their names.
func Samples() ([]Sample, error) {
	names, err := fs.Glob(files, "testdata/*.png")
	if err != nil {
		return nil, fmt.Errorf("list the digits: %w", err)
	}
	samples := make([]Sample, len(names))
	for i, name := range names {
		s := &samples[i]
		s.Name = path.Base(name)
		var index int
		if _, err := fmt.Sscanf(s.Name, "%d-%d.png", &s.Label, &index); err != nil || s.Name != FileName(s.Label, index) {
			return nil, fmt.Errorf("digit %s: the name is not LABEL-INDEX.png", name)
		}
		if s.PNG, err = files.ReadFile(name); err != nil {
			return nil, fmt.Errorf("read a digit: %w", err)
		}
	}
	return samples, nil
}
