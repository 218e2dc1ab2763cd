package ledgertest

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

func (s suite) testCreate(t *testing.T) {
	f := s.open(t, Options{})
	text := "a \"quoted\" 'name'; -- 日本語 😀\n\t%s"
	trace := job.Trace{Parent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", State: "a=1"}
	retries, pause, wait := 3, 1500*time.Millisecond, time.Duration(0)
	limits := job.Limits{Retries: &retries, RetryPause: &pause, WaitTimeout: &wait}
	past := time.Now().Add(-time.Hour).In(time.FixedZone("east", 3600))
	// Fields that a new record cannot have are ignored.
	kept := f.create("x", model(job.Model{Name: text, Version: ""}), sheep(text), priority(-7), func(r *job.Record) {
		r.Trace, r.Limits = trace, limits
		r.NotBefore, r.WaitUntil, r.Deadline = past, past.Add(longTime), past.Add(2*longTime)
		r.State, r.Failure, r.Run, r.Attempt, r.Spent, r.Seq = job.Failed, &job.Failure{Message: "no"}, 9, 9, 9, 999
		r.Holder, r.Node, r.Cancelling, r.StartedAt, r.FinishedAt = "h", "n", true, time.Now(), time.Now()
		r.Usage, r.Warnings = job.Usage{GPUMemory: 1}, []string{"no"}
	})
	f.checkTimes(kept, false, false)
	micros := past.UTC().Truncate(time.Microsecond)
	want := job.Record{
		ID: "x", Model: job.Model{Name: text}, Sheep: text, Priority: -7, Trace: trace, Limits: limits,
		NotBefore: micros, WaitUntil: micros.Add(longTime), Deadline: micros.Add(2 * longTime),
		State: job.Queued, Run: 1, Seq: kept.Seq, EnqueuedAt: kept.EnqueuedAt,
	}
	f.checkSame("Create", kept, want)
	f.checkSame("Get", f.get("x"), want)
	if c := f.claim(slot(text), "x"); c.Trace != trace {
		t.Fatalf("claimed with trace %+v", c.Trace)
	}
	if next := f.create("y"); next.Seq <= kept.Seq {
		t.Fatalf("places %d, then %d", kept.Seq, next.Seq)
	}
}

// testTenants creates jobs with the ids of other tenants' jobs.
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
	f.finishAs(c, ledger.Outcome{State: job.Failed, Failure: &job.Failure{Message: "broken"}, Cause: job.CauseError, Warnings: []string{"w"}, Usage: job.Usage{GPUMemory: 5}})
	again := f.create("x", model(blue), priority(0))
	f.checkTimes(again, false, false)
	f.checkSame("the next run", again, job.Record{ID: "x", Model: blue, State: job.Queued, Run: 2, Seq: again.Seq, EnqueuedAt: again.EnqueuedAt})
	if again.Seq <= first.Seq {
		t.Fatalf("the next run has place %d, the first had %d", again.Seq, first.Seq)
	}
	if got := f.count(); got[job.Queued] != 2 || got[job.Failed] != 0 {
		t.Fatalf("counts are %v: the record was not replaced", got)
	}
	f.claim(slot("a"), "y") // the next run is last in the queue
	c2 := f.claim(slot("a"), "x")
	if c2.Attempt != 1 || c2.Spent != 0 || c2.Run != 2 {
		t.Fatalf("run %d, attempt %d, %d spent; want 2, 1 and 0", c2.Run, c2.Attempt, c2.Spent)
	}
	f.cancel("x")
	f.release(c2, unspent)
	if third := f.create("x"); third.Run != 3 {
		t.Fatalf("run %d, want 3", third.Run)
	}
}

