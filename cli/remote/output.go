package remote

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode"

	"github.com/mattn/go-runewidth"
	"github.com/spf13/pflag"
)

// Forms in which lists are printed.
const (
	FormTable = "table"
	FormWide  = "wide"
	FormName  = "name"
	FormJSON  = "json"
	FormLines = "jsonl"
)

// Format is the flag -o.
type Format string

// Add defines the flag.
func (f *Format) Add(flags *pflag.FlagSet) {
	*f = FormTable
	flags.VarP(f, "output", "o", "how to print: table, wide, name, json or jsonl (an object a line)")
}

// String implements pflag.Value.
func (f *Format) String() string { return string(*f) }

// Type implements pflag.Value.
func (f *Format) Type() string { return "form" }

// Set checks the value.
func (f *Format) Set(value string) error {
	switch value {
	case FormTable, FormWide, FormName, FormJSON, FormLines:
		*f = Format(value)
		return nil
	}
	return fmt.Errorf("%q is none of table, wide, name, json and jsonl", value)
}

// PrintJSON prints a value, indented or in one line.
func PrintJSON(to io.Writer, value any, indented bool) error {
	out := json.NewEncoder(to)
	out.SetEscapeHTML(false)
	if indented {
		out.SetIndent("", "  ")
	}
	return out.Encode(value)
}

// table is rows of cells; the first row is the heading.
type table [][]string

// cells measures what is shown; characters of ambiguous width are narrow whatever the
// locale, so that output compares.
var cells = &runewidth.Condition{EastAsianWidth: false}

// print aligns the columns by the width that terminals show characters in.
func (t table) print(to io.Writer) error {
	_, err := t.printFrom(to, nil)
	return err
}

// printFrom is print with columns of at least these widths; it returns those that they
// have, for rows that come later.
func (t table) printFrom(to io.Writer, widths []int) ([]int, error) {
	for _, row := range t {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], cells.StringWidth(clean(cell)))
		}
	}
	var b strings.Builder
	for _, row := range t {
		for i, cell := range row {
			cell = clean(cell)
			b.WriteString(cell)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-cells.StringWidth(cell)+2))
			}
		}
		b.WriteString("\n")
	}
	_, err := io.WriteString(to, b.String())
	return widths, err
}

// Listing prints things in the form that is asked for and, later, those that have changed.
type Listing[T any] struct {
	To      io.Writer
	Form    Format
	Heading []string // of the table; nil for none
	// Name is what -o name prints of a thing, and tells it from others; Row is its line.
	Name func(T) string
	Row  func(T) []string
	// Key tells a thing from others, where Name does not; nil where it does.
	Key func(T) string
	// Version is what is other once a thing has changed; nil for its line.
	Version func(T) string

	widths []int
	shown  map[string]string // by name
}

func (l *Listing[T]) keyOf(thing T) string {
	if l.Key == nil {
		return l.Name(thing)
	}
	return l.Key(thing)
}

func (l *Listing[T]) versionOf(thing T) string {
	if l.Version == nil {
		return strings.Join(l.Row(thing), "\t")
	}
	return l.Version(thing)
}

// Print prints the things that are new or other than before.
func (l *Listing[T]) Print(things []T) error {
	if l.Form == FormJSON && l.shown == nil { // later ones are objects of their own
		l.shown = make(map[string]string)
		for _, thing := range things {
			l.shown[l.keyOf(thing)] = l.versionOf(thing)
		}
		return PrintJSON(l.To, append([]T{}, things...), true)
	}
	var rows table
	if l.shown == nil {
		l.shown = make(map[string]string)
		if l.Heading != nil && l.Form != FormName && l.Form != FormLines {
			rows = append(rows, l.Heading)
		}
	}
	for _, thing := range things {
		key, version := l.keyOf(thing), l.versionOf(thing)
		if before, ok := l.shown[key]; ok && before == version {
			continue
		}
		l.shown[key] = version
		var err error
		switch l.Form {
		case FormName:
			_, err = fmt.Fprintln(l.To, clean(l.Name(thing)))
		case FormLines, FormJSON:
			err = PrintJSON(l.To, thing, l.Form == FormJSON)
		default:
			rows = append(rows, l.Row(thing))
		}
		if err != nil {
			return err
		}
	}
	var err error
	l.widths, err = rows.printFrom(l.To, l.widths)
	return err
}

// clean is text in one line without control characters, which a job's message may
// have and a terminal would obey.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text)
}

// cleanLines is clean that keeps the lines.
func cleanLines(text string) string {
	lines := strings.Split(text, "\n")
	for i := range lines {
		lines[i] = clean(lines[i])
	}
	return strings.Join(lines, "\n")
}

// deref is what a pointer points to, or the zero value.
func deref[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

// counted is a number of things: 1 output, 2 outputs.
func counted(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}
