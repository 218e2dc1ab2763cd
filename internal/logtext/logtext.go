// Package logtext prepares a program's output for display: it removes terminal control
// sequences, and finds the lines that explain a failure.
package logtext

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits of what Tail and Cause return.
const (
	maxTailLines  = 10
	maxTailBytes  = 2 << 10
	maxCauseLines = 3
	maxCauseBytes = 500
	maxLine       = 400 // bytes of one line in a cause
)

// escape matches a terminal's control sequence: CSI and string sequences in
// their 7-bit and 8-bit forms, then the two-byte ones (ECMA-48).
var escape = regexp.MustCompile(`(?:\x1b\[|\x{9b})[0-?]*[ -/]*[@-~]?` +
	`|(?:\x1b[\]PX^_]|[\x{9d}\x{90}\x{98}\x{9e}\x{9f}])[^\x07\x1b\x{9c}\n]*(?:\x07|\x1b\\|\x{9c})?` +
	`|\x1b[ -/]*[0-~]?`)

// Clean returns text as a terminal would show it, line by line: text before a carriage
// return, escape sequences and control characters are removed.
// Bytes that are not UTF-8 become U+FFFD.
func Clean(text string) string {
	text = strings.ToValidUTF8(text, "\ufffd")
	text = escape.ReplaceAllString(text, "")
	var out strings.Builder
	out.Grow(len(text))
	for line := range strings.Lines(text) {
		body, ended := strings.CutSuffix(line, "\n")
		body = strings.TrimRight(body, "\r")
		body = body[strings.LastIndexByte(body, '\r')+1:]
		for _, r := range body {
			if r == '\t' || r != utf8.RuneError && unicode.IsPrint(r) || r == '\ufffd' {
				out.WriteRune(r)
			}
		}
		if ended {
			out.WriteByte('\n')
		}
	}
	return out.String()
}

// Tail returns the last lines of text, cleaned, without blank lines and
// progress bars: at most 10 lines and 2 KiB. The lines of its Cause are among
// them, even if more was printed after those.
func Tail(text string) string {
	lines := shown(text)
	if len(lines) == 0 {
		return ""
	}
	cause := lines[:0:0]
	from := max(0, len(lines)-maxTailLines)
	if b, ok := findCause(lines); ok && b.begin < from {
		cause = lines[b.begin:b.end]
		from = max(b.end, len(lines)-maxTailLines+len(cause))
	}
	for {
		out := strings.Join(append(cause[:len(cause):len(cause)], lines[from:]...), "\n")
		if len(out) <= maxTailBytes {
			return out
		}
		if from < len(lines)-1 {
			from++
			continue
		}
		if len(cause) > 0 { // both are long: the cause counts
			return cutBytes(strings.Join(cause, "\n"), maxTailBytes)
		}
		return keepEnd(out, maxTailBytes)
	}
}

// Cause returns the lines of text that say why its program failed, as one line
// of at most 500 bytes: an error that was reported, however much was printed
// after it, or else the last line that is no progress bar, warning or stack
// frame. It is empty if text is.
func Cause(text string) string {
	lines := shown(text)
	if len(lines) == 0 {
		return ""
	}
	last := len(lines) - 1
	for i := last; i >= 0; i-- {
		if !isNoise(lines[i]) {
			last = i
			break
		}
	}
	chosen := lines[last : last+1]
	if b, ok := findCause(lines); ok {
		chosen = lines[b.begin:b.end]
		if last >= b.end {
			chosen = append(chosen[:len(chosen):len(chosen)], lines[last])
		}
	}
	var out strings.Builder
	for i, line := range chosen {
		line = cutBytes(strings.TrimSpace(line), maxLine)
		if i > 0 {
			if end := out.String(); strings.HasSuffix(end, ":") || strings.HasSuffix(end, ",") {
				out.WriteByte(' ')
			} else {
				out.WriteString("; ")
			}
		}
		out.WriteString(line)
	}
	return cutBytes(out.String(), maxCauseBytes)
}

