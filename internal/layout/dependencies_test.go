package layout

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestDependenciesAreDescribed compares the modules that the programs' own
// packages import with those that docs/dependencies.md lists.
func TestDependenciesAreDescribed(t *testing.T) {
	text, err := os.ReadFile("../../docs/dependencies.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "## Linked modules")
	described := map[string]bool{}
	for line := range strings.Lines(table) {
		if modules, _, ok := strings.Cut(strings.TrimPrefix(line, "|"), "|"); ok {
			for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(modules, -1) {
				described[m[1]] = true
			}
		}
	}
	moduleOf := map[string]string{}
	for pkg, fields := range list(t, "{{.ImportPath}}{{with .Module}} {{.Path}}{{end}}", "-deps", module+"/cmd/...") {
		if len(fields) == 1 {
			moduleOf[pkg] = fields[0]
		}
	}
	used := map[string]bool{}
	for pkg, imports := range list(t, "{{.ImportPath}} {{join .Imports \" \"}}", "-deps", module+"/cmd/...") {
		if moduleOf[pkg] != module {
			continue
		}
		for _, imported := range imports {
			if m := moduleOf[imported]; m != "" && m != module {
				used[m] = true
			}
		}
	}
	if len(used) < 20 {
		t.Errorf("only %d modules were found", len(used))
	}
	for m := range used {
		if !described[m] {
			t.Errorf("%s is linked, and docs/dependencies.md does not list it: check it (make vuln) and add it", m)
		}
	}
	for m := range described {
		if !used[m] {
			t.Errorf("docs/dependencies.md describes %s, which none of the programs' own packages imports", m)
		}
	}
}
