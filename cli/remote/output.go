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
	formTable = "table"
	formWide  = "wide"
	formName  = "name"
	formJSON  = "json"
	formLines = "jsonl"
)

// format is the flag -o.
type format string

func (f *format) add(flags *pflag.FlagSet) {
	*f = formTable
	flags.VarP(f, "output", "o", "how to print: table, wide, name, json or jsonl (an object a line)")
}

func (f *format) String() string { return string(*f) }
func (f *format) Type() string   { return "form" }

// Set checks the value.
func (f *format) Set(value string) error {
	switch value {
	case formTable, formWide, formName, formJSON, formLines:
		*f = format(value)
		return nil
	}
	return fmt.Errorf("%q is none of table, wide, name, json and jsonl", value)
}

// printJSON prints a value, indented or in one line.
func printJSON(to io.Writer, value any, indented bool) error {
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
	var widths []int
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
