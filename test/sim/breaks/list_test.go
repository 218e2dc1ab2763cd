package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPlaces checks that the text of every break occurs once in its file, and that the table
// of docs/guarantees.md has a seed that found it.
func TestPlaces(t *testing.T) {
	const root = "../../.."
	page, err := os.ReadFile(filepath.Join(root, page))
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(page), tableHead)
	table, _, _ = strings.Cut(table, tableAfter)
	rows := strings.Count(table, "| `") / 2 // a name and a place in each
	names := make(map[string]bool)
	for _, f := range faults {
		if names[f.name] {
			t.Errorf("two breaks are called %s", f.name)
		}
		names[f.name] = true
		text, err := os.ReadFile(filepath.Join(root, f.file))
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(text), f.was); n != 1 {
			t.Errorf("%s: its place is in %s %d times, not once", f.name, f.file, n)
		}
		if !strings.Contains(table, "| `"+f.name+"` |") {
			t.Errorf("%s: docs/guarantees.md does not say which seed found it: run make sim-breaks BREAK=%s", f.name, f.name)
		}
	}
	if rows != len(faults) {
		t.Errorf("docs/guarantees.md has %d breaks, and %d are listed", rows, len(faults))
	}
}
