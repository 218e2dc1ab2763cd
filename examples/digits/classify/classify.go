// Package classify runs the jobs of the digits runner: it reads a job's inputs, classifies them
// and writes the job's output.
//
// # Inputs
//
// All files of the job's inputs, also in directories, are read in the order of their
// paths. The content determines the format: a 28×28 grey PNG is one image; a JSON array
// of 784 numbers, row by row, is one image; a JSON array of such arrays is several.
// Numbers are fractions of white (0 to 1) or, if any is above 1, integers from 0 to 255.
// Ink is white on black.
//
// # Output
//
// One file, outputs/output, JSON:
//
//	{"predictions":[{"input":"input","digit":7,"confidence":0.9987}]}
//
// in the order of the images. The input is the file's path in inputs/, followed by the
// index for an image of a JSON array of images: "input[0]", "input[1]".
package classify

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/iterait/shepherd/examples/digits/data"
	"github.com/iterait/shepherd/examples/digits/model"
)

// Result is a job's output.
type Result struct {
	Predictions []Prediction `json:"predictions"`
}

// Prediction is the result of one image of a job.
type Prediction struct {
	Input      string  `json:"input"`      // path in inputs/, with [n] if the file has several images
	Digit      int     `json:"digit"`      // 0 to 9
	Confidence float64 `json:"confidence"` // the probability of Digit, 0 to 1
}

// Job classifies all inputs of one job and writes its output file. A file that
// cannot be read as images is an ErrInput that names it; then, and when ctx
// ends, nothing is written. A classifier is used by one job at a time.
func Job(ctx context.Context, classifier *model.Classifier, inputDir, output string) error {
	inputs, err := os.OpenRoot(inputDir)
	if err != nil {
		return fmt.Errorf("open the job's inputs: %w", err)
	}
	defer inputs.Close()
	result, err := Files(ctx, classifier, inputs.FS())
	if err != nil {
		return err
	}
	b, err := json.Marshal(result)
	if err != nil {
		return fmt.Errorf("encode predictions: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(output), 0o755); err != nil {
		return fmt.Errorf("write predictions: %w", err)
	}
	if err := os.WriteFile(output, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("write predictions: %w", err)
	}
	return nil
}

// Files classifies every file of inputs; see the package's Inputs.
func Files(ctx context.Context, classifier *model.Classifier, inputs fs.FS) (*Result, error) {
	result := &Result{Predictions: []Prediction{}}
	files := 0
	err := fs.WalkDir(inputs, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		files++
		f, err := inputs.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		err = decode(f, func(index int, m *data.Image) error {
			result.add(name, index, classifier.Classify(m))
			return ctx.Err()
		})
		if err != nil {
			return fmt.Errorf("inputs/%s: %w", name, err)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("classify the job's inputs: %w", err)
	}
	if files == 0 {
		return nil, fmt.Errorf("classify the job's inputs: %w; inputs/ holds no file", ErrInput)
	}
	return result, nil
}

func (r *Result) add(file string, index int, p model.Prediction) {
	if index >= 0 {
		file = fmt.Sprintf("%s[%d]", file, index)
	}
	r.Predictions = append(r.Predictions, Prediction{Input: file, Digit: p.Digit, Confidence: p.Confidence})
}
