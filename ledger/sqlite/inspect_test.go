package sqlite

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
)

// TestBackup copies a ledger that is open and written, and opens the copy.
func TestBackup(t *testing.T) {
	dir := t.TempDir()
	path, copied := filepath.Join(dir, "ledger.db"), filepath.Join(dir, "copy.db")
	l := mustOpen(t, Config{Path: path})
	create := func(ids ...job.ID) {
		t.Helper()
		for _, id := range ids {
			if _, err := l.Create(t.Context(), job.Record{ID: id, Model: job.Model{Name: "m"}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	create("a", "b")
	if err := Backup(t.Context(), path, copied); err != nil {
		t.Fatal(err)
	}
	create("c")
	if found, err := Inspect(t.Context(), path); found.Jobs != 3 || err != nil {
		t.Errorf("the ledger records %d jobs, %v", found.Jobs, err)
	}
	if found, err := Inspect(t.Context(), copied); found.Jobs != 2 || err != nil {
		t.Errorf("the copy records %d jobs, %v", found.Jobs, err)
	}
	if info, err := os.Stat(copied); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the copy is %v, %v", info.Mode(), err)
	}
	if err := Backup(t.Context(), path, copied); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a backup over another: %v", err)
	}

	restored := mustOpen(t, Config{Path: copied})
	if _, err := restored.Get(t.Context(), "b"); err != nil {
		t.Errorf("the copy lacks a job: %v", err)
	}
	if _, err := restored.Create(t.Context(), job.Record{ID: "d", Model: job.Model{Name: "m"}}); err != nil {
		t.Errorf("the copy cannot be gone on with: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left beside it: %v, %v", left, err)
	}
}

// TestInspectDamaged damages a ledger's rows, which only reading them shows.
func TestInspectDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	if _, err := Inspect(t.Context(), path); !errdefs.IsNotFound(err) {
		t.Errorf("no ledger: %v", err)
	}
	l := mustOpen(t, Config{Path: path})
	for i := range 200 {
		id := job.ID(strings.Repeat("x", 200) + string(rune('a'+i%26)) + string(rune('a'+i/26)))
		if _, err := l.Create(t.Context(), job.Record{ID: id, Model: job.Model{Name: "m"}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if found, err := Inspect(t.Context(), path); found.Jobs != 200 || err != nil {
		t.Fatalf("before: %d, %v", found.Jobs, err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	noise := []byte(strings.Repeat("\xa5", 4096))
	for at := info.Size() / 2 / 4096 * 4096; at < info.Size(); at += 4 * 4096 {
		if _, err := f.WriteAt(noise, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = Inspect(t.Context(), path)
	if !errdefs.IsInternal(err) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("damaged: %v", err)
	}
}
