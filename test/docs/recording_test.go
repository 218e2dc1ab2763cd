package docs

import (
	"flag"
	"fmt"
	"html"
	"os"
	"strings"
	"testing"
	"unicode/utf8"
)

var record = flag.String("record", "", "write a recording of a terminal to this file")

// recorded are the commands of the recording.
var recorded = []string{
	"shepherd submit digits:v1 pages/ -o results",
	"cat results/output",
	"shepherd submit digits:v7 pages/ --id monday",
	"shepherd ls",
}

// TestRecording runs some commands, and draws their output. It runs only on request.
func TestRecording(t *testing.T) {
	if *record == "" {
		t.Skip("make recording records")
	}
	s := newSession(t)
	s.begin()
	s.must("mkdir pages && cp examples/digits/testdata/{3-0826,7-0856}.png pages/")
	var screen []shown
	for _, typed := range recorded {
		screen = append(screen, shown{typed, true})
		printed, _ := s.run(typed)
		for line := range strings.Lines(strings.ReplaceAll(printed, s.dir, "…")) {
			for _, part := range wrap(strings.TrimRight(line, "\n"), columns) {
				screen = append(screen, shown{part, false})
			}
		}
	}
	if err := os.WriteFile(*record, []byte(draw(screen)), 0o644); err != nil {
		t.Fatal(err)
	}
}

// shown is a line of a terminal.
type shown struct {
	text  string
	typed bool
}

const (
	columns    = 104
	letter     = 8.0
	lineHeight = 19
	edge       = 16
	top        = 44
	typing     = 0.035 // seconds for a letter
	reading    = 1.4   // seconds after what a command has printed
)

// draw makes an SVG of the lines, which come up one after the other as if they were typed.
// With reduced motion all are shown at once.
func draw(screen []shown) string {
	var body strings.Builder
	at := 0.5
	for i, line := range screen {
		y := top + lineHeight*(i+1)
		if line.typed {
			if i > 0 {
				at += reading
			}
			length := float64(utf8.RuneCountInString(line.text))
			fmt.Fprintf(&body, "<g class=\"line\" style=\"animation-delay:%.2fs\"><text x=\"%d\" y=\"%d\"><tspan class=\"prompt\">$ </tspan><tspan class=\"typed\">%s</tspan></text></g>\n", at, edge, y, html.EscapeString(line.text))
			at += typing * length
			continue
		}
		at += 0.12
		fmt.Fprintf(&body, "<g class=\"line\" style=\"animation-delay:%.2fs\"><text x=\"%d\" y=\"%d\">%s</text></g>\n", at, edge, y, html.EscapeString(line.text))
	}
	width, height := int(2*edge+columns*letter), top+lineHeight*(len(screen)+1)
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%[1]d" height="%[2]d" viewBox="0 0 %[1]d %[2]d" role="img" aria-label="A terminal: a job is submitted and its result fetched, another fails and says why, both are listed">
<style>
text { font: 13.3px ui-monospace, "SF Mono", "Cascadia Mono", "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #c9d3cc; white-space: pre; }
.prompt { fill: #7fcfa3; }
.typed { fill: #ffffff; font-weight: 600; }
.line { animation: show 0.01s both; }
@keyframes show { from { opacity: 0; } to { opacity: 1; } }
@media (prefers-reduced-motion: reduce) { .line { animation: none; } }
</style>
<rect width="%[1]d" height="%[2]d" rx="10" fill="#151a17"/>
<circle cx="20" cy="20" r="6" fill="#3a443d"/><circle cx="40" cy="20" r="6" fill="#3a443d"/><circle cx="60" cy="20" r="6" fill="#3a443d"/>
%[3]s</svg>
`, width, height, body.String())
}

// wrap breaks a line where a terminal would.
func wrap(line string, columns int) []string {
	runes := []rune(line)
	var parts []string
	for len(runes) > columns {
		parts, runes = append(parts, string(runes[:columns])), runes[columns:]
	}
	return append(parts, string(runes))
}
