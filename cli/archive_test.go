package cli

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iterait/shepherd/daemon"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger/sqlite"
)

// call runs the program with the arguments.
func call(args ...string) (string, error) {
	var out bytes.Buffer
	root := newRoot("shepherdd", Build{})
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(args)
	err := root.Execute()
	return out.String(), err
}

// A ledger is exported while a daemon has it open, and imported into another one.
func TestLedgerExportImport(t *testing.T) {
	p := newPatient(t, "ledger: {path: "+t.TempDir()+"/ledger.db}\n")
	other := newPatient(t, "ledger: {path: "+t.TempDir()+"/ledger.db}\n")
	cfg, err := daemon.LoadConfig(p.config)
	if err != nil {
		t.Fatal(err)
	}
	l, err := sqlite.Open(t.Context(), sqlite.Config{Path: cfg.Ledger.Path})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, id := range []job.ID{"first", "second"} {
		if _, err := l.Create(t.Context(), job.Record{ID: id, Model: job.Model{Name: "m"}}); err != nil {
			t.Fatal(err)
		}
	}
	to := filepath.Join(t.TempDir(), "jobs.jsonl")
	if said, err := call("ledger", "export", "-c", p.config, to); err != nil || said != "2 jobs are in "+to+"\n" {
		t.Fatalf("it says %q, %v", said, err)
	}
	text, err := os.ReadFile(to)
	if err != nil {
		t.Fatal(err)
	}
	if said, err := call("ledger", "export", "-c", p.config); err != nil || said != string(text) || strings.Count(said, "\n") != 4 {
		t.Errorf("on the standard output there is %q, %v; the file has %q", said, err, text)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(cfg.Ledger.Path), ".export-*")); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
	if _, err := call("ledger", "export", "-c", p.config, to); err == nil || !strings.Contains(err.Error(), to) {
		t.Errorf("an archive is written over: %v", err)
	}
	cut := filepath.Join(t.TempDir(), "cut.jsonl")
	if err := os.WriteFile(cut, text[:len(text)-5], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := call("ledger", "import", "-c", other.config, cut); err == nil || !strings.Contains(err.Error(), cut+": line 4: the archive is cut off") {
		t.Errorf("a file that is cut off: %v", err)
	}
	if said, err := call("ledger", "import", "-c", other.config, to); err != nil || said != "2 jobs are imported\n" {
		t.Fatalf("it says %q, %v", said, err)
	}
	if _, err := call("ledger", "import", "-c", other.config, to); err == nil || !strings.Contains(err.Error(), "job first") {
		t.Errorf("imported again: %v", err)
	}
	if said, err := call("ledger", "export", "-c", other.config); err != nil || said != string(text) {
		t.Errorf("exported again there is %q, %v", said, err)
	}
	var usage *usageError
	for _, args := range [][]string{{"import"}, {"import", "a", "b"}, {"export", "a", "b"}} {
		if _, err := call(append([]string{"ledger"}, args...)...); !errors.As(err, &usage) {
			t.Errorf("%v: %v", args, err)
		}
	}
}

// Jobs that storage knows and the ledger does not are queued again.
func TestRecover(t *testing.T) {
	p := newPatient(t, "storage: {listen: \"127.0.0.1:0\", path: "+t.TempDir()+"/storage}\n")
	said, err := call("recover", "-c", p.config, "--dry-run")
	if err != nil || said != "0 jobs would be queued again, 0 cannot be, 0 have ended, 0 are in the ledger\n" {
		t.Fatalf("it says %q, %v", said, err)
	}
	if _, err := os.Stat(filepath.Join(p.dir, "state", "ledger.db")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a dry run made a ledger: %v", err)
	}
}
