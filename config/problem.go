package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/runtime"
)

// Problem is one error in a configuration file. Its text never holds a secret; of a
// value that came from an environment variable it shows a path at most.
type Problem struct {
	File   string
	Line   int // from 1
	Column int // from 1, in characters
	// Path is the key, dotted ("sheep.gpu0.port"); empty for the file as a whole.
	Path string
	// Text is what is wrong and what was expected, in one line.
	Text string

	meant string // the key that an unknown one was probably meant to be; empty if unknown
}

// requiredKey begins the text about a required key that is not there.
const requiredKey = "required key is missing"

// Error is "FILE:LINE:COLUMN: PATH: TEXT".
func (p *Problem) Error() string {
	at := fmt.Sprintf("%s:%d:%d: ", p.File, p.Line, p.Column)
	switch {
	case p.Path == "":
	case strings.ContainsFunc(p.Path, func(r rune) bool { return !unicode.IsPrint(r) }):
		at += strconv.Quote(p.Path) + ": "
	default:
		at += p.Path + ": "
	}
	return at + p.Text
}

// Unwrap gives the class of the error.
func (p *Problem) Unwrap() error { return errdefs.ErrInvalidArgument }

// Problems are all errors of a configuration, by file and position.
type Problems []*Problem

// Error is one line per problem.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives the problems one by one.
func (ps Problems) Unwrap() []error {
	errs := make([]error, len(ps))
	for i, p := range ps {
		errs[i] = p
	}
	return errs
}

// at creates a problem at the position of n.
func at(n *node, path, format string, args ...any) *Problem {
	return &Problem{File: n.file, Line: n.line, Column: n.column, Path: path, Text: oneLine(fmt.Sprintf(format, args...))}
}

// withoutConsequences leaves out that a required key is missing where it is there, mistyped,
// and that is said.
func (ps Problems) withoutConsequences() Problems {
	mistyped := make(map[string]bool)
	for _, p := range ps {
		mistyped[p.meant] = true
	}
	return slices.DeleteFunc(ps, func(p *Problem) bool {
		return p.Path != "" && mistyped[p.Path] && strings.HasPrefix(p.Text, requiredKey)
	})
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// cover reports whether a problem at the value n of a key has been reported.
func (ps Problems) cover(n *node, path string) bool {
	return n != nil && slices.ContainsFunc(ps, func(p *Problem) bool {
		return p.Path == path && p.File == n.file && p.Line == n.line && p.Column == n.column
	})
}

// inOrder sets the file name of problems of the main file, sorts by position and drops
// duplicates: a key that both config and a sheep type decode is reported once.
func (ps Problems) inOrder(file string) Problems {
	for _, p := range ps {
		p.File = cmp.Or(p.File, file)
		// What is written below a secret, keys included, may be the secret.
		for _, secret := range []string{"registry.password", "storage.secret_key", "storage.session_token"} {
			if below, ok := strings.CutPrefix(p.Path, secret); ok && below != "" && (below[0] == '.' || below[0] == '[') {
				p.Path = secret
			}
		}
	}
	ps = ps.withoutConsequences()
	slices.SortStableFunc(ps, func(a, b *Problem) int {
		if a.File != b.File { // the main one first
			return cmp.Or(compareBool(b.File == file, a.File == file), cmp.Compare(a.File, b.File))
		}
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Path, b.Path))
	})
	return slices.CompactFunc(ps, func(a, b *Problem) bool { return *a == *b })
}

// fromDriver turns a sheep type's error about its section into problems of the file.
func fromDriver(err error, section *node, path string) Problems {
	switch err := err.(type) {
	case nil:
		return nil
	case Problems:
		return slices.Clone(err)
	case *Problem:
		return Problems{err}
	case *runtime.FieldError:
		n, field := section.find(err.Field)
		return Problems{at(n, path+field, "%s", err.Problem)}
	case interface{ Unwrap() []error }:
		var ps Problems
		for _, e := range err.Unwrap() {
			ps = append(ps, fromDriver(e, section, path)...)
		}
		return ps
	}
	// A sheep type may have wrapped an error; the position is that of what it wraps.
	var many Problems
	if errors.As(err, &many) {
		return slices.Clone(many)
	}
	var one *Problem
	if errors.As(err, &one) {
		return Problems{one}
	}
	var field *runtime.FieldError
	if errors.As(err, &field) {
		return fromDriver(field, section, path)
	}
	return Problems{at(section, path, "%v", err)}
}
