// Report writes docs/performance.md from the results of the benchmarks, so that no figure
// is copied by hand:
//
//	go run ./test/bench/report -figures figures.json -log bench.txt >docs/performance.md
//
// figures.json is what SHEPHERD_BENCH_JSON names, bench.txt the output of `go test
// -bench` for all packages. The text around the figures is performance.md.tmpl.
package main

import (
	"bufio"
	_ "embed"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"
	"text/template"
)

//go:embed performance.md.tmpl
var text string

func main() {
	figures := flag.String("figures", "", "the figures of test/bench as JSON")
	log := flag.String("log", "", "the output of the benchmarks")
	revision := flag.String("revision", "", "what was measured")
	date := flag.String("date", "", "when it was measured")
	flag.Parse()
	if err := run(os.Stdout, *figures, *log, *revision, *date); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

func run(out io.Writer, figures, log, revision, date string) error {
	r := report{Revision: revision, Date: date, Cores: runtime.NumCPU(), metrics: map[string]string{}}
	content, err := os.ReadFile(figures)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(content, &r.figures); err != nil {
		return fmt.Errorf("%s: %w", figures, err)
	}
	file, err := os.Open(log)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := r.read(file); err != nil {
		return fmt.Errorf("%s: %w", log, err)
	}
	return r.write(out)
}

// report is the data of the template.
type report struct {
	Revision, Date string
	CPU            string
	Cores          int

	figures []figure
	metrics map[string]string // by "package.Benchmark unit"
}

// figure is a figure in the JSON of test/bench.
type figure struct {
	What    string   `json:"what"`
	Unit    string   `json:"unit"`
	Value   float64  `json:"value"`
	Low     float64  `json:"low"`
	High    float64  `json:"high"`
	AtMost  *float64 `json:"at_most"`
	AtLeast *float64 `json:"at_least"`
}

// read reads the metrics from the output of `go test -bench`: lines of a name, the
// number of iterations, and pairs of a value and its unit, below a line that names the
// package.
func (r *report) read(log io.Reader) error {
	var room string
	lines := bufio.NewScanner(log)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if name, ok := strings.CutPrefix(line, "pkg: "); ok {
			room = strings.TrimPrefix(name, "github.com/iterait/shepherd/")
		}
		if cpu, ok := strings.CutPrefix(line, "cpu: "); ok {
			r.CPU = cpu
		}
		fields := strings.Fields(line)
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		if _, err := strconv.Atoi(fields[1]); err != nil {
			continue
		}
		name := strings.TrimSuffix(fields[0], fmt.Sprintf("-%d", r.Cores))
		for i := 2; i+1 < len(fields); i += 2 {
			r.metrics[path.Join(room, name)+" "+fields[i+1]] = fields[i]
		}
	}
	return lines.Err()
}

func (r *report) write(out io.Writer) error {
	page, err := template.New("performance.md").Option("missingkey=error").Funcs(template.FuncMap{"table": r.table, "metric": r.metric}).Parse(text)
	if err != nil {
		return err
	}
	return page.Execute(out, r)
}

// table returns a table of the figures with these names, in their order.
func (r *report) table(names ...string) (string, error) {
	var rows strings.Builder
	rows.WriteString("| what | measured | bound |\n| --- | --- | --- |\n")
	for _, name := range names {
		f, ok := r.find(name)
		if !ok {
			return "", fmt.Errorf("the run has no figure %q", name)
		}
		measured := fmt.Sprintf("%.4g %s", f.Value, f.Unit)
		if f.Low != 0 || f.High != 0 {
			measured += fmt.Sprintf(" (%.4g–%.4g)", f.Low, f.High)
		}
		bound := ""
		switch {
		case f.AtMost != nil:
			bound = fmt.Sprintf("at most %g", *f.AtMost) + missed(f.Value > *f.AtMost)
		case f.AtLeast != nil:
			bound = fmt.Sprintf("at least %g", *f.AtLeast) + missed(f.Value < *f.AtLeast)
		}
		fmt.Fprintf(&rows, "| %s | %s | %s |\n", f.What, measured, bound)
	}
	return strings.TrimSuffix(rows.String(), "\n"), nil
}

// missed marks a bound that was not met.
func missed(so bool) string {
	if so {
		return ", **missed**"
	}
	return ""
}

func (r *report) find(name string) (figure, bool) {
	for _, f := range r.figures {
		if f.What == name {
			return f, true
		}
	}
	return figure{}, false
}

// metric returns the result of a benchmark of a package in a unit.
func (r *report) metric(name, unit string) (string, error) {
	value, ok := r.metrics[name+" "+unit]
	if !ok {
		return "", fmt.Errorf("the run has no %q of %s", unit, name)
	}
	return value, nil
}
