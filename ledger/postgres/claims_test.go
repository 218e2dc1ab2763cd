package postgres

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/lifecycle"
)

// TestUnread counts the statements of a job: one for each change, and more to read the
// record where another node has changed it, or the submission is of an id that has one.
func TestUnread(t *testing.T) {
	url := newDatabase(t)
	l, other := openQuiet(t, quiet(url, "")), openQuiet(t, quiet(url, ""))
	for _, each := range []*Ledger{l, other} {
		each.bell.notify = func(context.Context) error { return nil }
	}
	if _, _, err := l.load(t.Context(), "none"); err != nil { // the moment
		t.Fatal(err)
	}
	l.clock.keep = time.Hour
	var claim *ledger.Claim
	statements := func(what string, want int64, do func() error) {
		t.Helper()
		before := l.statements.Load()
		if err := do(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if n := l.statements.Load() - before; n != want {
			t.Errorf("%s took %d statements, want %d", what, n, want)
		}
	}
	create := func() error {
		_, err := l.Create(t.Context(), job.Record{ID: "job", Model: red})
		return err
	}
	claimed := func(ahead bool) func() error {
		return func() (err error) {
			claim, err = l.Claim(t.Context(), ledger.Slot{Node: "node", Sheep: "a", Ahead: ahead})
			if err == nil && claim == nil {
				err = errors.New("no claim was made")
			}
			return err
		}
	}
	start := func() error {
		_, err := l.Start(t.Context(), "job", claim.Token)
		return err
	}
	release := func() error {
		_, err := l.Release(t.Context(), "job", claim.Token, unspent)
		return err
	}
	finish := func(want job.State) func() error {
		return func() error {
			rec, err := l.Finish(t.Context(), "job", claim.Token, done)
			if err == nil && rec.State != want {
				t.Errorf("the job is %s, want %s", rec.State, want)
			}
			return err
		}
	}
	statements("the submission", 1, create)
	statements("a claim ahead", 1, claimed(true))
	statements("its start", 1, start)
	statements("its release", 1, release)
	statements("another claim", 1, claimed(false))
	statements("its end", 1, finish(job.Done))

	statements("another run", 4, create) // the try, the record, whether it is needed, and the change
	statements("its claim", 1, claimed(false))
	if _, err := other.Cancel(t.Context(), "job"); err != nil {
		t.Fatal(err)
	}
	statements("the end of a job that was cancelled elsewhere", 3, finish(job.Cancelled))
	if len(l.claims.rows) != 0 {
		t.Errorf("%d rows of jobs that have ended are kept", len(l.claims.rows))
	}
}

// TestLostClaims has a ledger forget its claims with its lease: others have them then.
func TestLostClaims(t *testing.T) {
	l := openQuiet(t, quiet(newDatabase(t), ""))
	lease, err := l.Join(t.Context(), "node")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Create(t.Context(), job.Record{ID: "job", Model: red}); err != nil {
		t.Fatal(err)
	}
	if c, err := l.Claim(t.Context(), slot("a")); err != nil || c == nil {
		t.Fatalf("Claim = %v, %v", c, err)
	}
	if len(l.claims.rows) != 1 {
		t.Errorf("%d rows are kept, want that of the claim", len(l.claims.rows))
	}
	if err := lease.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(l.claims.rows) != 0 {
		t.Errorf("%d rows are kept without a lease", len(l.claims.rows))
	}
}

func TestClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clock{keep: momentKept}
		if m, ok := c.moment(); ok {
			t.Errorf("the moment is %v before one was read", m)
		}
		now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
		c.set(lifecycle.Moment{Now: now, Age: 100})
		time.Sleep(momentKept)
		want := lifecycle.Moment{Now: now.Add(momentKept), Age: 100 + momentKept.Microseconds()}
		if m, ok := c.moment(); !ok || m != want {
			t.Errorf("the moment is %v, %v, want %v", m, ok, want)
		}
		time.Sleep(time.Nanosecond)
		if m, ok := c.moment(); ok {
			t.Errorf("the moment is %v long after it was read", m)
		}
	})
}
