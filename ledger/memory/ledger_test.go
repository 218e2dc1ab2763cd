package memory

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/ledgertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestLedger(t *testing.T) {
	ledgertest.Run(t, func(t *testing.T, options ledgertest.Options) ledgertest.Harness {
		return &harness{cfg: Config{KeepJobs: options.KeepJobs, EventNumber: options.EventNumber, Retention: options.Retention, Policy: options.Policy}}
	})
}

// harness opens ledgers over the same records.
type harness struct {
	cfg  Config
	kept *contents
}

func (h *harness) Open(t testing.TB) ledger.Ledger {
	if h.kept == nil {
		l := New(h.cfg)
		h.kept = l.contents
		t.Cleanup(func() { l.Close() })
		return l
	}
	l := open(h.kept)
	t.Cleanup(func() { l.Close() })
	return l
}

func (h *harness) Another(_ testing.TB, open ledger.Ledger) ledger.Ledger { return shared{open} }

type shared struct{ ledger.Ledger }

func (shared) Close() error { return nil }

func (h *harness) Crash(t testing.TB, _ ledger.Ledger) ledger.Ledger { return h.Open(t) }
