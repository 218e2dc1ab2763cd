package job

import (
	"maps"
	"net/url"
	"slices"
	"strings"
)

// Address says which sheep a job is for. The zero Address is for any.
type Address struct {
	Node  string // name of the sheep's node; empty for any, and where Sheep is
	Sheep string // name of the sheep; empty for any
	// Labels are those that the sheep's node has, all of them.
	Labels Labels
}

// String is [NODE/][SHEEP][@KEY=VALUE,…], with the labels in order of their keys and
// escaped as in the query of a URL. It is empty for any sheep. ParseAddress reads it.
func (a Address) String() string {
	text := a.Sheep
	if a.Node != "" {
		text = a.Node + "/" + a.Sheep
	}
	if len(a.Labels) == 0 {
		return text
	}
	for i, key := range slices.Sorted(maps.Keys(a.Labels)) {
		separator := ","
		if i == 0 {
			separator = "@"
		}
		text += separator + url.QueryEscape(key) + "=" + url.QueryEscape(a.Labels[key])
	}
	return text
}

// ParseAddress reads what String has written. Of any other text the result is some
// Address.
func ParseAddress(text string) Address {
	who, labels, labelled := strings.Cut(text, "@")
	a := Address{Sheep: who}
	if i := strings.LastIndexByte(who, '/'); i >= 0 { // no sheep has a slash in its name
		a.Node, a.Sheep = who[:i], who[i+1:]
	}
	if !labelled {
		return a
	}
	a.Labels = Labels{}
	for pair := range strings.SplitSeq(labels, ",") {
		key, value, _ := strings.Cut(pair, "=")
		key, keyErr := url.QueryUnescape(key)
		value, valueErr := url.QueryUnescape(value)
		if keyErr == nil && valueErr == nil {
			a.Labels[key] = value
		}
	}
	return a
}

// Who is [NODE/][SHEEP], as clients name a sheep; empty for any.
func (a Address) Who() string { return Address{Node: a.Node, Sheep: a.Sheep}.String() }

// Fits reports whether the job is for a sheep of a node with these labels.
func (a Address) Fits(node, sheep string, labels Labels) bool {
	return (a.Node == "" || a.Node == node) && (a.Sheep == "" || a.Sheep == sheep) && labels.Match(a.Labels)
}
