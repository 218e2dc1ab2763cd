package remote

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode"

	"github.com/mattn/go-runewidth"
	"github.com/spf13/pflag"
	"golang.org/x/term"
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
	flags.VarP(f, "output", "o", "format: table, wide, name, json or jsonl (one object per line)")
}

// String implements pflag.Value.
func (f *Format) String() string { return string(*f) }

// Type implements pflag.Value.
func (f *Format) Type() string { return "format" }

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
	widths = t.widths(widths)
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

// widths are those of the columns, and at least these.
func (t table) widths(widths []int) []int {
	for _, row := range t {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], cells.StringWidth(clean(cell)))
		}
	}
	return widths
}

// lastColumn is how much room the last column of a table, which says why, has at least
// where leaving out others makes that room.
const lastColumn = 18

// leftOut are those of the spare columns, in their order, without which a table fits into
// width; 0 has room for all.
func leftOut(widths []int, width int, spare []int) []int {
	if width <= 0 || len(widths) == 0 {
		return nil
	}
	last := len(widths) - 1
	taken := min(lastColumn, widths[last])
	for _, w := range widths[:last] {
		taken += w + 2
	}
	var out []int
	for _, i := range spare {
		if taken <= width {
			break
		}
		taken -= widths[i] + 2
		out = append(out, i)
	}
	return out
}

// narrow fits tables into a terminal.
type narrow struct {
	width int   // of the terminal; 0 for what is none
	spare []int // columns that may be left out, the first of them first
	out   []int // those that are, once something was printed
	begun bool

	widths []int // of the columns that are left, so far
}

// narrowed is narrow for a stream and a form.
func narrowed(to io.Writer, form Format, spare ...int) narrow {
	f, ok := to.(*os.File)
	if !ok || form != FormTable {
		return narrow{}
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return narrow{}
	}
	return narrow{width: width, spare: spare}
}

// fit is a table that fits: without some columns, the same each time, and with the last one
// cut.
func (n *narrow) fit(t table) table {
	if n.width <= 0 {
		return t
	}
	if !n.begun {
		n.begun, n.out = true, leftOut(t.widths(nil), n.width, n.spare)
	}
	fitting := make(table, len(t))
	for r, row := range t {
		for i, cell := range row {
			if !slices.Contains(n.out, i) {
				fitting[r] = append(fitting[r], cell)
			}
		}
	}
	n.widths = fitting.widths(n.widths)
	room := n.width
	for _, w := range n.widths[:max(len(n.widths)-1, 0)] {
		room -= w + 2
	}
	for _, row := range fitting {
		const least = 8 // less says nothing
		if i := len(row) - 1; i == len(n.widths)-1 && room >= least {
			row[i] = cells.Truncate(clean(row[i]), room, "…")
		}
	}
	return fitting
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
	// Spare are columns that a narrow terminal is not shown, the first of them first.
	Spare []int

	narrow narrow
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
		l.narrow = narrowed(l.To, l.Form, l.Spare...)
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
	l.widths, err = l.narrow.fit(rows).printFrom(l.To, l.widths)
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
