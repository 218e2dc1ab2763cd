package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// TestOpenRefused opens files that cannot be opened as a ledger: the error has the path
// and what to do.
func TestOpenRefused(t *testing.T) {
	execute := func(t *testing.T, path, script string) {
		t.Helper()
		db, err := sql.Open("sqlite", dataSource(path))
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if _, err := db.Exec(script); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		prepare func(t *testing.T, path string)
		class   error
		says    string
	}{
		"in use": {func(t *testing.T, path string) { mustOpen(t, Config{Path: path}) }, errdefs.ErrUnavailable,
			fmt.Sprintf("in use by another process (%d)", os.Getpid())},
		"newer": {func(t *testing.T, path string) {
			mustOpen(t, Config{Path: path}).Close()
			execute(t, path, `PRAGMA user_version = 99`)
		}, errdefs.ErrFailedPrecondition, "written by a newer shepherd (its schema is version 99, this shepherd knows up to " + fmt.Sprint(len(migrations)) + ")"},
		"another program's": {func(t *testing.T, path string) { execute(t, path, `CREATE TABLE t (x); PRAGMA user_version = 1`) },
			errdefs.ErrFailedPrecondition, "another program"},
		"another program's, unnumbered": {func(t *testing.T, path string) { execute(t, path, `CREATE TABLE t (x)`) },
			errdefs.ErrFailedPrecondition, "another program"},
		"no database": {func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte(strings.Repeat("not a database. ", 1000)), 0o600); err != nil {
				t.Fatal(err)
			}
		}, errdefs.ErrInternal, "damaged"},
		"a directory": {func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}, errdefs.ErrInternal, "is a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "a ledger?#%41.db")
			c.prepare(t, path)
			l, err := Open(t.Context(), Config{Path: path})
			if err == nil {
				l.Close()
				t.Fatal("it was opened")
			}
			if !errors.Is(err, c.class) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), path) {
				t.Fatalf("answered %q, want class %v, %q and the path", err, c.class, c.says)
			}
		})
	}
	t.Run("no directory", func(t *testing.T) {
		_, err := Open(t.Context(), Config{Path: filepath.Join(t.TempDir(), "no", "ledger.db")})
		if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "create it") {
			t.Fatalf("answered %v", err)
		}
	})
	t.Run("no path", func(t *testing.T) {
		if _, err := Open(t.Context(), Config{}); err == nil {
			t.Fatal("it was opened")
		}
	})
	t.Run("ended context", func(t *testing.T) {
		ctx, end := context.WithCancel(t.Context())
		end()
		path := filepath.Join(t.TempDir(), "ledger.db")
		if _, err := Open(ctx, Config{Path: path}); !errors.Is(err, context.Canceled) {
			t.Fatalf("answered %v", err)
		}
		mustOpen(t, Config{Path: path}) // the lock was released
	})
}

// TestDamaged overwrites a table: reading it returns an error of a damaged file.
func TestDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := mustOpen(t, Config{Path: path})
	fill(t, l, 0, 200)
	l.Close()
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	const page = 4096
	if _, err := file.WriteAt(make([]byte, info.Size()-page), page); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	l, err = Open(t.Context(), Config{Path: path})
	if err == nil {
		defer l.Close()
		_, err = l.Get(t.Context(), numbered(7).ID)
	}
	if !errdefs.IsInternal(err) || !strings.Contains(err.Error(), "damaged") || !strings.Contains(err.Error(), path) {
		t.Fatalf("answered %v", err)
	}
}

// disk mounts a file system of the given size. It needs root.
func disk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size)
	if errors.Is(err, syscall.EPERM) {
		testenv.Missing(t, "the right to mount a tmpfs", "run the tests as root")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// TestDiskFull fills the disk of the ledger: calls return the error, no acknowledged change
// is lost, and the ledger continues when there is space.
func TestDiskFull(t *testing.T) {
	dir := disk(t, "8m") // the log grows to 4 MiB before a checkpoint
	cfg := Config{Path: filepath.Join(dir, "ledger.db")}
	l := mustOpen(t, cfg)
	fill(t, l, 0, 100)
	var free syscall.Statfs_t
	if err := syscall.Statfs(dir, &free); err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, int64(free.Bavail)*free.Bsize-256<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	kept, full := 100, error(nil)
	for full == nil {
		if _, full = l.Create(t.Context(), numbered(kept)); full == nil {
			kept++
		}
		if kept > 10_000 {
			t.Fatal("the disk does not get full")
		}
	}
	check := func(what string, err error) {
		t.Helper()
		if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "no space left") || !strings.Contains(err.Error(), cfg.Path) {
			t.Errorf("%s answered %v", what, err)
		}
	}
	check("Create", full)
	var unwell error
	for tries := 0; unwell == nil && tries < 1000; tries++ { // a few pages may be free
		unwell = l.Ping(t.Context())
	}
	check("Ping", unwell)
	var calls []func()
	for i := range 10 {
		calls = append(calls, func() {
			_, err := l.Create(t.Context(), numbered(1_000_000+i))
			check("Create beside others", err)
		})
	}
	together(t, l, calls...)

	intact := func() {
		t.Helper()
		records, _, err := l.List(t.Context(), ledger.Filter{}, 0, kept+100)
		if err != nil || len(records) != kept {
			t.Fatalf("%d records, %v; want %d", len(records), err, kept)
		}
		for i, r := range records[100:] {
			if r.ID != numbered(100+i).ID {
				t.Fatalf("%s is in the place of %s", r.ID, numbered(100+i).ID)
			}
		}
	}
	intact()
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := l.Ping(t.Context()); err != nil {
		t.Fatalf("with space again: %v", err)
	}
	if _, err := l.Create(t.Context(), numbered(kept)); err != nil {
		t.Fatalf("with space again: %v", err)
	}
	kept++
	intact()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = mustOpen(t, cfg)
	intact()
	if counts, err := l.Count(t.Context()); err != nil || counts[job.Queued] != kept {
		t.Fatalf("counts are %v, %v; want %d", counts, err, kept)
	}
	l.Close()
}

// TestReadOnly opens a ledger on a read-only file system.
func TestReadOnly(t *testing.T) {
	dir := disk(t, "4m")
	cfg := Config{Path: filepath.Join(dir, "ledger.db")}
	mustOpen(t, cfg).Close()
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), cfg)
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "read-only") || !strings.Contains(err.Error(), cfg.Path) {
		t.Fatalf("answered %v", err)
	}
}
