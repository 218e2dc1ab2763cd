package sim

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestGuaranteesNameTests checks that each guarantee of docs/guarantees.md names tests, and that
// each of these exists in its package.
func TestGuaranteesNameTests(t *testing.T) {
	const root = "../.."
	text, err := os.ReadFile(filepath.Join(root, "docs/guarantees.md"))
	check(t, err)
	_, promises, found := strings.Cut(string(text), "## Promises\n")
	promises, _, ended := strings.Cut(promises, "\n## ")
	if !found || !ended {
		t.Fatal("docs/guarantees.md has no section of promises")
	}
	named := regexp.MustCompile("`([a-z0-9/]+)` `((?:Test|Benchmark)[A-Za-z0-9]+)`")
	count := 0
	for line := range strings.Lines(promises) {
		row := strings.Split(strings.TrimSpace(line), "|")
		if len(row) != 4 || strings.HasPrefix(row[1], " ---") || row[1] == " promise " {
			continue
		}
		tests := named.FindAllStringSubmatch(row[2], -1)
		if len(tests) == 0 || len(tests) != strings.Count(row[2], ";")+1 {
			t.Errorf("a promise names no tests, or others than by their package and name: %s", line)
		}
		for _, m := range tests {
			count++
			if !hasTest(t, filepath.Join(root, m[1]), m[2]) {
				t.Errorf("%s has no test %s", m[1], m[2])
			}
		}
	}
	if count < 50 {
		t.Errorf("only %d tests are named", count)
	}
}

// hasTest looks for a test in the test files of a package.
func hasTest(t *testing.T, dir, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	check(t, err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		check(t, err)
		if strings.Contains(string(text), "\nfunc "+name+"(t ") {
			return true
		}
	}
	return false
}
