package cli

import (
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/daemon"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/postgres"
	"github.com/iterait/shepherd/ledger/postgres/postgrestest"
	"github.com/iterait/shepherd/ledger/sqlite"
)

// fillLedger has a job of each state, a run that followed another, and a failure with a
// traceback.
func fillLedger(t *testing.T, path string) {
	t.Helper()
	l, err := sqlite.Open(t.Context(), sqlite.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	run := func(id job.ID, outcome ledger.Outcome) {
		t.Helper()
		if _, err := l.Create(t.Context(), job.Record{ID: id, Model: job.Model{Name: "m", Version: "1"}, Tenant: "wool", Priority: 2}); err != nil {
			t.Fatal(err)
		}
		if outcome.State == "" {
			return
		}
		c, err := l.Claim(t.Context(), ledger.Slot{Node: "node", Sheep: "a", Only: id})
		if err != nil || c == nil {
			t.Fatalf("Claim = %v, %v", c, err)
		}
		if _, err := l.Finish(t.Context(), id, c.Token, outcome); err != nil {
			t.Fatal(err)
		}
	}
	run("done", ledger.Outcome{State: job.Done, Cause: job.CauseDone, Warnings: []string{"größe"}})
	run("failed", ledger.Outcome{State: job.Failed, Cause: job.CauseError, Failure: &job.Failure{Message: "no", Type: "T", Traceback: "line 1\nline 2"}})
	run("twice", ledger.Outcome{State: job.Cancelled, Cause: job.CauseCancelled})
	run("twice", ledger.Outcome{})
	run("queued", ledger.Outcome{})
}

// The queue and the history go from a SQLite file to PostgreSQL and back, and are the
// same. What is asked of a ledger works with either.
func TestLedgerMigrate(t *testing.T) {
	server := postgrestest.New(t)
	database, err := url.Parse(server.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("unasked for\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := newPatient(t, "ledger: {path: "+t.TempDir()+"/ledger.db}\n")
	postgresql := newPatient(t, "ledger: {url: \""+database.String()+"\", password_file: "+password+"}\n")
	back := newPatient(t, "ledger: {path: "+t.TempDir()+"/ledger.db}\n")
	cfg, err := daemon.LoadConfig(file.config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := call("ledger", "migrate", "-c", file.config, postgresql.config); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a ledger that is not there: %v", err)
	}
	fillLedger(t, cfg.Ledger.Path)
	want, err := call("ledger", "export", "-c", file.config)
	if err != nil || strings.Count(want, "\n") != 6 {
		t.Fatalf("it says %q, %v", want, err)
	}
	if _, err := call("ledger", "export", "-c", postgresql.config); !errdefs.IsNotFound(err) {
		t.Errorf("an export without tables: %v", err)
	}
	if said, err := call("ledger", "migrate", "-c", file.config, postgresql.config); err != nil || said != "4 jobs are moved; start the daemon with "+postgresql.config+" from now on\n" {
		t.Fatalf("it says %q, %v", said, err)
	}
	if got, err := call("ledger", "export", "-c", postgresql.config); err != nil || got != want {
		t.Errorf("PostgreSQL has\n%s, %v, the file had\n%s", got, err, want)
	}
	if _, err := call("ledger", "backup", "-c", postgresql.config, "to"); err == nil || !strings.Contains(err.Error(), "pg_dump") {
		t.Errorf("a backup: %v", err)
	}
	for _, again := range [][2]string{{file.config, postgresql.config}, {file.config, file.config}} {
		_, err := call("ledger", "migrate", "-c", again[0], again[1])
		if !errdefs.IsFailedPrecondition(err) && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: %v", again, err)
		}
	}
	if said, err := call("doctor", "-c", postgresql.config); !strings.Contains(said, "answers and lets us in") {
		t.Errorf("the doctor says %q, %v", said, err)
	}

	// Another node has the database.
	other, err := postgres.Open(t.Context(), postgres.Config{URL: database.String(), RetryFor: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	lease, err := other.Join(t.Context(), "other")
	if err != nil {
		t.Fatal(err)
	}
	var taken *postgres.TakenError
	if _, err := call("ledger", "migrate", "-c", postgresql.config, back.config); !errors.As(err, &taken) || taken.Node != "other" {
		t.Errorf("while another node is up: %v", err)
	}
	if err := errors.Join(lease.Release(t.Context()), other.Close()); err != nil {
		t.Fatal(err)
	}
	if said, err := call("ledger", "migrate", "-c", postgresql.config, back.config); err != nil || !strings.HasPrefix(said, "4 jobs are moved;") {
		t.Fatalf("it says %q, %v", said, err)
	}
	if got, err := call("ledger", "export", "-c", back.config); err != nil || got != want {
		t.Errorf("there is\n%s, %v, it was\n%s", got, err, want)
	}
	var usage *usageError
	if _, err := call("ledger", "migrate"); !errors.As(err, &usage) {
		t.Errorf("without a configuration: %v", err)
	}
}