func (s suite) testClaim(t *testing.T) {
	f := s.open(t, Options{})
	f.claimNothing(slot("a"))
	f.create("x")
	queued := f.get("x")

	held := f.claim(ahead("a"), "x")
	want := queued
	want.Holder, want.Node, want.Attempt = "a", "node", 1
	f.checkSame("claimed ahead", held.Record, want)
	f.checkSame("Get", f.get("x"), want)
	f.claimNothing(slot("b"))

	started := f.start(held)
	f.checkTimes(started, true, false)
	want.State, want.StartedAt = job.Processing, started.StartedAt
	f.checkSame("started", started, want)
	f.checkSame("started twice", f.start(held), want)
	f.checkSame("Get", f.get("x"), want)
	f.claimNothing(slot("b"))

	f.create("y")
	running := f.claim(slot("b"), "y")
	f.checkTimes(running.Record, true, false)
	if running.State != job.Processing || running.Holder != "b" || running.Node != "node" || running.Attempt != 1 {
		t.Fatalf("claimed to run: %s", show(running.Record))
	}
	f.checkSame("starting a running claim", f.start(running), running.Record)
}

// testSpent counts the attempts and the spent attempts.
func (s suite) testSpent(t *testing.T) {
	f := s.open(t, Options{})
	f.create("x")
	spentSoFar := 0
	for i, why := range []ledger.Return{unspent, spent, unspent, spent, spent} {
		claimed := slot("a")
		claimed.Ahead = i%2 == 0
		c := f.claim(claimed, "x")
		if c.Attempt != i+1 || c.Spent != spentSoFar {
			t.Fatalf("claim %d has attempt %d, %d spent, want %d spent", i+1, c.Attempt, c.Spent, spentSoFar)
		}
		if why.Spent {
			spentSoFar++
		}
		want := c.Record
		want.State, want.StartedAt, want.Holder, want.Node, want.Spent = job.Queued, time.Time{}, "", "", spentSoFar
		back := f.release(c, why)
		f.checkSame("released", back, want)
		f.checkSame("Get", f.get("x"), want)
	}
	c := f.claim(slot("a"), "x")
	if ended := f.finish(c); ended.Attempt != 6 || ended.Spent != spentSoFar+1 {
		t.Fatalf("ended: %s", show(ended))
	}
}

// testAttempts lists the attempts of a run before and after its end.
func (s suite) testAttempts(t *testing.T) {
	f := s.open(t, Options{})
	var want []job.Attempt
	check := func(ended int) {
		t.Helper()
		got := f.attempts("x")
		if len(got) != len(want) {
			t.Fatalf("%d attempts, want %d: %+v", len(got), len(want), got)
		}
		for i, a := range got {
			if a.Began.IsZero() || a.Ended.IsZero() == (i < ended) || !a.Ended.IsZero() && a.Ended.Before(a.Began) ||
				a.Started.IsZero() != want[i].Started.IsZero() || !a.Started.IsZero() && a.Started.Before(a.Began) {
				t.Fatalf("times of %+v", a)
			}
			if i > 0 && a.Began.Before(got[i-1].Ended) {
				t.Fatalf("%+v began before %+v ended", a, got[i-1])
			}
			a.Began, a.Started, a.Ended = time.Time{}, want[i].Started, time.Time{}
			if a != want[i] {
				t.Fatalf("attempt %d:\n got %+v\nwant %+v", i+1, a, want[i])
			}
		}
	}
	check(0) // the job is unknown
	f.create("x")
	check(0)

	started := time.Now() // any
	c := f.claim(ahead("a"), "x")
	want = append(want, job.Attempt{Run: 1, Number: 1, Node: "node", Sheep: "a"})
	check(0)
	f.release(c, ledger.Return{Cause: job.CauseTakenOver, Reason: "b was idle"})
	want[0].Cause, want[0].Reason = job.CauseTakenOver, "b was idle"
	check(1)

	c = f.claim(ledger.Slot{Node: "other", Sheep: "b"}, "x")
	want = append(want, job.Attempt{Run: 1, Number: 2, Node: "other", Sheep: "b", Started: started})
	check(1)
	f.release(c, ledger.Return{Cause: job.CauseRunnerDied, Reason: "exit status 1", Spent: true,
		Usage:  job.Usage{GPUMemory: 7, GPUTime: time.Minute + time.Nanosecond},
		Phases: job.Phases{Stage: time.Second, Load: 2 * time.Second, Run: 3*time.Second + time.Nanosecond, Collect: time.Millisecond},
		Log:    "1:2/1:9"})
	want[1].Cause, want[1].Reason, want[1].Spent = job.CauseRunnerDied, "exit status 1", true
	want[1].Usage = job.Usage{GPUMemory: 7, GPUTime: time.Minute}
	want[1].Log = "1:2/1:9"
	want[1].Phases = job.Phases{Stage: time.Second, Load: 2 * time.Second, Run: 3 * time.Second, Collect: time.Millisecond}
	check(2)

	c = f.claim(ahead("a"), "x")
	want = append(want, job.Attempt{Run: 1, Number: 3, Node: "node", Sheep: "a"})
	check(2)
	f.start(c)
	want[2].Started = started
	check(2)
	f.reopen()
	check(2)
	f.finishAs(c, ledger.Outcome{State: job.Failed, Failure: &job.Failure{}, Cause: job.CauseRunTimeout, Reason: "after 3s", Usage: job.Usage{GPUMemory: 1}, Phases: job.Phases{Run: time.Hour}, Log: "3:4"})
	want[2].Log = "3:4"
	want[2].Cause, want[2].Reason, want[2].Spent = job.CauseRunTimeout, "after 3s", true
	want[2].Usage, want[2].Phases = job.Usage{GPUMemory: 1}, job.Phases{Run: time.Hour}
	check(3)
	f.crash()
	check(3)
}

