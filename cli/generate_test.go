package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestGenerate checks that every command that is shown has a page, and what is
// not shown has none.
func TestGenerate(t *testing.T) {
	dir := t.TempDir()
	root := newRoot("shepherdd", Build{})
	root.SetArgs([]string{"generate", dir})
	if err := root.Execute(); err != nil {
		t.Fatal(err)
	}
	pages := make(map[string]bool)
	files, err := filepath.Glob(filepath.Join(dir, "man", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		pages[filepath.Base(f)] = true
	}
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		name := pageName(c) + ".8.md"
		text, err := os.ReadFile(filepath.Join(dir, "man", name))
		if err != nil {
			t.Errorf("%s has no page: %v", c.CommandPath(), err)
		}
		if !strings.Contains(string(text), c.CommandPath()) {
			t.Errorf("the page of %s does not show how it is called", c.CommandPath())
		}
		delete(pages, name)
		for _, sub := range subcommands(c) {
			walk(sub)
		}
	}
	walk(newRoot("shepherdd", Build{}))
	for name := range pages {
		t.Errorf("%s is a page of no command that is shown", name)
	}
	for _, f := range []string{"bash/shepherdd", "bash/shepherd", "zsh/_shepherdd", "zsh/_shepherd", "fish/shepherdd.fish", "fish/shepherd.fish"} {
		text, err := os.ReadFile(filepath.Join(dir, "completions", f))
		if err != nil {
			t.Error(err)
		}
		name := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(f), "_"), ".fish")
		if !strings.Contains(string(text), "completion V2 for "+name+" ") && !strings.Contains(string(text), "completion for "+name+" ") {
			t.Errorf("%s is not the completion of %s", f, name)
		}
	}
}
