package shepherd_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/shepherd"
)

// Faults that the simulation found (test/sim).

// forgetful is a ledger that fails the next few look-ups of records, and counts the
// checkpoints that are kept.
type forgetful struct {
	ledger.Ledger
	fails       atomic.Int32
	checkpoints atomic.Int32
}

func (l *forgetful) Get(ctx context.Context, id job.ID) (job.Record, error) {
	if l.fails.Add(-1) >= 0 {
		return job.Record{}, errdefs.ErrUnavailable
	}
	return l.Ledger.Get(ctx, id)
}

func (l *forgetful) SetCheckpoint(ctx context.Context, consumer string, at job.Cursor) error {
	l.checkpoints.Add(1)
	return l.Ledger.SetCheckpoint(ctx, consumer, at)
}

// While the ledger is away nobody is told that a tenant's job is no tenant's.
func TestOwnerWhileTheLedgerIsAway(t *testing.T) {
	p := newPen(t)
	l := &forgetful{Ledger: p.ledger}
	p.config.Ledger = l
	p.start()
	r := job.Request{ID: "wools", Model: job.Model{Name: "m"}, Tenant: "wool", Payload: []byte("in")}
	if err := p.core.Submit(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	p.await("wools", job.Done)
	p.stop() // nothing else looks up records
	p.start()
	l.fails.Store(1)
	if owner, err := p.core.Owner(t.Context(), "wools"); !errdefs.IsUnavailable(err) {
		t.Errorf("the job is %q's, %v; want an error of class unavailable", owner, err)
	}
	l.fails.Store(1)
	r.Payload = nil
	var unknown *job.UnknownJob
	if err := p.core.Submit(t.Context(), r); err == nil || errors.As(err, &unknown) {
		t.Errorf("to run it again: %v; want an error that says that the ledger is away", err)
	}
	l.fails.Store(0)
}

// A daemon that is killed at once after its first start leaves a checkpoint: what
// happens until the next one is up is written to storage, too.
func TestFirstCheckpoint(t *testing.T) {
	p := newPen(t)
	l := &forgetful{Ledger: p.ledger}
	p.config.Ledger = l
	p.start()
	if n := l.checkpoints.Load(); n == 0 {
		t.Error("the first daemon of a node is up and has kept no checkpoint")
	}
}

// A runner that was found before it took messages, and never does, is waited for
// no longer than load_timeout allows.
func TestAdoptedRunnerIsDeaf(t *testing.T) {
	p := newPen(t)
	p.deaf = func(job.Model) bool { return true }
	load := 300 * time.Millisecond
	long, none := time.Hour, 0
	p.config.Limits = shepherd.LimitDefaults{All: job.Limits{LoadTimeout: &long, Retries: &none}}
	p.start()
	p.submit("deaf", "m", "in")
	for sent := false; !sent; { // until the runner has it
		found, err := p.newSheep("sheep").(runtime.Recoverer).Recover(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		sent = found != nil && found.Job == "deaf"
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(context.Background(), hang)
	defer cancel()
	p.core.Leave(ctx)

	p.config.Limits.All.LoadTimeout = &load
	p.start()
	status := p.await("deaf", job.Failed)
	attempts, err := p.ledger.Attempts(t.Context(), "deaf")
	if err != nil || len(attempts) != 1 || attempts[0].Cause != job.CauseLoadTimeout {
		t.Errorf("%+v, %v: %+v", attempts, err, status.Failure)
	}
}
