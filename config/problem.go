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

// Problem is one thing that is wrong in a configuration file. Its text never
// holds a secret; of what came from an environment variable it shows paths at
// most.
type Problem struct {
	File   string
	Line   int // from 1
	Column int // from 1, in characters
	// Path is the offending key, dotted ("sheep.gpu0.port"); empty when the
	// file as a whole is meant.
	Path string
	// Text says what is wrong and what was expected, in one line.
	Text string
}

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

// Problems is all that is wrong in a configuration file, by position.
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

// at makes a problem with what is at n.
func at(n *node, path, format string, args ...any) *Problem {
	return &Problem{Line: n.line, Column: n.column, Path: path, Text: oneLine(fmt.Sprintf(format, args...))}
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// cover reports whether something is already known to be wrong with the value n
// of a key: then it is not worth another look.
func (ps Problems) cover(n *node, path string) bool {
	return n != nil && slices.ContainsFunc(ps, func(p *Problem) bool {
		return p.Path == path && p.Line == n.line && p.Column == n.column
	})
}

// inOrder gives every problem the file's name, sorts by position and drops
// repetitions: a key that both config and a sheep type decode is wrong once.
func (ps Problems) inOrder(file string) Problems {
	for _, p := range ps {
		p.File = file
		// What is written below a secret, keys included, may be the secret.
		for _, secret := range []string{"registry.password", "storage.secret_key", "storage.session_token"} {
			if below, ok := strings.CutPrefix(p.Path, secret); ok && below != "" && (below[0] == '.' || below[0] == '[') {
				p.Path = secret
			}
		}
	}
	slices.SortStableFunc(ps, func(a, b *Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Path, b.Path))
	})
	return slices.CompactFunc(ps, func(a, b *Problem) bool { return *a == *b })
}

// fromDriver turns what a sheep type said about its section into problems of
// the file.
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
	// A sheep type may have wrapped what it was told; its words then lead to
	// nothing that has a better position.
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
