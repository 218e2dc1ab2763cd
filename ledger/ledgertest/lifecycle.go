package ledgertest

import (
	"errors"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

func (s suite) testCreate(t *testing.T) {
	f := s.open(t, Options{})
	text := "a \"quoted\" 'name'; -- 日本語 😀\n\t%s"
	// What a new record cannot have yet is not taken.
	trace := job.Trace{Parent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", State: "a=1"}
	kept := f.create("x", model(job.Model{Name: text, Version: ""}), sheep(text), priority(-7), func(r *job.Record) {
		r.Trace = trace
		r.State, r.Failure, r.Run, r.Attempt, r.Seq = job.Failed, &job.Failure{Message: "no"}, 9, 9, 999
		r.Holder, r.Node, r.StartedAt, r.FinishedAt = "h", "n", time.Now(), time.Now()
	})
	f.checkTimes(kept, false, false)
	want := job.Record{ID: "x", Model: job.Model{Name: text}, Sheep: text, Priority: -7, Trace: trace, State: job.Queued, Run: 1, Seq: kept.Seq, EnqueuedAt: kept.EnqueuedAt}
	f.checkSame("Create", kept, want)
	f.checkSame("Get", f.get("x"), want)
	if c := f.claim(slot(text), "x"); c.Trace != trace {
		t.Fatalf("claimed with trace %+v", c.Trace)
	}
	if next := f.create("y"); next.Seq <= kept.Seq {
		t.Fatalf("places %d, then %d", kept.Seq, next.Seq)
	}
}

// testTenants submits over others' jobs.
func (s suite) testTenants(t *testing.T) {
	f := s.open(t, Options{})
	if kept := f.create("x", tenant("wool")); kept.Tenant != "wool" || f.get("x").Tenant != "wool" {
		t.Fatalf("kept for tenant %q", kept.Tenant)
	}
	again := func(tenant string, want error) {
		t.Helper()
		before := f.get("x")
		kept, err := f.Create(f.Context(), job.Record{ID: "x", Model: red, Tenant: tenant})
		if !errors.Is(err, want) {
			t.Fatalf("tenant %q: %v, want %v", tenant, err, want)
		}
		if err != nil {
			f.checkSame("after a refusal", f.get("x"), before)
		} else if kept.Tenant != "wool" {
			t.Fatalf("the next run is tenant %q's", kept.Tenant)
		}
	}
	again("meat", ledger.ErrOthers)
	again("wool", ledger.ErrExists)
	again("", ledger.ErrExists)
	f.cancel("x")
	again("meat", ledger.ErrOthers)
	again("wool", nil)
	f.cancel("x")
	again("", nil)
	f.create("nobody's")
	f.cancel("nobody's")
	if _, err := f.Create(f.Context(), job.Record{ID: "nobody's", Model: red, Tenant: "wool"}); !errors.Is(err, ledger.ErrOthers) {
		t.Fatalf("a tenant over nobody's job: %v", err)
	}
}

func (s suite) testCreateAgain(t *testing.T) {
	f := s.open(t, Options{})
	first := f.create("x")
	f.create("y")
	c := f.claim(slot("a"), "x")
	if _, err := f.Finish(f.Context(), "x", c.Token, ledger.Outcome{State: job.Failed, Failure: &job.Failure{Message: "broken"}}); err != nil {
		t.Fatal(err)
	}
	again := f.create("x", model(blue), priority(0))
	f.checkTimes(again, false, false)
	f.checkSame("the next run", again, job.Record{ID: "x", Model: blue, State: job.Queued, Run: 2, Seq: again.Seq, EnqueuedAt: again.EnqueuedAt})
	if again.Seq <= first.Seq {
		t.Fatalf("the next run has place %d, the first had %d", again.Seq, first.Seq)
	}
	if got := f.count(); got[job.Queued] != 2 || got[job.Failed] != 0 {
		t.Fatalf("counts are %v: the record was not replaced", got)
	}
	f.claim(slot("a"), "y") // the next run queues behind
	if c := f.claim(slot("a"), "x"); c.Attempt != 1 || c.Run != 2 {
		t.Fatalf("run %d, attempt %d; want 2 and 1", c.Run, c.Attempt)
	}
	f.cancel("x")
	if third := f.create("x"); third.Run != 3 {
		t.Fatalf("run %d, want 3", third.Run)
	}
}

func (s suite) testClaim(t *testing.T) {
	f := s.open(t, Options{})
	f.claimNothing(slot("a"))
	f.create("x")
	queued := f.get("x")

	ahead := f.claim(ledger.Slot{Node: "n", Sheep: "a", Ahead: true}, "x")
	want := queued
	want.Holder, want.Node, want.Attempt = "a", "n", 1
	f.checkSame("claimed ahead", ahead.Record, want)
	f.checkSame("Get", f.get("x"), want)
	f.claimNothing(slot("b"))

	started := f.start(ahead)
	f.checkTimes(started, true, false)
	want.State, want.StartedAt = job.Processing, started.StartedAt
	f.checkSame("started", started, want)
	f.checkSame("started twice", f.start(ahead), want)
	f.checkSame("Get", f.get("x"), want)
	f.claimNothing(slot("b"))

	f.create("y")
	running := f.claim(ledger.Slot{Node: "n", Sheep: "b"}, "y")
	f.checkTimes(running.Record, true, false)
	if running.State != job.Processing || running.Holder != "b" || running.Node != "n" || running.Attempt != 1 {
		t.Fatalf("claimed to run: %s", show(running.Record))
	}
	f.checkSame("starting a running claim", f.start(running), running.Record)
}

func (s suite) testAttempts(t *testing.T) {
	f := s.open(t, Options{})
	f.create("x")
	for i, step := range []struct {
		unspent bool
		attempt int
	}{{true, 1}, {true, 1}, {false, 1}, {false, 2}, {true, 3}, {false, 3}} {
		c := f.claim(ledger.Slot{Node: "n", Sheep: "a", Ahead: i%2 == 0}, "x")
		if c.Attempt != step.attempt {
			t.Fatalf("claim %d has attempt %d, want %d", i+1, c.Attempt, step.attempt)
		}
		f.release(c, step.unspent)
		back := f.get("x")
		f.checkTimes(back, false, false)
		attempts := step.attempt
		if step.unspent {
			attempts--
		}
		if back.State != job.Queued || back.Holder != "" || back.Node != "" || back.Attempt != attempts {
			t.Fatalf("put back: %s", show(back))
		}
	}
}

func (s suite) testTokens(t *testing.T) {
	f := s.open(t, Options{})
	var last ledger.Token
	for i := range 30 {
		if i%10 == 0 {
			f.reopen()
		}
		if i%10 == 5 {
			f.crash()
		}
		f.create("x")
		c := f.claim(slot("a"), "x")
		if c.Token <= last {
			t.Fatalf("token %d after %d", c.Token, last)
		}
		last = c.Token
		if i%3 == 0 { // also a claim without a trace
			f.release(c, true)
			c = f.claim(slot("a"), "x")
			if c.Token <= last {
				t.Fatalf("token %d after %d", c.Token, last)
			}
			last = c.Token
		}
		f.finish(c)
	}
}

func (s suite) testFinish(t *testing.T) {
	f := s.open(t, Options{})
	for _, outcome := range []ledger.Outcome{
		{State: job.Done},
		{State: job.Cancelled},
		{State: job.Failed, Failure: &job.Failure{Message: "broken", Type: "ValueError", Traceback: "line 1\nline 2 'é'"}},
		{State: job.Failed, Failure: &job.Failure{}},
		{State: job.Done, Usage: job.Usage{GPUMemory: 80 << 30, GPUTime: 90*time.Minute + 7*time.Microsecond}},
	} {
		f.create("x")
		c := f.claim(slot("a"), "x")
		ended, err := f.Finish(f.Context(), "x", c.Token, outcome)
		if err != nil {
			t.Fatal(err)
		}
		f.checkTimes(ended, true, true)
		want := c.Record
		want.State, want.Failure, want.FinishedAt = outcome.State, outcome.Failure, ended.FinishedAt
		want.Holder, want.Node, want.Usage = "", "", outcome.Usage
		f.checkSame("finished", ended, want)
		f.checkSame("Get", f.get("x"), want)
		f.claimNothing(slot("a"))
	}

	f.create("told when")
	c0 := f.claim(slot("a"), "told when")
	at := c0.StartedAt.Add(90 * time.Minute).Add(7 * time.Nanosecond).In(time.FixedZone("east", 3600))
	ended, err := f.Finish(f.Context(), "told when", c0.Token, ledger.Outcome{State: job.Done, At: at})
	if err != nil {
		t.Fatal(err)
	}
	if want := at.UTC().Truncate(time.Microsecond); ended.FinishedAt != want || !f.get("told when").FinishedAt.Equal(want) {
		t.Errorf("FinishedAt is %v, the holder said %v", ended.FinishedAt, want)
	}

	f.create("never started")
	c := f.claim(ledger.Slot{Node: "n", Sheep: "a", Ahead: true}, "never started")
	f.checkTimes(f.finish(c), false, true)

	f.create("y")
	c = f.claim(slot("a"), "y")
	for _, none := range []ledger.Outcome{
		{}, {State: job.Queued}, {State: job.Processing}, {State: job.Failed}, {State: job.Done, Failure: &job.Failure{Message: "?"}},
	} {
		if _, err := f.Finish(f.Context(), "y", c.Token, none); !errdefs.IsInternal(err) {
			t.Errorf("Finish with %+v answered %v, want an error of class internal", none, err)
		}
	}
	f.checkSame("after refusals", f.get("y"), c.Record)
}

func (s suite) testCancel(t *testing.T) {
	f := s.open(t, Options{})
	for _, situation := range []string{"queued", "held", "processing"} {
		f.create(situation)
		switch situation {
		case "held":
			f.claim(ledger.Slot{Node: "n", Sheep: "a", Ahead: true}, situation)
		case "processing":
			f.claim(slot("a"), situation)
		}
		before := f.get(situation)
		ended := f.cancel(situation)
		f.checkTimes(ended, situation == "processing", true)
		want := before
		want.State, want.FinishedAt, want.Holder, want.Node = job.Cancelled, ended.FinishedAt, "", ""
		f.checkSame("cancelled while "+situation, ended, want)
		f.checkSame("Get", f.get(situation), want)
		f.claimNothing(slot("b"))
	}
}

func (s suite) testUnknown(t *testing.T) {
	f := s.open(t, Options{})
	f.create("other")
	ctx := f.Context()
	if _, err := f.Get(ctx, "x"); !errors.Is(err, ledger.ErrNotFound) || !errdefs.IsNotFound(err) {
		t.Errorf("Get: %v", err)
	}
	if _, err := f.Cancel(ctx, "x"); !errors.Is(err, ledger.ErrNotFound) {
		t.Errorf("Cancel: %v", err)
	}
	// A claim on a job without a record is a claim that is not held.
	for _, token := range []ledger.Token{-1, 0, 1} {
		if _, err := f.Start(ctx, "x", token); !errors.Is(err, ledger.ErrFenced) || !errdefs.IsAborted(err) {
			t.Errorf("Start: %v", err)
		}
		if _, err := f.Finish(ctx, "x", token, ledger.Outcome{State: job.Done}); !errors.Is(err, ledger.ErrFenced) {
			t.Errorf("Finish: %v", err)
		}
		if err := f.Release(ctx, "x", token, true); !errors.Is(err, ledger.ErrFenced) {
			t.Errorf("Release: %v", err)
		}
		if err := f.Release(ctx, "other", token, true); !errors.Is(err, ledger.ErrFenced) {
			t.Errorf("Release of an unclaimed job: %v", err)
		}
	}
	f.claimNothing(ledger.Slot{Node: "n", Sheep: "a", Only: "x"})
	if err := f.Ping(ctx); err != nil {
		t.Errorf("Ping: %v", err)
	}
}
