package shepherd

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What a runner leaves in its working directory is removed whatever it is, and
// nothing outside is.
func TestWorkdirIsRemoved(t *testing.T) {
	for _, c := range []struct {
		name string
		fill func(t *testing.T, dir, outside string)
	}{
		{"a small job", func(t *testing.T, dir, _ string) { writeFile(t, dir, "outputs/output") }},
		{"many files", func(t *testing.T, dir, _ string) {
			for i := range 500 {
				writeFile(t, dir, "outputs/"+strings.Repeat("n", 40)+strconv.Itoa(i))
			}
		}},
		{"deep directories", func(t *testing.T, dir, _ string) {
			deep := "outputs" + strings.Repeat("/d", 20)
			if err := os.MkdirAll(filepath.Join(dir, deep), 0o700); err != nil {
				t.Fatal(err)
			}
			writeFile(t, dir, deep+"/file")
		}},
		{"links that lead out", func(t *testing.T, dir, outside string) {
			for _, name := range []string{"outputs/link", "link"} {
				if err := os.Symlink(outside, filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(os.Remove(filepath.Join(dir, "inputs")), os.Symlink(outside, filepath.Join(dir, "inputs"))); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			outside := t.TempDir()
			writeFile(t, outside, "kept")
			w := workdirs{dataRoot: filepath.Join(t.TempDir(), "data"), sheep: "sheep"}
			d, err := w.make(7, "job")
			if err != nil {
				t.Fatal(err)
			}
			if err := d.show(owner{}); err != nil {
				t.Fatal(err)
			}
			c.fill(t, filepath.Join(d.ioDataRoot(), "job"), outside)
			if err := d.remove(); err != nil {
				t.Fatal(err)
			}
			if entries, err := os.ReadDir(filepath.Join(w.dataRoot, w.sheep)); err != nil || len(entries) > 0 {
				t.Errorf("left are %v, %v", entries, err)
			}
			if _, err := os.Stat(filepath.Join(outside, "kept")); err != nil {
				t.Error(err)
			}
		})
	}
}

// A sheep's directory that is a link out of the data root is not entered.
func TestWorkdirStaysInDataRoot(t *testing.T) {
	outside := t.TempDir()
	w := workdirs{dataRoot: t.TempDir(), sheep: "sheep"}
	if err := os.Symlink(outside, filepath.Join(w.dataRoot, w.sheep)); err != nil {
		t.Fatal(err)
	}
	d, err := w.make(7, "job")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.show(owner{}); err == nil {
		t.Error("the working directory was moved out of the data root")
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) > 0 {
		t.Errorf("outside are %v, %v", entries, err)
	}
	if err := d.remove(); err != nil {
		t.Error(err)
	}
}

// The mode of working directories does not depend on the umask, and what an
// earlier daemon left in the staging area is replaced.
func TestWorkdirModes(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	w := workdirs{dataRoot: t.TempDir(), sheep: "sheep"}
	for range 2 {
		d, err := w.make(7, "job")
		if err != nil {
			t.Fatal(err)
		}
		defer d.leave()
		for _, name := range []string{d.staged(""), d.staged("job"), d.staged("job", "inputs"), d.staged("job", "outputs")} {
			if info, err := os.Stat(name); err != nil || info.Mode() != fs.ModeDir|dirMode {
				t.Errorf("%s: %v, %v", name, info.Mode(), err)
			}
		}
		if err := d.writeInput([]byte("left over")); err != nil {
			t.Fatal(err)
		}
	}
}

func writeFile(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
		t.Fatal(err)
	}
}
