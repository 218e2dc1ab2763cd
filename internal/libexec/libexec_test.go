package libexec

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFind(t *testing.T) {
	if got, err := Find("x", "relative"); err != nil || !filepath.IsAbs(got) {
		t.Errorf("got %s, %v for a given one", got, err)
	}
	path := t.TempDir()
	t.Setenv("PATH", path)
	const name = "shepherd-nothing"
	// A directory and a file that is not executable are not programs.
	if err := os.Mkdir(filepath.Join(path, name), 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := Find(name, ""); err == nil || !strings.Contains(err.Error(), "libexec/shepherd") {
		t.Errorf("got %s, %v", got, err)
	}
	program := filepath.Join(path, name+"2")
	if err := os.WriteFile(program, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := Find(name+"2", ""); err != nil || got != program {
		t.Errorf("got %s, %v", got, err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Find(filepath.Base(self), ""); err != nil || got != self {
		t.Errorf("got %s, %v", got, err)
	}
}
