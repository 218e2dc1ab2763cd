package sqlite

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/ledgertest"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(killEnv); path != "" {
		os.Exit(workUntilKilled(path))
	}
	goleak.VerifyTestMain(m)
}

func TestLedger(t *testing.T) {
	ledgertest.Run(t, func(t *testing.T, options ledgertest.Options) ledgertest.Harness {
		return &harness{Config{
			Path:     filepath.Join(t.TempDir(), "ledger.db"),
			KeepJobs: options.KeepJobs, EventNumber: options.EventNumber, Retention: options.Retention, Policy: options.Policy,
		}}
	})
}

type harness struct{ cfg Config }

func (h *harness) Open(t testing.TB) ledger.Ledger {
	t.Helper()
	return mustOpen(t, h.cfg)
}

// Another returns the ledger itself: only one process can have it open.
func (h *harness) Another(_ testing.TB, open ledger.Ledger) ledger.Ledger { return shared{open} }

type shared struct{ ledger.Ledger }

func (shared) Close() error { return nil }

// Crash copies the files while the ledger is open: a killed process leaves the same in the
// page cache.
func (h *harness) Crash(t testing.TB, _ ledger.Ledger) ledger.Ledger {
	t.Helper()
	left := filepath.Join(t.TempDir(), "ledger.db")
	for _, suffix := range []string{"", "-wal"} {
		copyFile(t, h.cfg.Path+suffix, left+suffix)
	}
	h.cfg.Path = left
	return h.Open(t)
}

func mustOpen(t testing.TB, cfg Config) *Ledger {
	t.Helper()
	l, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	source, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	target, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	if _, err := io.Copy(target, source); err != nil {
		t.Fatal(err)
	}
}