// testAttemptsOfRuns: the attempts of a bounded number of earlier runs are kept.
func (s suite) testAttemptsOfRuns(t *testing.T) {
	f := s.open(t, Options{})
	const runs = 3
	for run := 1; run <= runs; run++ {
		f.create("x")
		f.release(f.claim(slot("a"), "x"), spent)
		f.finish(f.claim(slot("b"), "x"))
	}
	f.create("x")
	got := f.attempts("x")
	if len(got) != 2*runs {
		t.Fatalf("%d attempts are kept, want %d", len(got), 2*runs)
	}
	for i, a := range got {
		if a.Run != i/2+1 || a.Number != i%2+1 {
			t.Fatalf("attempt %d.%d is in place %d", a.Run, a.Number, i+1)
		}
	}
	const many = 300
	for range many {
		f.release(f.claim(slot("a"), "x"), unspent)
	}
	got = f.attempts("x")
	if last := got[len(got)-1]; len(got) > many/2 || last.Run != runs+1 || last.Number != many {
		t.Fatalf("%d attempts are kept, the last is %d.%d", len(got), last.Run, last.Number)
	}
	f.cancel("x")
	for run := runs + 2; run < 100; run++ {
		f.create("x")
		f.finish(f.claim(slot("a"), "x"))
	}
	got = f.attempts("x")
	if last := got[len(got)-1]; len(got) > 50 || last.Run != 99 || last.Number != 1 {
		t.Fatalf("%d attempts are kept, the last is %d.%d", len(got), last.Run, last.Number)
	}
}

