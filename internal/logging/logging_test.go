package logging

import (
	"encoding/json"
	"errors"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"unicode"

	"github.com/iterait/shepherd/internal/claims"
)

func TestText(t *testing.T) {
	var out strings.Builder
	log := New(&out, Config{Level: slog.LevelInfo})
	log.Info("Created sheep `a` of type `bare`")
	log.With("sheep", "a").WithGroup("g").Warn("two\nlines", "n", 3, "error", errors.New("no = good"), "empty", "")
	log.Debug("not shown")
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	want := []string{
		`^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}: INFO    @shepherd       : Created sheep .a. of type .bare.$`,
		`: WARNING @shepherd       : two\\nlines sheep=a g\.n=3 g\.error="no = good" g\.empty=""$`,
	}
	if len(lines) != len(want) {
		t.Fatalf("%d lines, want %d:\n%s", len(lines), len(want), out.String())
	}
	for i, w := range want {
		if !regexp.MustCompile(w).MatchString(lines[i]) {
			t.Errorf("line %d is %q, want %s", i+1, lines[i], w)
		}
	}
}

// TestControlCharacters: nothing that a client or a model sends can move a cursor,
// hide text or begin a record, in any of the layouts.
func TestControlCharacters(t *testing.T) {
	claims.Hold(t, "L6")
	const bad = "a\x1b[2Jb\u009b1mc\u202ed\u2066e\u2028f\x7fg\rh\xffi\U000e0001j"
	for name, asJSON := range map[string]bool{"text": false, "json": true} {
		var out strings.Builder
		New(&out, Config{JSON: asJSON}).With("with", bad).Info(bad+"\n2026-11-22 10:08:03.942214: INFO    @shepherd       : forged", "id", bad, "error", errors.New(bad))
		line := strings.TrimSuffix(out.String(), "\n")
		for _, r := range line {
			if !unicode.IsPrint(r) {
				t.Errorf("%s: %U is in %q", name, r, line)
			}
		}
		for _, kept := range []string{"a", "b", "forged"} {
			if !strings.Contains(line, kept) {
				t.Errorf("%s: %q lacks %q", name, line, kept)
			}
		}
		if !asJSON {
			continue
		}
		var record map[string]any
		if err := json.Unmarshal([]byte(line), &record); err != nil || record["id"] != strings.ToValidUTF8(bad, "\ufffd") {
			t.Errorf("%v: %q", err, record["id"])
		}
	}
	if got := string(appendLines(nil, bad+"\nsecond")); strings.Count(got, "\n") != 1 || strings.ContainsFunc(got, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }) {
		t.Errorf("the journal gets %q", got)
	}
}
