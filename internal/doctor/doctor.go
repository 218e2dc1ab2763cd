// Package doctor examines the machine that a daemon runs on, or will run on, and reports
// what is wrong and what to do about it.
//
// A Check examines one part and changes nothing. It reports all problems, one Finding each.
// Checks of parts that are not configured are skipped.
package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/iterait/shepherd/internal/errtext"
)

// Level is the severity of a finding.
type Level string

// A Failure prevents jobs from running; a Warning does not, or not yet.
const (
	OK      Level = "ok"
	Warning Level = "warning"
	Failure Level = "failure"
)

// Finding is one line of the diagnosis.
type Finding struct {
	Check string `json:"check"`
	Level Level  `json:"level"`
	// Message says what was found; Next, unless Level is OK, what to do.
	Message string `json:"message"`
	Next    string `json:"next,omitempty"`
}

// Check examines one part. Examine returns soon after ctx ends, which is what
// it then reports.
type Check interface {
	Name() string // a word or two, lower case
	Examine(ctx context.Context) []Finding
}

// checkTime bounds each check, so that one that hangs does not block the others.
const checkTime = 30 * time.Second

// Examine runs the checks one after the other and reports each finding at once.
func Examine(ctx context.Context, checks []Check, report func(Finding)) {
	for _, c := range checks {
		within, cancel := context.WithTimeout(ctx, checkTime)
		findings := c.Examine(within)
		cancel()
		for _, f := range findings {
			f.Check = c.Name()
			report(f)
		}
		if ctx.Err() != nil {
			return
		}
	}
}

func ok(format string, args ...any) Finding {
	return Finding{Level: OK, Message: fmt.Sprintf(format, args...)}
}

func warning(next, format string, args ...any) Finding {
	return Finding{Level: Warning, Message: fmt.Sprintf(format, args...), Next: next}
}

func failure(next, format string, args ...any) Finding {
	return Finding{Level: Failure, Message: fmt.Sprintf(format, args...), Next: next}
}

// fromError returns the finding for an error. Errors of shepherd name the next step after a
// semicolon, or else after a colon; next is the step for other errors.
func fromError(level Level, err error, next string) Finding {
	text := errtext.Of(err)
	for _, separator := range []string{"; ", ": "} {
		if i := strings.LastIndex(text, separator); i > 0 {
			step := text[i+len(separator):]
			if verb, _, _ := strings.Cut(step, " "); slices.Contains(verbs, verb) {
				return Finding{Level: level, Message: text[:i], Next: step}
			}
		}
	}
	return Finding{Level: level, Message: text, Next: next}
}

// verbs are the words with which the next step in an error begins.
var verbs = []string{
	"check", "chmod", "choose", "create", "free", "get", "give", "install", "keep", "log", "make", "mount", "name", "put", "restore", "run", "set", "start", "stop", "use", "wait", "write",
}

// Diagnosis is all findings.
type Diagnosis struct {
	Healthy  bool      `json:"healthy"` // there is no Failure
	Warnings int       `json:"warnings"`
	Failures int       `json:"failures"`
	Findings []Finding `json:"findings"`
}

// Add adds a finding.
func (d *Diagnosis) Add(f Finding) {
	d.Findings = append(d.Findings, f)
	switch f.Level {
	case Warning:
		d.Warnings++
	case Failure:
		d.Failures++
	}
	d.Healthy = d.Failures == 0
}

// WriteJSON writes the diagnosis for programs.
func (d *Diagnosis) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(d)
}

// WriteLine writes a finding for people: level, check, message, and the next
// step on a line of its own.
func (f Finding) WriteLine(w io.Writer) error {
	level := string(f.Level)
	if f.Level == Failure {
		level = "FAILURE"
	}
	text := fmt.Sprintf("%-8s %-12s %s\n", level, f.Check, oneLine(f.Message))
	if f.Next != "" {
		text += fmt.Sprintf("%-8s %-12s → %s\n", "", "", oneLine(f.Next))
	}
	_, err := io.WriteString(w, text)
	return err
}

// oneLine replaces control characters: texts may come from other programs.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
}
