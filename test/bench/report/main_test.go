package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const log = `goos: linux
goarch: amd64
pkg: github.com/iterait/shepherd/runtime/bare
cpu: A Processor
BenchmarkRoundTrip-2 	    3000	    140.0 direct-µs	       450.5 shim-µs
PASS
`

func TestTable(t *testing.T) {
	most := 2.0
	r := report{figures: []figure{{What: "floor", Unit: "ms", Value: 4.21234, Low: 4, High: 5.5}, {What: "of the floor", Unit: "times", Value: 1.5, AtMost: &most}, {What: "slow", Unit: "ms", Value: 3, AtMost: &most}, {What: "few", Unit: "jobs/s", Value: 1, AtLeast: &most}}}
	got, err := r.table("of the floor", "floor", "slow", "few")
	if err != nil {
		t.Fatal(err)
	}
	want := "| what | measured | bound |\n| --- | --- | --- |\n| of the floor | 1.5 times | at most 2 |\n| floor | 4.212 ms (4–5.5) |  |\n| slow | 3 ms | at most 2, **missed** |\n| few | 1 jobs/s | at least 2, **missed** |"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if _, err := r.table("ceiling"); err == nil || !strings.Contains(err.Error(), `"ceiling"`) {
		t.Errorf("a figure that was not measured: %v", err)
	}
}

func TestMetric(t *testing.T) {
	r := report{Cores: 2, metrics: map[string]string{}}
	if err := r.read(strings.NewReader(log)); err != nil {
		t.Fatal(err)
	}
	got, err := r.metric("runtime/bare/BenchmarkRoundTrip", "shim-µs")
	if err != nil || got != "450.5" || r.CPU != "A Processor" {
		t.Errorf("metric = %q, %v, on %q", got, err, r.CPU)
	}
	if _, err := r.metric("runtime/bare/BenchmarkStart", "ms"); err == nil || !strings.Contains(err.Error(), "BenchmarkStart") {
		t.Errorf("a benchmark that did not run: %v", err)
	}
}

// A page is written completely or not at all: a figure that the run did not measure is an
// error with its name.
func TestIncompleteRun(t *testing.T) {
	dir := t.TempDir()
	figures, bench := filepath.Join(dir, "figures.json"), filepath.Join(dir, "bench.txt")
	for name, content := range map[string]string{figures: "[]", bench: log} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out strings.Builder
	if err := run(&out, figures, bench, "abc", "2026-01-02"); err == nil || !strings.Contains(err.Error(), "POST to result") {
		t.Errorf("run: %v", err)
	}
}
