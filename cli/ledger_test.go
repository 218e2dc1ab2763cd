package cli

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iterait/shepherd/daemon"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger/sqlite"
)

// TestLedgerBackup backs up the ledger of a daemon that has it open, and
// restores it.
func TestLedgerBackup(t *testing.T) {
	p := newPatient(t, "ledger: {path: "+t.TempDir()+"/ledger.db}\n")
	cfg, err := daemon.LoadConfig(p.config)
	if err != nil {
		t.Fatal(err)
	}
	l, err := sqlite.Open(t.Context(), sqlite.Config{Path: cfg.Ledger.Path})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := l.Create(t.Context(), job.Record{ID: "kept", Model: job.Model{Name: "m"}}); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "backup.db")
	backup := func(args ...string) (string, error) {
		return call(append([]string{"ledger", "backup", "-c", p.config}, args...)...)
	}
	if said, err := backup(to); err != nil || said != "1 jobs are in "+to+"\n" {
		t.Fatalf("it says %q, %v", said, err)
	}
	if _, err := backup(to); err == nil || !strings.Contains(err.Error(), to) {
		t.Errorf("a backup is written over: %v", err)
	}
	var usage *usageError
	if _, err := backup(); !errors.As(err, &usage) {
		t.Errorf("without a file: %v", err)
	}
	restored, err := sqlite.Open(t.Context(), sqlite.Config{Path: to})
	if err != nil {
		t.Fatal(err)
	}
	defer restored.Close()
	if _, err := restored.Get(t.Context(), "kept"); err != nil {
		t.Error(err)
	}
}
