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
	"github.com/iterait/shepherd/messenger"
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
	p := newFixture(t)
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
	p := newFixture(t)
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
	p := newFixture(t)
	p.deaf = func(job.Model) bool { return true }
	load := 300 * time.Millisecond
	long, none := time.Hour, 0
	p.config.Limits = shepherd.LimitDefaults{All: job.Limits{LoadTimeout: &long, Retries: &none}}
	p.start()
	p.submit("deaf", "m", "in")
	p.eventually("the runner has the job", func() bool {
		found, err := p.newSheep("sheep").(runtime.Recoverer).Recover(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return found != nil && found.Job == "deaf"
	})
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

// A sheep that starts its crashed runner again is busy: it claims a job to prepare
// it only, so that another sheep can take it over.
func TestRevivingSheepIsBusy(t *testing.T) {
	p := newFixture(t)
	again, loads := make(chan struct{}), new(atomic.Int32)
	p.load = func(ctx context.Context, _ job.Model) error {
		if loads.Add(1) != 2 {
			return nil
		}
		select {
		case <-again:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	p.start()
	p.submit("first", "m", "in")
	p.await("first", job.Done)
	p.runners.Kill("sheep", runtime.Exit{Code: 1})
	p.eventually("the runner is started again", func() bool { return loads.Load() == 2 })
	p.submit("second", "m", "in")
	p.eventually("the second job is claimed", func() bool {
		held, err := p.ledger.Held(t.Context(), "node")
		if err != nil {
			t.Fatal(err)
		}
		if len(held) == 1 && held[0].State != job.Queued {
			t.Errorf("the job is %s while the sheep's runner is still starting", held[0].State)
		}
		return len(held) == 1
	})
	close(again)
	p.await("second", job.Done)
}

// stuckSheep is a sheep whose Run does not come to attach to its runner.
type stuckSheep struct {
	runtime.Sheep
	runs chan struct{} // receives when Run is called
}

func (s stuckSheep) Recover(ctx context.Context) (*runtime.Recovered, error) {
	return s.Sheep.(runtime.Recoverer).Recover(ctx)
}

func (s stuckSheep) Run(ctx context.Context, observe runtime.Observer) error {
	s.runs <- struct{}{}
	<-ctx.Done()
	return s.Sheep.Run(ctx, observe)
}

// A daemon that is told to stop while it adopts a runner hands the runner's job
// back: it does not fail.
func TestStopDuringAdoption(t *testing.T) {
	p := newFixture(t)
	has := make(chan struct{}, 1)
	p.handle = func(ctx context.Context, _ job.Model, _ messenger.Input) error {
		has <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}
	p.start()
	p.submit("long", "m", "in")
	receive(t, has, "the runner does not get the job")
	ctx, cancel := context.WithTimeout(context.Background(), hang)
	defer cancel()
	p.core.Leave(ctx)

	runs := make(chan struct{}, 1)
	p.wrap = func(s runtime.Sheep) runtime.Sheep { return stuckSheep{s, runs} }
	p.start()
	receive(t, runs, "the runner is not adopted")
	now, over := context.WithCancel(context.Background())
	over()
	p.core.Stop(now)
	rec, err := p.ledger.Get(t.Context(), "long")
	attempts, listErr := p.ledger.Attempts(t.Context(), "long")
	if err != nil || listErr != nil || rec.State != job.Queued || len(attempts) != 1 || attempts[0].Cause != job.CauseHandedBack {
		t.Errorf("%s, %+v: %v, %v", rec.State, attempts, err, listErr)
	}
}
