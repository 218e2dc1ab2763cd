package doctor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iterait/shepherd/internal/claims"
)

func TestSecrets(t *testing.T) {
	claims.Hold(t, "L8")
	dir := t.TempDir()
	for d := dir; d != "/tmp" && d != "/"; d = filepath.Dir(d) { // others reach it
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	put := func(name string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	private, open, writable := put("private.yml", 0o640), put("open.yml", 0o644), put("writable.yml", 0o602)
	closed := put("closed/open.yml", 0o644)
	if err := os.Chmod(filepath.Dir(closed), 0o750); err != nil {
		t.Fatal(err)
	}
	put("state/ledger.db", 0o644)
	put("state/public.txt", 0o644)
	for name, c := range map[string]struct {
		check Secrets
		want  string // of the only finding
		level Level
	}{
		"private":        {Secrets{Files: []string{private, dir + "/none"}}, "no secret", OK},
		"open":           {Secrets{Files: []string{open}}, open + " can be read", Failure},
		"writable":       {Secrets{Files: []string{writable}}, writable + " can be changed", Failure},
		"in a directory": {Secrets{Files: []string{closed}}, "no secret", OK},
		"a state":        {Secrets{Dirs: []string{dir + "/state"}}, "state/ledger.db can be read", Failure},
	} {
		got := c.check.Examine(t.Context())
		if len(got) != 1 || got[0].Level != c.level || !strings.Contains(got[0].Message, c.want) || c.level == Failure && !strings.HasPrefix(got[0].Next, "chmod o-rwx ") {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if err := os.Chmod(dir+"/state", 0o700); err != nil {
		t.Fatal(err)
	}
	if got := (Secrets{Dirs: []string{dir + "/state"}}).Examine(t.Context()); len(got) != 1 || got[0].Level != OK {
		t.Errorf("a state that is closed: %+v", got)
	}
}
