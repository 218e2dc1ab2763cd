package job

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// Limits of the files that are sent with a job.
const (
	MaxInputs    = 10_000
	MaxInputName = 512 // bytes
	MaxCopies    = 100
)

// Files yields the files that a client sends with a job: the name below inputs/ and the
// content, which must be read before the next call. It returns io.EOF at the end.
type Files func() (name string, content io.Reader, err error)

// Copy selects files of a job that become inputs of another one.
type Copy struct {
	From ID
	// Path is a file of that job, such as outputs/output, or a directory with a trailing
	// slash: outputs/.
	Path string
	// As is the new name below inputs/ of the file or directory; empty for inputs/ itself.
	As string
}

// InputNames collects the names of a job's inputs. The zero value is ready to use.
type InputNames struct {
	files map[string]bool
	dirs  map[string]bool
}

// Add checks a name below inputs/ and adds it. The error is an *Invalid: the name is not a
// valid file path, is a duplicate, or exceeds MaxInputs.
func (n *InputNames) Add(name string) error {
	if problem := inputNameProblem(name); problem != "" {
		return &Invalid{Field: "inputs", Problem: fmt.Sprintf("the file name %q %s", clip(strings.ToValidUTF8(name, "\uFFFD"), 100), problem)}
	}
	if n.files == nil {
		n.files, n.dirs = make(map[string]bool), make(map[string]bool)
	}
	switch {
	case n.files[name]:
		return &Invalid{Field: "inputs", Problem: fmt.Sprintf("the file %q is there twice", name)}
	case n.dirs[name]:
		return &Invalid{Field: "inputs", Problem: fmt.Sprintf("%q is a file and a directory", name)}
	case len(n.files) == MaxInputs:
		return &Invalid{Field: "inputs", Problem: fmt.Sprintf("there are more than %d files; pack them into one, or put them into storage and name the job with job_id", MaxInputs)}
	}
	n.files[name] = true
	for i := range len(name) {
		if name[i] != '/' {
			continue
		}
		if n.files[name[:i]] {
			return &Invalid{Field: "inputs", Problem: fmt.Sprintf("%q is a file and a directory", name[:i])}
		}
		n.dirs[name[:i]] = true
	}
	return nil
}

// Len returns the number of names added.
func (n *InputNames) Len() int { return len(n.files) }

// inputNameProblem describes what is wrong with a name; empty for a valid name.
func inputNameProblem(name string) string {
	switch {
	case name == "":
		return "is empty"
	case len(name) > MaxInputName:
		return fmt.Sprintf("is longer than %d bytes", MaxInputName)
	case !utf8.ValidString(name):
		return "is not valid UTF-8"
	}
	for _, r := range name {
		if r < ' ' || r == 0x7f {
			return fmt.Sprintf("contains the control character %q", r)
		}
	}
	for element := range strings.SplitSeq(name, "/") {
		switch {
		case element == "" && strings.HasPrefix(name, "/"):
			return "is absolute; name files relative to the directory that is sent"
		case element == "" || element == "." || element == "..":
			return fmt.Sprintf("has the element %q", element)
		case len(element) > 255:
			return "has an element of more than 255 bytes"
		}
	}
	return ""
}