// shown returns the cleaned lines that are not blank. Progress bars are kept only if there
// is nothing else.
func shown(text string) []string {
	var lines, bars []string
	for line := range strings.Lines(Clean(text)) {
		line = strings.TrimRight(line, " \t\n")
		switch {
		case line == "":
		case progress.MatchString(line):
			bars = append(bars, line)
		default:
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 && len(bars) > 0 {
		return bars[len(bars)-1:]
	}
	return lines
}

var (
	// progress is a progress bar's last state: tqdm's, pip's, wget's.
	progress = regexp.MustCompile(`\d%\s*\|.*\||\d+/\d+ \[\d+:\d+|[━╸╺]{5}|\[[=#>]{2,}[=#>. -]*\]|\[[=#>]*[. -]{5,}\]`)

	// noise matches lines that programs print in addition to an error.
	noise = regexp.MustCompile(`^\[?[IWD]\d*[ :]` + // glog, abseil, PyTorch's C++
		`|^(?:[\d\-:.,TZ/ +]+)?\W{0,2}(?:INFO|DEBUG|TRACE|WARN|WARNING)\b` +
		`|\b\w*Warning\b` +
		`|^\s*warnings\.warn\(` +
		`|^note: run with .RUST_BACKTRACE` +
		`|^note: Some details are omitted` +
		`|^Exception ignored in` +
		`|leaked (?:semaphore|shared_memory)` +
		`|^Producer process has been terminated` +
		`|^Node\.js v\d` +
		`|^exit status \d` +
		`|^goroutine \d+ \[` + // Go's stacks
		`|^\[signal SIG` +
		`|^[\w./*()\-]+\(.*\)$` +
		`|^created by ` +
		`|^\s+\S+\.go:\d+` +
		`|^\s+(?:at|File) ` + // Java's, JavaScript's and Python's stacks
		`|^\s*\.\.\. \d+ more$` +
		`|^\s*[\^~]+\s*$` +
		`|^Traceback \(most recent call last\)`)

	// strong matches lines by which a language's runtime reports the error that ended the
	// program.
	strong = regexp.MustCompile(`^(?:[\w.]+\.)?[A-Z]\w*(?:Error|Exception|Interrupt|Exit|Fault|Failure)(?::|$)` +
		`|^(?:[\w.]+\.)?(?:Error|Exception): ` +
		`|\bpanicked at\b|^panic: |^fatal error: ` +
		`|^terminate called ` +
		`|^Exception in thread |^Unhandled exception|^Uncaught `)

	// weak matches lines that mention an error.
	weak = regexp.MustCompile(`(?i)\b(?:fatal|error|critical|exception|failed|failure|cannot|can't|could not|unable to|assertion|` +
		`segmentation fault|no such|out of memory|aborted|killed|denied|not found|invalid|undefined|missing)\b`)
)

func isNoise(line string) bool { return noise.MatchString(line) }

// block is a range of lines.
type block struct{ begin, end int }

// findCause finds the last line that reports an error, with the lines that
// belong to it.
func findCause(lines []string) (block, bool) {
	for _, pattern := range []*regexp.Regexp{strong, weak} {
		for i := len(lines) - 1; i >= 0; i-- {
			if isNoise(lines[i]) || !pattern.MatchString(lines[i]) {
				continue
			}
			b := block{i, i + 1}
			if pattern == weak {
				return b, true
			}
			for b.end < len(lines) && b.end-b.begin < maxCauseLines && !isNoise(lines[b.end]) {
				b.end++
			}
			return b, true
		}
	}
	return block{}, false
}

// cutBytes cuts s to at most n bytes, at a rune's begin, and marks the cut.
func cutBytes(s string, n int) string {
	if len(s) <= n {
		return s
	}
	n -= len("…")
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// keepEnd keeps the last n bytes of s, from a rune's begin.
func keepEnd(s string, n int) string {
	if len(s) <= n {
		return s
	}
	from := len(s) - n
	for from < len(s) && !utf8.RuneStart(s[from]) {
		from++
	}
	return s[from:]
}