// testLastAttempts reads the newest attempt that ended of each job that has one.
func (s suite) testLastAttempts(t *testing.T) {
	f := s.open(t, Options{})
	var all []job.ID
	want := make(map[job.ID]job.Attempt)
	check := func() {
		t.Helper()
		got, err := f.LastAttempts(f.Context(), append(all, "unknown"))
		if err != nil || !maps.Equal(got, want) {
			t.Fatalf("LastAttempts, %v:\n got %+v\nwant %+v", err, got, want)
		}
	}
	check()
	for _, id := range []string{"waits", "runs", "again", "ended", "other"} {
		f.create(id)
		all = append(all, job.ID(id))
	}
	check()
	f.claim(ledger.Slot{Node: "node", Sheep: "a", Only: "runs"}, "runs")
	for range 11 { // of which the last has two digits
		f.release(f.claim(ledger.Slot{Node: "node", Sheep: "b", Only: "again"}, "again"), unspent)
	}
	f.finish(f.claim(ledger.Slot{Node: "node", Sheep: "a", Only: "ended"}, "ended"))
	f.create("ended")
	f.finish(f.claim(ledger.Slot{Node: "node", Sheep: "c", Only: "ended"}, "ended"))
	f.finish(f.claim(ledger.Slot{Node: "node", Sheep: "d", Only: "other"}, "other"))
	for _, id := range []job.ID{"again", "ended", "other"} {
		attempts := f.attempts(string(id))
		want[id] = attempts[len(attempts)-1]
	}
	if last := want["again"]; last.Sheep != "b" || last.Number != 11 {
		t.Fatalf("the last attempt is %+v", last)
	}
	if last := want["ended"]; last.Sheep != "c" || last.Run != 2 {
		t.Fatalf("the last attempt is %+v", last)
	}
	check()
	f.create("other") // its attempts are kept
	f.reopen()
	check()
	all = slices.DeleteFunc(all, func(id job.ID) bool { return id == "ended" })
	delete(want, "ended")
	check()
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
		if i%3 == 0 { // also claims that were released
			f.release(c, unspent)
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
		{State: job.Done, Cause: job.CauseDone},
		{State: job.Cancelled, Cause: job.CauseCancelled},
		{State: job.Failed, Cause: job.CauseError, Failure: &job.Failure{Message: "broken", Type: "ValueError", Traceback: "line 1\nline 2 'é'"}},
		{State: job.Failed, Cause: job.CauseModel, Failure: &job.Failure{}},
		{State: job.Done, Cause: job.CauseDone, Usage: job.Usage{GPUMemory: 80 << 30, GPUTime: 90*time.Minute + 7*time.Microsecond}},
		{State: job.Done, Cause: job.CauseDone, Warnings: []string{"a \"link\" was left out", "größe"}},
	} {
		f.create("x")
		c := f.claim(slot("a"), "x")
		ended := f.finishAs(c, outcome)
		f.checkTimes(ended, true, true)
		want := c.Record
		want.State, want.Failure, want.FinishedAt = outcome.State, outcome.Failure, ended.FinishedAt
		want.Holder, want.Node, want.Usage, want.Warnings, want.Spent = "", "", outcome.Usage, outcome.Warnings, 1
		f.checkSame("finished", ended, want)
		f.checkSame("Get", f.get("x"), want)
		f.claimNothing(slot("a"))
	}

	f.create("told when")
	c := f.claim(slot("a"), "told when")
	at := c.StartedAt.Add(90 * time.Minute).Add(7 * time.Nanosecond).In(time.FixedZone("east", 3600))
	ended := f.finishAs(c, ledger.Outcome{State: job.Done, Cause: job.CauseDone, At: at})
	if want := at.UTC().Truncate(time.Microsecond); ended.FinishedAt != want || !f.get("told when").FinishedAt.Equal(want) {
		t.Errorf("FinishedAt is %v, the holder said %v", ended.FinishedAt, want)
	}
	f.create("before it began")
	c = f.claim(slot("a"), "before it began")
	ended = f.finishAs(c, ledger.Outcome{State: job.Done, Cause: job.CauseDone, At: c.StartedAt.Add(-time.Hour)})
	if ended.FinishedAt.Before(ended.StartedAt) {
		t.Errorf("finished at %v, started at %v", ended.FinishedAt, ended.StartedAt)
	}

	f.create("never started")
	f.checkTimes(f.finish(f.claim(ahead("a"), "never started")), false, true)

	f.create("y")
	c = f.claim(slot("a"), "y")
	for _, none := range []ledger.Outcome{
		{}, {State: job.Queued, Cause: job.CauseDone}, {State: job.Processing, Cause: job.CauseDone}, {State: job.Failed, Cause: job.CauseError},
		{State: job.Done, Failure: &job.Failure{Message: "?"}, Cause: job.CauseDone}, {State: job.Done},
	} {
		if _, err := f.Finish(f.Context(), "y", c.Token, none); !errdefs.IsInternal(err) {
			t.Errorf("Finish with %+v answered %v, want an error of class internal", none, err)
		}
	}
	if _, err := f.Release(f.Context(), "y", c.Token, ledger.Return{}); !errdefs.IsInternal(err) {
		t.Errorf("Release without a cause answered %v, want an error of class internal", err)
	}
	f.checkSame("after refusals", f.get("y"), c.Record)
}

