package config

import (
	"fmt"
	"slices"
	"strings"
)

// report collects the problems of a file while its values are checked.
type report struct {
	root     *node
	problems Problems
	// overridden holds the keys whose value came from the command line.
	overridden map[string]bool
}

// wrong adds a problem.
func (r *report) wrong(n *node, path, format string, args ...any) {
	r.problems = append(r.problems, at(n, path, format, args...))
}

// at returns the file's value at a path of plain keys; nil if there is none, or the command
// line overrides it.
func (r *report) at(path string) *node {
	if r.overridden[path] {
		return nil
	}
	n := r.root
	for key := range strings.SplitSeq(path, ".") {
		if n = n.get(key); n == nil {
			return nil
		}
	}
	return n
}

// near returns the position of a key, or of the innermost of its sections that exists.
func (r *report) near(path string) *node {
	n, where := r.root, &node{line: 1, column: 1}
	for key := range strings.SplitSeq(path, ".") {
		e := n.entry(key)
		if e == nil {
			break
		}
		n, where = e.value, &node{kind: e.value.kind, file: e.file, line: e.line, column: e.column}
	}
	return where
}

// missing reports an absent required key, unless its section is not a mapping, which is
// reported already.
func (r *report) missing(path, expected string) {
	where := r.near(path)
	if r.at(path) != nil || r.overridden[path] || where.kind != null && where.kind != mapping {
		return
	}
	r.wrong(where, path, requiredKey+" or has no value; expected %s", expected)
}

// expect reports an invalid value. Every default is valid.
func (r *report) expect(right bool, path, expected string) {
	n := r.at(path)
	switch {
	case right || r.problems.cover(n, path):
	case n != nil:
		r.wrong(n, path, "expected %s, found %s", expected, n.shown())
	default:
		r.wrong(r.near(path), path, "the value from the command line does not fit; expected %s", expected)
	}
}

// bad reports whether a key has a problem.
func (r *report) bad(path string) bool {
	return slices.ContainsFunc(r.problems, func(p *Problem) bool { return p.Path == path })
}

// reject reports an invalid value without showing it.
func (r *report) reject(path, problem string) {
	if n := r.at(path); n != nil && problem != "" && !r.problems.cover(n, path) {
		r.wrong(n, path, "%s", problem)
	}
}

// notEmpty reports a key with an empty value.
func (r *report) notEmpty(path string, empty bool) {
	if empty && r.at(path) != nil {
		r.reject(path, "is empty; expected a value")
	}
}

// word reports a value that is not one of the known words.
func (r *report) word(path, value string, known []string) {
	n := r.at(path)
	if slices.Contains(known, value) || n == nil || r.problems.cover(n, path) {
		return
	}
	if n.referred {
		value = "" // no suggestion for a value that must not be shown
	}
	r.wrong(n, path, "%s is not known here; %s", n.shown(), suggest(value, known))
}

// embedded reports whether the file configures the embedded storage.
func (r *report) embedded() bool { return r.at("storage.url") == nil }

// item reports a problem with an item of a list; an empty problem is none.
func (r *report) item(list *node, i int, path, problem string) {
	if problem == "" || i >= len(list.items) {
		return
	}
	n := list.items[i]
	if path = fmt.Sprintf("%s[%d]", path, i); !r.problems.cover(n, path) {
		r.wrong(n, path, "%s", problem)
	}
}

// within reports a problem with a key of an item of a list of mappings.
func (r *report) within(list *node, i int, path, key, problem string) {
	if problem == "" || i >= len(list.items) {
		return
	}
	n := list.items[i]
	path = fmt.Sprintf("%s[%d]", path, i)
	if r.problems.cover(n, path) {
		return
	}
	if value := n.get(key); value != nil {
		n = value
	}
	if path = below(path, key); !r.problems.cover(n, path) {
		r.wrong(n, path, "%s", problem)
	}
}
