package ledgertest

import (
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// soon is how long the tests have jobs wait for their time. What they have to do
// before is tried again with longer times where the machine is too slow for it.
const soon = 100 * time.Millisecond

// inTime calls try with longer and longer times until it was in time.
func (f *fixture) inTime(try func(d time.Duration) bool) {
	f.Helper()
	for d := soon; d < patience; d *= 3 {
		if try(d) {
			return
		}
	}
	f.Fatalf("the machine is too slow")
}

// claimInTime creates a job that fails soon, and claims it before.
func (f *fixture) claimInTime(id string, s ledger.Slot, set func(r *job.Record, at time.Time)) (c ledger.Claim) {
	f.Helper()
	s.Only = job.ID(id)
	f.inTime(func(d time.Duration) bool {
		f.create(id, func(r *job.Record) { set(r, time.Now().Add(d)) })
		claim, err := f.Claim(f.Context(), s)
		if err != nil {
			f.Fatalf("Claim: %v", err)
		}
		if claim == nil {
			f.await(job.EventEnded, id)
			return false
		}
		c = *claim
		return true
	})
	return c
}

// testNotBefore keeps jobs from being claimed until their time has come.
func (s suite) testNotBefore(t *testing.T) {
	f := s.open(t, Options{})
	later := time.Now().Add(longTime)
	f.create("later", priority(9), func(r *job.Record) { r.NotBefore = later })
	f.create("past", priority(9), func(r *job.Record) { r.NotBefore = time.Now().Add(-time.Hour) })
	f.claim(slot("a"), "past")
	f.claimNothing(slot("a"))
	f.claimNothing(ledger.Slot{Node: "node", Sheep: "a", Only: "later"})
	if event := f.await(job.EventQueued, "later"); !event.Delayed {
		t.Fatalf("event %+v", event)
	}
	if event := f.await(job.EventQueued, "past"); event.Delayed {
		t.Fatalf("event %+v", event)
	}
	var delayed job.Record
	f.inTime(func(d time.Duration) bool {
		delayed = f.create("x", func(r *job.Record) { r.NotBefore = time.Now().Add(d) })
		if f.await(job.EventQueued, "x").Delayed {
			return true
		}
		f.cancel("x")
		return false
	})
	due := f.await(job.EventDue, "x")
	if due.At.Before(delayed.NotBefore) || due.State != job.Queued || due.Delayed {
		t.Fatalf("due at %v, not before %v: %+v", due.At, delayed.NotBefore, due)
	}
	f.checkSame("due", f.get("x"), delayed)
	c := f.claim(slot("a"), "x")

	// An attempt that is to be repeated later.
	f.inTime(func(d time.Duration) bool {
		again := time.Now().Add(d)
		back := f.release(c, ledger.Return{Cause: job.CauseError, Spent: true, NotBefore: again})
		if back.NotBefore.Before(again.Truncate(time.Microsecond)) {
			t.Fatalf("released until %v, want %v", back.NotBefore, again)
		}
		if f.await(job.EventReturned, "x").Delayed {
			return true
		}
		c = f.claim(slot("a"), "x")
		return false
	})
	f.reopen() // timers go on
	f.await(job.EventDue, "x")
	f.finish(f.claim(slot("a"), "x"))
	f.claimNothing(slot("a"))
	if rec := f.get("later"); rec.State != job.Queued {
		t.Fatalf("later: %s", show(rec))
	}
	f.cancel("later")
	if event := f.await(job.EventEnded, "later"); event.Delayed || event.State != job.Cancelled {
		t.Fatalf("event %+v", event)
	}
}

// testWaitUntil fails jobs that nobody started in time.
func (s suite) testWaitUntil(t *testing.T) {
	f := s.open(t, Options{})
	soonUntil := func(r *job.Record) { r.WaitUntil = time.Now().Add(soon) }
	hour := time.Hour
	f.create("overdue", func(r *job.Record) {
		r.Limits.WaitTimeout, r.WaitUntil = &hour, time.Now().Add(-time.Second)
	})
	event := f.await(job.EventEnded, "overdue")
	if event.Cause != job.CauseWaitTimeout || event.State != job.Failed || event.Sheep != "" || event.Status == nil {
		t.Fatalf("event %+v", event)
	}
	rec := f.get("overdue")
	f.checkTimes(rec, false, true)
	if rec.State != job.Failed || !strings.Contains(rec.Failure.Message, "wait_timeout") || !strings.Contains(rec.Failure.Message, "1h0m0s") || *event.Status.Failure != *rec.Failure {
		t.Fatalf("failed: %s", show(rec))
	}
	if _, err := f.Cancel(f.Context(), "overdue"); err == nil {
		t.Fatal("a job that failed was cancelled")
	}

	f.create("delayed", soonUntil, func(r *job.Record) { r.NotBefore = time.Now().Add(longTime) })
	if event := f.await(job.EventEnded, "delayed"); event.Cause != job.CauseWaitTimeout || event.Delayed {
		t.Fatalf("event %+v", event)
	}

	// One that is held is its holder's, and one that was started once can wait for
	// as long as it takes.
	waitUntil := func(r *job.Record, at time.Time) { r.WaitUntil = at }
	held := f.claimInTime("held", ahead("a"), waitUntil)
	started := f.claimInTime("started", slot("a"), waitUntil)
	if started.WaitUntil != (time.Time{}) {
		t.Fatalf("started: %s", show(started.Record))
	}
	f.create("marker", func(r *job.Record) { r.WaitUntil = held.WaitUntil.Add(soon) })
	f.await(job.EventEnded, "marker")
	if rec := f.get("held"); rec.State != job.Queued || rec.Holder == "" {
		t.Fatalf("held: %s", show(rec))
	}
	f.release(started, spent)
	f.release(held, unspent)
	if event := f.await(job.EventEnded, "held"); event.Cause != job.CauseWaitTimeout {
		t.Fatalf("event %+v", event)
	}
	f.finish(f.claim(slot("a"), "started"))
}

// testDeadline fails jobs that nobody holds when their deadline passes.
func (s suite) testDeadline(t *testing.T) {
	f := s.open(t, Options{})
	at := time.Now().Add(soon)
	f.create("queued", func(r *job.Record) { r.Deadline, r.WaitUntil = at, at.Add(time.Hour) })
	deadline := func(r *job.Record, at time.Time) { r.Deadline = at }
	tried := f.claimInTime("tried", slot("a"), deadline)
	f.release(tried, ledger.Return{Cause: job.CauseError, Spent: true, NotBefore: time.Now().Add(longTime)})
	running := f.claimInTime("running", slot("a"), deadline)
	f.create("marker", func(r *job.Record) { r.Deadline = running.Deadline.Add(soon) })
	for range 2 {
		for _, id := range []string{"queued", "marker"} {
			f.at = ""
			f.await(job.EventEnded, id)
		}
		f.at = ""
		event := f.await(job.EventEnded, "tried")
		for event.Run < tried.Run {
			event = f.await(job.EventEnded, "tried")
		}
		rec := f.get("tried")
		if event.Cause != job.CauseDeadline || rec.State != job.Failed || rec.Spent != 1 ||
			!strings.Contains(rec.Failure.Message, "deadline") || !strings.Contains(rec.Failure.Message, rec.Deadline.Format(time.DateOnly)) {
			t.Fatalf("event %+v of %s", event, show(rec))
		}
		f.crash()
	}
	if rec := f.get("running"); rec.State != job.Processing {
		t.Fatalf("running: %s", show(rec))
	}
	f.release(running, spent)
	if event := f.await(job.EventEnded, "running"); event.Cause != job.CauseDeadline {
		t.Fatalf("event %+v", event)
	}
}
