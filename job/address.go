package job

import (
	"maps"
	"net/url"
	"slices"
	"strings"
)

// Address selects the sheep that a job may run on. The zero Address selects any.
type Address struct {
	Node  string // name of the sheep's node; empty if Sheep is, and for any node
	Sheep string // name of the sheep; empty for any
	// Labels are labels that the sheep's node must have, all of them.
	Labels Labels
}

// String returns [NODE/][SHEEP][@KEY=VALUE,…], with the labels sorted by key and escaped as
// in a URL's query. It is empty for any sheep. ParseAddress reads it.
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

// ParseAddress reads the output of String. It accepts any other text and returns some
// Address for it.
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

// Who returns [NODE/][SHEEP], as clients name a sheep; empty for any.
func (a Address) Who() string { return Address{Node: a.Node, Sheep: a.Sheep}.String() }

// Fits reports whether the address selects the sheep of a node with these labels.
func (a Address) Fits(node, sheep string, labels Labels) bool {
	return (a.Node == "" || a.Node == node) && (a.Sheep == "" || a.Sheep == sheep) && labels.Match(a.Labels)
}