// testClip: long texts are clipped, and lists have no tracebacks.
func (s suite) testClip(t *testing.T) {
	f := s.open(t, Options{})
	long := &job.Failure{Message: strings.Repeat("é", job.MaxMessage), Type: strings.Repeat("T", 2*job.MaxType), Traceback: strings.Repeat("x", 4<<20)}
	given := *long
	f.create("x")
	c := f.claim(slot("a"), "x")
	ended := f.finishAs(c, ledger.Outcome{State: job.Failed, Failure: long, Cause: job.CauseError, Reason: strings.Repeat("r", 1<<20), Warnings: slices.Repeat([]string{strings.Repeat("w", 1<<20)}, 100)})
	want := long.Clip()
	if *ended.Failure != *want || *f.get("x").Failure != *want {
		t.Fatalf("%d, %d and %d bytes are kept", len(ended.Failure.Message), len(ended.Failure.Type), len(ended.Failure.Traceback))
	}
	if *long != given {
		t.Fatal("the caller's failure was changed")
	}
	size := 0
	for _, w := range f.get("x").Warnings {
		size += len(w)
	}
	if size == 0 || size > 1<<17 {
		t.Fatalf("%d bytes of warnings are kept", size)
	}
	if a := f.attempts("x"); len(a[0].Reason) != job.MaxReason {
		t.Fatalf("%d bytes of the reason are kept", len(a[0].Reason))
	}
	events := f.read()
	if last := events[len(events)-1]; *last.Status.Failure != *want || len(last.Reason) != job.MaxReason {
		t.Fatalf("the event is %+v", last)
	}
	listed := f.list(ledger.Filter{States: []job.State{job.Failed}}, 10)
	if got := *listed[0].Failure; got.Traceback != "" || got.Message != want.Message || got.Type != want.Type {
		t.Fatalf("listed with a traceback of %d bytes", len(got.Traceback))
	}
}

// testCancel cancels jobs that nobody holds.
func (s suite) testCancel(t *testing.T) {
	f := s.open(t, Options{})
	for situation, prepare := range map[string]func(){
		"queued":   func() { f.create("queued") },
		"delayed":  func() { f.create("delayed", func(r *job.Record) { r.NotBefore = time.Now().Add(longTime) }) },
		"released": func() { f.create("released"); f.release(f.claim(slot("a"), "released"), spent) },
	} {
		prepare()
		before := f.get(situation)
		ended := f.cancel(situation)
		f.checkTimes(ended, false, true)
		want := before
		want.State, want.FinishedAt = job.Cancelled, ended.FinishedAt
		f.checkSame("cancelled while "+situation, ended, want)
		f.checkSame("Get", f.get(situation), want)
		f.claimNothing(slot("b"))
	}
}

