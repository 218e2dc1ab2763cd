// Package bench measures the speed and size of the programs that users run: shepherdd with
// a configuration file, a MinIO server, clients over HTTP and S3. `make bench` runs it and
// ends with a table of all figures and their bounds.
//
// Ratios, counts and sizes that exceed their bound fail a benchmark. Absolute times do not,
// because they depend on the machine: they are marked in the table. Values that are
// compared are measured in turns, in the same minutes.
package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

// programs is the directory in which TestMain builds the programs.
var programs string

// figures are those of all benchmarks, in the order they were taken.
var figures []figure

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "shepherd-bench-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir+"/",
			"../../cmd/shepherdd", "../../cmd/shepherd-shim", "./noop", "./null")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
			return 1
		}
		programs = dir
		code := m.Run()
		printTable()
		return code
	}())
}

// figure is one measured value. Its bound, if any, is a goal; a firm one must be met on any
// machine.
type figure struct {
	what, unit    string
	value         float64
	low, high     float64 // of several measurements; 0 for one
	least         bool    // the bound is the least it may be, not the most
	bound         float64
	bounded, firm bool
}

func (f figure) broken() bool {
	return f.bounded && (f.least && f.value < f.bound || !f.least && f.value > f.bound)
}

// note records a figure without a bound.
func note(b *testing.B, what string, value float64, unit string) {
	b.Helper()
	take(b, figure{what: what, unit: unit, value: value})
}

// hoped records an absolute time that should be at most bound.
func hoped(b *testing.B, what string, value float64, unit string, bound float64) {
	b.Helper()
	take(b, figure{what: what, unit: unit, value: value, bound: bound, bounded: true})
}

// hopedAtLeast records a figure that should be at least bound.
func hopedAtLeast(b *testing.B, what string, value float64, unit string, bound float64) {
	b.Helper()
	take(b, figure{what: what, unit: unit, value: value, bound: bound, bounded: true, least: true})
}

// atMost records a figure that must be at most bound.
func atMost(b *testing.B, what string, value float64, unit string, bound float64) {
	b.Helper()
	take(b, figure{what: what, unit: unit, value: value, bound: bound, bounded: true, firm: true})
}

// atLeast records a figure that must be at least bound.
func atLeast(b *testing.B, what string, value float64, unit string, bound float64) {
	b.Helper()
	take(b, figure{what: what, unit: unit, value: value, bound: bound, bounded: true, firm: true, least: true})
}

func take(b *testing.B, f figure) {
	b.Helper()
	b.ReportMetric(0, "ns/op") // not shown: it would be the time of the whole benchmark
	b.ReportMetric(f.value, strings.ReplaceAll(f.what+"-"+f.unit, " ", "-"))
	figures = append(figures, f)
	if f.firm && f.broken() {
		b.Errorf("%s: %.3g %s breaks the bound of %g", f.what, f.value, f.unit, f.bound)
	}
}

func printTable() {
	if len(figures) == 0 {
		return
	}
	fmt.Println()
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "figure\tmeasured\tbetween\tpromised\t")
	for _, f := range figures {
		promised, mark, between := "", "", ""
		if f.low != 0 || f.high != 0 {
			between = fmt.Sprintf("%.4g–%.4g", f.low, f.high)
		}
		if f.bounded {
			sign := "≤"
			if f.least {
				sign = "≥"
			}
			promised = fmt.Sprintf("%s %g", sign, f.bound)
		}
		if f.broken() {
			mark = "over, on this machine as it was"
			if f.firm {
				mark = "BROKEN"
			}
		}
		fmt.Fprintf(w, "%s\t%.4g %s\t%s\t%s\t%s\n", f.what, f.value, f.unit, between, promised, mark)
	}
	w.Flush()
	if path := os.Getenv(jsonEnv); path != "" {
		if err := writeJSON(path); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", jsonEnv, err)
		}
	}
}

// jsonEnv is the variable with the file to which the table is written as JSON.
const jsonEnv = "SHEPHERD_BENCH_JSON"

func writeJSON(path string) error {
	type row struct {
		What    string   `json:"what"`
		Unit    string   `json:"unit"`
		Value   float64  `json:"value"`
		Low     float64  `json:"low,omitempty"`
		High    float64  `json:"high,omitempty"`
		AtMost  *float64 `json:"at_most,omitempty"`
		AtLeast *float64 `json:"at_least,omitempty"`
		Firm    bool     `json:"firm,omitempty"`
	}
	rows := make([]row, len(figures))
	for i, f := range figures {
		rows[i] = row{What: f.what, Unit: f.unit, Value: f.value, Low: f.low, High: f.high, Firm: f.firm}
		switch {
		case f.bounded && f.least:
			rows[i].AtLeast = &f.bound
		case f.bounded:
			rows[i].AtMost = &f.bound
		}
	}
	text, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

func median[T int64 | float64 | time.Duration](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
