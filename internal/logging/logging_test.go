package logging

import (
	"errors"
	"log/slog"
	"regexp"
	"strings"
	"testing"
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
