package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/runner"
)

// Files in an output that would be called the same, or have longer names than there
// are, are all there, with names of their own.
func TestFilesOfAnOutputHaveNames(t *testing.T) {
	long := strings.Repeat("k", 300)
	text := `{"a b": "data:text/plain,1", "a_b": "data:text/plain,2", "a": ["data:text/plain,3"], "a-0": "data:text/plain,4", "` + long + `": "data:text/plain,5"}`
	files := writeOutput(t, &cogSchema{}, text)
	if len(files) != 6 || string(files["output-a_b.txt"]) != "1" || string(files["output-a_b-2.txt"]) != "2" || string(files["output-a-0.txt"]) != "3" || string(files["output-a-0-2.txt"]) != "4" {
		t.Errorf("got %q", files)
	}
}

// FuzzOutput gives what a model's server may answer as its output: each file in it is
// where the output says, and there is nothing else.
func FuzzOutput(f *testing.F) {
	for _, text := range []string{
		`"text"`, `null`, `["a", "b"]`, `"data:image/png;base64,iVBORw0KGgo="`, `["data:,a", {"x/y": "data:;base64,YQ", "../..": "data:text/plain;charset=utf-8,b%20c"}]`,
		`{"a b": "data:,1", "a_b": "data:,2", "a": ["data:,3"], "a-0": "data:,4"}`, `{"": ["data:,"], "big": 123456789012345678901234567890}`, ``, `{"a"`,
	} {
		f.Add(text, true)
		f.Add(text, false)
	}
	f.Fuzz(func(t *testing.T, text string, concatenate bool) {
		s := new(cogSchema)
		if concatenate {
			s.result.Display = "concatenate"
		}
		writeOutput(t, s, text)
	})
}

// writeOutput writes an output, checks it, and returns the files.
func writeOutput(t *testing.T, s *cogSchema, text string) map[string][]byte {
	t.Helper()
	j := runner.Job{OutputDir: t.TempDir()}
	var given any
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	valid := decoder.Decode(&given) == nil || text == ""
	if err := s.output(j, json.RawMessage(text)); (err == nil) != valid {
		t.Fatalf("%q: %v", text, err)
	}
	if !valid {
		return nil
	}
	files := make(map[string][]byte)
	entries, err := os.ReadDir(j.OutputDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if files[e.Name()], err = os.ReadFile(filepath.Join(j.OutputDir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	if files[job.DefaultOutput] == nil {
		t.Fatalf("%q: there is no output", text)
	}
	named := 1
	if _, list := given.([]any); !list || s.result.Display != "concatenate" {
		if _, text := given.(string); !text {
			var written any
			decoder := json.NewDecoder(bytes.NewReader(files[job.DefaultOutput]))
			decoder.UseNumber()
			if err := decoder.Decode(&written); err != nil {
				t.Fatal(err)
			}
			named += compare(t, given, written, files)
		}
	}
	if named != len(files) {
		t.Errorf("%q: %d files are named, and there are %q", text, named, entries)
	}
	return files
}

// compare counts the files in a value that was written.
func compare(t *testing.T, given, written any, files map[string][]byte) (n int) {
	t.Helper()
	switch x := given.(type) {
	case string:
		data, _, ok := parseDataURL(x)
		if !ok {
			break
		}
		name, _ := written.(string)
		if content, ok := files[name]; !ok || name == job.DefaultOutput || !bytes.Equal(content, data) {
			t.Errorf("%.100q is the file %q with %.100q", x, name, content)
		}
		return 1
	case []any:
		y, ok := written.([]any)
		if !ok || len(x) != len(y) {
			t.Fatalf("%v became %v", given, written)
		}
		for i := range x {
			n += compare(t, x[i], y[i], files)
		}
		return n
	case map[string]any:
		y, ok := written.(map[string]any)
		if !ok || len(x) != len(y) {
			t.Fatalf("%v became %v", given, written)
		}
		for key := range x {
			n += compare(t, x[key], y[key], files)
		}
		return n
	}
	if given != written {
		t.Errorf("%v became %v", given, written)
	}
	return 0
}