// testCancelHeld cancels held jobs: no other slot gets the job, and no new run begins,
// before the holder has ended it.
func (s suite) testCancelHeld(t *testing.T) {
	f := s.open(t, Options{})
	for _, c := range []struct {
		name  string
		slot  ledger.Slot
		start bool
		end   func(c ledger.Claim) job.Record
		after job.State
		cause job.Cause
		spent int
	}{
		{"held, released", ahead("a"), false, func(c ledger.Claim) job.Record { return f.release(c, unspent) }, job.Cancelled, job.CauseCancelled, 0},
		{"held, started, finished", ahead("a"), true, func(c ledger.Claim) job.Record { return f.finish(c) }, job.Cancelled, job.CauseCancelled, 1},
		{"processing, released", slot("a"), true, func(c ledger.Claim) job.Record { return f.release(c, spent) }, job.Cancelled, job.CauseCancelled, 1},
		{"processing, cancelled", slot("a"), false, func(c ledger.Claim) job.Record {
			return f.finishAs(c, ledger.Outcome{State: job.Cancelled, Cause: job.CauseCancelled})
		}, job.Cancelled, job.CauseCancelled, 1},
		{"processing, failed", slot("a"), false, func(c ledger.Claim) job.Record { return f.finishAs(c, failed) }, job.Cancelled, job.CauseCancelled, 1},
	} {
		f.create(c.name)
		claim := f.claim(c.slot, c.name)
		f.now()
		asked := f.cancel(c.name)
		want := claim.Record
		want.Cancelling = true
		f.checkSame("asked", asked, want)
		f.checkSame("Get", f.get(c.name), want)
		f.checkSame("asked again", f.cancel(c.name), want)
		if _, err := f.Create(f.Context(), job.Record{ID: job.ID(c.name), Model: red}); !errors.Is(err, ledger.ErrExists) {
			t.Fatalf("a new run of a job that is still held: %v", err)
		}
		f.claimNothing(slot("b"))
		f.crash()
		f.checkSame("after a crash", f.get(c.name), want)
		if c.start {
			if rec := f.start(claim); !rec.Cancelling || rec.State != job.Processing {
				t.Fatalf("started: %s", show(rec))
			}
		}
		ended := c.end(claim)
		if ended.State != c.after || ended.Holder != "" || ended.Cancelling || ended.Spent != c.spent || ended.FinishedAt.IsZero() {
			t.Fatalf("%s: %s", c.name, show(ended))
		}
		f.checkSame("Get", f.get(c.name), ended)
		if a := f.attempts(c.name); len(a) != 1 || a[0].Cause != c.cause || a[0].Spent != (c.spent == 1) {
			t.Fatalf("%s: attempts %+v", c.name, a)
		}
		kinds := ""
		for _, e := range f.read() {
			kinds += string(e.Kind) + " "
		}
		if c.start && c.slot.Ahead {
			if kinds != "cancel started ended " {
				t.Fatalf("%s: events %s", c.name, kinds)
			}
		} else if kinds != "cancel ended " {
			t.Fatalf("%s: events %s", c.name, kinds)
		}
	}
}

// testRepeated makes each change twice, as a caller does that got no answer to the first:
// the second is answered as if it were made now, or as too late, and changes nothing.
func (s suite) testRepeated(t *testing.T) {
	f := s.open(t, Options{})
	ctx := f.Context()
	repeat := func(what string, call func() error, others ...error) {
		t.Helper()
		if err := call(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		before, attempts := f.get("x"), f.attempts("x")
		f.now()
		err := call()
		if err != nil && !slices.ContainsFunc(others, func(other error) bool { return errors.Is(err, other) }) {
			t.Fatalf("%s again: %v", what, err)
		}
		f.checkSame(what+" again", f.get("x"), before)
		if got := f.attempts("x"); !slices.Equal(got, attempts) {
			t.Fatalf("%s again made attempts %+v of %+v", what, got, attempts)
		}
		if events := f.read(); len(events) > 0 {
			t.Fatalf("%s again recorded %+v", what, events)
		}
	}
	f.create("x")
	c := f.claim(ahead("a"), "x")
	repeat("Start", func() error { _, err := f.Start(ctx, "x", c.Token); return err })
	repeat("Release", func() error { _, err := f.Release(ctx, "x", c.Token, spent); return err }, ledger.ErrFenced)
	c = f.claim(slot("a"), "x")
	repeat("Cancel of a held job", func() error { _, err := f.Cancel(ctx, "x"); return err })
	repeat("Finish", func() error { _, err := f.Finish(ctx, "x", c.Token, done); return err }, ledger.ErrFenced)
	f.create("x")
	repeat("Cancel", func() error { _, err := f.Cancel(ctx, "x"); return err }, ledger.ErrFinal)
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
		if _, err := f.Finish(ctx, "x", token, done); !errors.Is(err, ledger.ErrFenced) {
			t.Errorf("Finish: %v", err)
		}
		if _, err := f.Release(ctx, "x", token, unspent); !errors.Is(err, ledger.ErrFenced) {
			t.Errorf("Release: %v", err)
		}
		if _, err := f.Release(ctx, "other", token, unspent); !errors.Is(err, ledger.ErrFenced) {
			t.Errorf("Release of an unclaimed job: %v", err)
		}
	}
	f.claimNothing(ledger.Slot{Node: "node", Sheep: "a", Only: "x"})
	if err := f.Ping(ctx); err != nil {
		t.Errorf("Ping: %v", err)
	}
}
