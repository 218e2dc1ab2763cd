package ledgertest

import (
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// soon is how long the tests have jobs wait for their time.
const soon = 100 * time.Millisecond

// testNotBefore keeps jobs from being claimed until their time has come.
func (s suite) testNotBefore(t *testing.T) {
	f := s.open(t, Options{})
	later := time.Now().Add(longTime)
	at := time.Now().Add(soon)
	f.create("later", priority(9), func(r *job.Record) { r.NotBefore = later })
	delayed := f.create("x", func(r *job.Record) { r.NotBefore = at })
	f.create("past", priority(9), func(r *job.Record) { r.NotBefore = time.Now().Add(-time.Hour) })
	f.claim(slot("a"), "past")
	f.claimNothing(ledger.Slot{Node: "node", Sheep: "a", Only: "later"})

	for _, want := range []struct {
		kind    job.EventKind
		id      string
		delayed bool
	}{{job.EventQueued, "later", true}, {job.EventQueued, "x", true}, {job.EventQueued, "past", false}} {
		if event := f.await(want.kind, want.id); event.Delayed != want.delayed {
			t.Fatalf("event %+v", event)
		}
	}
	due := f.await(job.EventDue, "x")
	if due.At.Before(delayed.NotBefore) || due.State != job.Queued || due.Delayed {
		t.Fatalf("due at %v, not before %v: %+v", due.At, delayed.NotBefore, due)
	}
	f.checkSame("due", f.get("x"), delayed)
	c := f.claim(slot("a"), "x")

	// An attempt that is to be repeated later.
	again := time.Now().Add(soon)
	back := f.release(c, ledger.Return{Cause: job.CauseError, Spent: true, NotBefore: again})
	if back.NotBefore.Before(again.Truncate(time.Microsecond)) {
		t.Fatalf("released until %v, want %v", back.NotBefore, again)
	}
	if event := f.await(job.EventReturned, "x"); !event.Delayed {
		t.Fatalf("event %+v", event)
	}
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
	f.create("held", soonUntil)
	held := f.claim(ahead("a"), "held")
	f.create("started", soonUntil)
	started := f.claim(slot("a"), "started")
	if started.WaitUntil != (time.Time{}) {
		t.Fatalf("started: %s", show(started.Record))
	}
	f.create("marker", soonUntil)
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
	f.create("tried", priority(1), func(r *job.Record) { r.Deadline = at })
	f.release(f.claim(slot("a"), "tried"), ledger.Return{Cause: job.CauseError, Spent: true, NotBefore: time.Now().Add(longTime)})
	f.create("running", priority(2), func(r *job.Record) { r.Deadline = at })
	running := f.claim(slot("a"), "running")
	for range 2 {
		f.at = ""
		f.await(job.EventEnded, "queued")
		f.at = ""
		event := f.await(job.EventEnded, "tried")
		rec := f.get("tried")
		if event.Cause != job.CauseDeadline || rec.State != job.Failed || rec.Spent != 1 ||
			!strings.Contains(rec.Failure.Message, "deadline") || !strings.Contains(rec.Failure.Message, at.UTC().Format(time.DateOnly)) {
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
