// Breaks breaks the code on purpose, one place at a time, and checks that the simulation finds
// it. It changes no file of the tree: the compiler reads the broken file instead (go build's
// -overlay).
//
//	go run ./test/sim/breaks [-seeds N] [NAME...]
//
// It writes the results into the table of docs/guarantees.md, and fails if a break is not found
// or its place is not in the code any more.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// fault is one place in the code and the error that breaking it causes.
type fault struct {
	name, file string
	was, is    string // was occurs once in the file
	what       string
}

const attemptTime = 30 * time.Minute // for the seeds of one break

func main() {
	seeds := flag.Int("seeds", 0, "how many seeds to run for each; 0 is as many as CI does")
	flag.Parse()
	if err := run(*seeds, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "breaks:", err)
		os.Exit(1)
	}
}

func run(seeds int, names []string) error {
	dir, err := os.MkdirTemp("", "breaks-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var missed []string
	for _, f := range faults {
		if len(names) > 0 && !slices.Contains(names, f.name) {
			continue
		}
		seed, as, err := f.find(dir, seeds)
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		if seed == "" {
			missed = append(missed, f.name)
			fmt.Printf("%s: not found\n", f.name)
			continue
		}
		fmt.Printf("%s: found by seed %s: %s\n", f.name, seed, as)
		if err := writeRow(f, seed, as); err != nil {
			return err
		}
	}
	if len(missed) > 0 {
		return fmt.Errorf("not found: %s", strings.Join(missed, ", "))
	}
	return nil
}

// page has the table of breaks, which this program writes.
const (
	page       = "docs/guarantees.md"
	tableHead  = "| break | place | what is broken | found by seed | as |\n| --- | --- | --- | --- | --- |\n"
	tableAfter = "\n<!-- the end of the table that make sim-breaks writes -->\n"
)

// writeRow writes the row of a break into the table. It removes rows of breaks that are not
// listed, and sorts the others in the order of the list.
func writeRow(f fault, seed, as string) error {
	text, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(text), tableHead)
	table, after, ended := strings.Cut(rest, tableAfter)
	if !ok || !ended {
		return fmt.Errorf("%s has no table of breaks", page)
	}
	rows := make(map[string]string)
	for row := range strings.Lines(table + "\n") {
		if cells := strings.Split(row, "`"); len(cells) > 1 {
			rows[cells[1]] = row
		}
	}
	rows[f.name] = fmt.Sprintf("| `%s` | `%s` | %s | %s | %s |\n", f.name, f.file, f.what, seed, as)
	table = ""
	for _, listed := range faults {
		table += rows[listed.name]
	}
	return os.WriteFile(page, []byte(before+tableHead+strings.TrimSuffix(table, "\n")+tableAfter+after), 0o644)
}

var (
	foundSeed = regexp.MustCompile(`seed (\d+): ([^\n]*)`)
	worldDir  = regexp.MustCompile(`/\S*/sim-\d+/\d+/`)
	quoted    = regexp.MustCompile(`[|{].*`)
)

// find builds the simulation with the break in it and runs seeds until one fails.
func (f fault) find(dir string, seeds int) (seed, as string, err error) {
	text, err := os.ReadFile(f.file)
	if err != nil {
		return "", "", err
	}
	if n := strings.Count(string(text), f.was); n != 1 {
		return "", "", fmt.Errorf("%s has its place %d times, not once: mend the list in test/sim/breaks", f.file, n)
	}
	path, err := filepath.Abs(f.file)
	if err != nil {
		return "", "", err
	}
	broken := filepath.Join(dir, filepath.Base(f.file))
	if err := os.WriteFile(broken, []byte(strings.Replace(string(text), f.was, f.is, 1)), 0o644); err != nil {
		return "", "", err
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{path: broken}})
	if err != nil {
		return "", "", err
	}
	list, test := filepath.Join(dir, "overlay.json"), filepath.Join(dir, "sim.test")
	if err := os.WriteFile(list, overlay, 0o644); err != nil {
		return "", "", err
	}
	if out, err := exec.Command("go", "test", "-c", "-overlay", list, "-o", test, "./test/sim").CombinedOutput(); err != nil {
		return "", "", fmt.Errorf("build: %w: %s", err, out)
	}
	ctx, cancel := context.WithTimeout(context.Background(), attemptTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, test, "-test.run", "^TestSeeds$", "-test.v", "-test.timeout", "0", "-seeds", fmt.Sprint(seeds))
	cmd.Dir = "test/sim"
	out, err := cmd.CombinedOutput()
	if err == nil {
		return "", "", nil
	}
	if m := foundSeed.FindStringSubmatch(string(out)); m != nil {
		return m[1], strings.TrimSpace(quoted.ReplaceAllString(worldDir.ReplaceAllString(m[2], ""), "…")), nil
	}
	if ctx.Err() != nil {
		return "", "", fmt.Errorf("no end within %s", attemptTime)
	}
	return "", "", fmt.Errorf("it fails otherwise: %.2000s", out)
}
