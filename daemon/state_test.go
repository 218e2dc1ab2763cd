package daemon

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/iterait/shepherd/internal/claims"
)

// TestStateIsPrivate, where the daemon makes its directory itself.
func TestStateIsPrivate(t *testing.T) {
	claims.Hold(t, "L4")
	dir := filepath.Join(t.TempDir(), "state")
	lock, err := lockState(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	remove, err := writeAddress(dir, "unix:///x")
	if err != nil {
		t.Fatal(err)
	}
	defer remove()
	for path, want := range map[string]os.FileMode{dir: 0o700 | os.ModeDir, dir + "/lock": 0o600, dir + "/api": 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
}
