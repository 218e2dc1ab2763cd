package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/postgres/postgrestest"
)

var (
	red     = job.Model{Name: "red", Version: "1"}
	done    = ledger.Outcome{State: job.Done, Cause: job.CauseDone}
	unspent = ledger.Return{Cause: job.CauseHandedBack}
)

func slot(sheep string) ledger.Slot { return ledger.Slot{Node: "node", Sheep: sheep} }

// quiet is a Config whose ledger sends few statements that no caller asked for: the first ones
// after it was opened.
func quiet(url, direct string) Config {
	return Config{URL: url, DirectURL: direct, Lease: longLease, Poll: time.Hour, Retention: func(job.Record) time.Duration { return time.Hour }}
}

// openQuiet opens a ledger that sends no statement that no caller asked for, as its
// maintenance and its pulse are stopped. Otherwise their first run would meet what the test
// does next, sooner or later.
func openQuiet(t testing.TB, cfg Config) *Ledger {
	t.Helper()
	l := mustOpen(t, cfg)
	l.maintenance.stop()
	return l
}

// TestFaults cuts the connection at every statement of every change, in every way.
// The change is made all the same, and made once: it has the events that it has
// without a fault, and what the server gets too late changes nothing.
func TestFaults(t *testing.T) {
	type world struct {
		*Ledger
		ctx   context.Context
		job   job.ID
		claim *ledger.Claim
	}
	create := func(w *world) error {
		_, err := w.Create(w.ctx, job.Record{ID: w.job, Model: red})
		return err
	}
	claim := func(w *world) (err error) {
		if w.claim, err = w.Claim(w.ctx, slot("a")); err == nil && w.claim == nil {
			err = errors.New("no claim was made")
		}
		return err
	}
	finish := func(w *world) error {
		_, err := w.Finish(w.ctx, w.job, w.claim.Token, done)
		return err
	}
	steps := func(steps ...func(w *world) error) []func(w *world) error { return steps }
	for name, c := range map[string]struct {
		before []func(w *world) error
		change func(w *world) error
		events string
		state  job.State
	}{
		"create": {nil, create, "queued", job.Queued},
		"create several": {nil, func(w *world) error {
			_, err := w.CreateAll(w.ctx, []job.Record{{ID: w.job + "-first", Model: red}, {ID: w.job, Model: red, After: []job.ID{w.job + "-first"}}})
			return err
		}, "queued queued", job.Queued},
		"create again": {steps(create, claim, finish), create, "queued started ended queued", job.Queued},
		"claim":        {steps(create), claim, "queued started", job.Processing},
		"start": {steps(create, func(w *world) (err error) {
			w.claim, err = w.Claim(w.ctx, ledger.Slot{Node: "node", Sheep: "a", Ahead: true})
			return err
		}), func(w *world) error {
			_, err := w.Start(w.ctx, w.job, w.claim.Token)
			return err
		}, "queued claimed started", job.Processing},
		"finish": {steps(create, claim), finish, "queued started ended", job.Done},
		"release": {steps(create, claim), func(w *world) error {
			_, err := w.Release(w.ctx, w.job, w.claim.Token, unspent)
			return err
		}, "queued started returned", job.Queued},
		"cancel": {steps(create), func(w *world) error {
			_, err := w.Cancel(w.ctx, w.job)
			return err
		}, "queued ended", job.Cancelled},
		"cancel held": {steps(create, claim), func(w *world) error {
			_, err := w.Cancel(w.ctx, w.job)
			return err
		}, "queued started cancel", job.Processing},
		"keep": {steps(create, claim, finish), func(w *world) error {
			return w.Keep(w.ctx, []ledger.Kept{{Job: w.job, Run: 1, For: time.Minute}})
		}, "queued started ended", job.Done},
		"begin removal": {steps(create, claim, finish), func(w *world) error {
			rec, err := w.BeginRemoval(w.ctx, w.job, 1, false)
			if err == nil && !rec.Removing {
				err = errors.New("no removal has begun")
			}
			return err
		}, "queued started ended", job.Done},
		"end removal": {steps(create, claim, finish, func(w *world) error {
			_, err := w.BeginRemoval(w.ctx, w.job, 1, false)
			return err
		}), func(w *world) error { return w.EndRemoval(w.ctx, w.job) }, "queued started ended", job.Done},
		"join": {steps(create), func(w *world) error {
			lease, err := w.Join(w.ctx, "node")
			if err != nil {
				return err
			}
			_, err = w.Claim(w.ctx, ledger.Slot{Node: "node", Sheep: "a", Only: "none"}) // with the lease's generation
			return errors.Join(err, lease.Release(w.ctx))
		}, "queued", job.Queued},
		"restore": {nil, func(w *world) error {
			return w.Restore(w.ctx, []ledger.Saved{{Record: job.Record{ID: w.job, Model: red, State: job.Processing, Run: 1, EnqueuedAt: job.Now()},
				Attempts: []job.Attempt{{Run: 1, Number: 1, Began: job.Now()}}}})
		}, "returned", job.Queued},
		"checkpoint": {steps(create), func(w *world) error { return w.SetCheckpoint(w.ctx, "a", "1") }, "queued", job.Queued},
	} {
		t.Run(name, func(t *testing.T) {
			url := newDatabase(t)
			p := newProxy(t, url)
			l := openQuiet(t, quiet(p.url, url))
			l.prepares = true // as without a proxy
			l.bell.notify = func(context.Context) error { return nil }
			runs := 0
			run := func(n int, f fault) (came bool) {
				runs++
				w := &world{Ledger: l, ctx: t.Context(), job: job.ID(fmt.Sprint("job", runs))}
				start, err := l.Now(w.ctx)
				if err != nil {
					t.Fatal(err)
				}
				for _, step := range c.before {
					if err := step(w); err != nil {
						t.Fatal(err)
					}
				}
				p.arm(n, f)
				err = c.change(w)
				came = p.disarm()
				p.deliver()
				if err != nil {
					t.Fatalf("statement %d %s: %v", n, f, err)
				}
				rec, err := l.Get(w.ctx, w.job)
				if err != nil || rec.State != c.state {
					t.Fatalf("statement %d %s: the job is %q, %v, want %q", n, f, rec.State, err, c.state)
				}
				events, _, err := l.Events(w.ctx, start, ledger.EventFilter{}, 100)
				if err != nil {
					t.Fatal(err)
				}
				var kinds []string
				for _, e := range events {
					kinds = append(kinds, string(e.Kind))
				}
				if got := strings.Join(kinds, " "); got != c.events {
					t.Fatalf("statement %d %s: events %q, want %q", n, f, got, c.events)
				}
				held, err := l.Held(w.ctx, "node")
				if err != nil || len(held) != map[bool]int{true: 1}[w.claim != nil && rec.Holder != ""] {
					t.Fatalf("statement %d %s: %d jobs are held, %v", n, f, len(held), err)
				}
				for _, h := range held {
					if h.Token != w.claim.Token {
						t.Fatalf("statement %d %s: the job is held with token %d, the claim has %d", n, f, h.Token, w.claim.Token)
					}
				}
				if _, err := l.Cancel(w.ctx, w.job); err != nil && !errors.Is(err, ledger.ErrFinal) { // not to be claimed next
					t.Fatal(err)
				}
				for _, h := range held {
					if _, err := l.Finish(w.ctx, h.ID, h.Token, done); err != nil {
						t.Fatal(err)
					}
				}
				return came
			}
			for _, f := range []fault{neverSent, answerLost, sentLate} {
				n := 1
				for run(n, f) {
					n++
				}
				if n < 2 {
					t.Errorf("no statement was %s", f)
				}
			}
			if !run(1, cutAnswer) { // to the ledger it is an answer that was lost
				t.Error("no answer was cut")
			}
		})
	}
}

// TestRemovedBeforeRetry loses the answer to the creation of several jobs, one of which is
// removed before the next try: that finds that the jobs were made, and makes none again.
func TestRemovedBeforeRetry(t *testing.T) {
	url := newDatabase(t)
	p := newProxy(t, url)
	l := openQuiet(t, quiet(p.url, url))
	l.bell.notify = func(context.Context) error { return nil }
	for _, removed := range []int{0, 1} {
		t.Run(fmt.Sprint("job ", removed), func(t *testing.T) {
			c := creation{key: newKey()}
			for i := range 2 {
				c.recs = append(c.recs, job.Record{ID: job.ID(fmt.Sprintf("removed%d-%d", removed, i)), Model: red})
			}
			lost := false
			for n := 1; !lost; n++ { // the last statement is the commit
				p.arm(n, answerLost)
				made, err := l.createAll(t.Context(), &c)
				if !p.disarm() {
					t.Fatalf("no answer was lost: %v, %v", made, err)
				}
				if err == nil {
					t.Fatal("a lost answer is no error")
				}
				_, err = l.Get(t.Context(), c.recs[0].ID)
				lost = err == nil
			}
			gone := c.recs[removed].ID
			if _, err := l.Cancel(t.Context(), gone); err != nil {
				t.Fatal(err)
			}
			if _, err := l.BeginRemoval(t.Context(), gone, 1, true); err != nil {
				t.Fatal(err)
			}
			if err := l.EndRemoval(t.Context(), gone); err != nil {
				t.Fatal(err)
			}
			made, err := l.createAll(t.Context(), &c)
			if err != nil {
				t.Fatal(err)
			}
			for i, rec := range c.recs {
				if made[i].ID != rec.ID || made[i].State != job.Queued || made[i].Run != 1 {
					t.Errorf("job %d was made as %+v", i, made[i])
				}
			}
			if _, err := l.Get(t.Context(), gone); !errors.Is(err, ledger.ErrNotFound) {
				t.Errorf("the removed job is there again: %v", err)
			}
		})
	}
}

// TestAway has no server answer: each call says so, in bounded time, and what it
// says has the class and the next step, but no password.
func TestAway(t *testing.T) {
	url := newDatabase(t)
	p := newProxy(t, url)
	cfg := quiet(strings.Replace(p.url, "postgres@", "postgres:secret@", 1), url)
	cfg.RetryFor = 50 * time.Millisecond
	l := openQuiet(t, cfg)
	p.listener.Close()
	p.cutAll()
	for name, err := range calls(t.Context(), l) {
		if !errdefs.IsUnavailable(err) {
			t.Errorf("%s answered %v, want an error of class unavailable", name, err)
		} else if !strings.Contains(err.Error(), "127.0.0.1") || !strings.Contains(err.Error(), "check that it runs") || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s answered %v", name, err)
		}
	}
	_, err := Open(t.Context(), Config{URL: cfg.URL, RetryFor: time.Millisecond})
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "127.0.0.1") || strings.Contains(err.Error(), "secret") {
		t.Errorf("Open answered %v", err)
	}
}

func calls(ctx context.Context, l *Ledger) map[string]error {
	answers := map[string]error{}
	_, answers["Create"] = l.Create(ctx, job.Record{ID: "y", Model: red})
	_, answers["Claim"] = l.Claim(ctx, slot("a"))
	_, answers["Start"] = l.Start(ctx, "x", 1)
	_, answers["Finish"] = l.Finish(ctx, "x", 1, done)
	_, answers["Release"] = l.Release(ctx, "x", 1, unspent)
	_, answers["Cancel"] = l.Cancel(ctx, "x")
	_, answers["Get"] = l.Get(ctx, "x")
	_, answers["Held"] = l.Held(ctx, "node")
	_, _, answers["List"] = l.List(ctx, ledger.Filter{}, 0, 10)
	_, answers["Count"] = l.Count(ctx)
	_, answers["Join"] = l.Join(ctx, "node")
	_, answers["Peers"] = l.Peers(ctx, "node")
	_, answers["Attempts"] = l.Attempts(ctx, "x")
	_, answers["LastAttempts"] = l.LastAttempts(ctx, []job.ID{"x"})
	_, answers["Waiting"] = l.Waiting(ctx, 10)
	_, _, answers["Events"] = l.Events(ctx, "", ledger.EventFilter{}, 10)
	_, _, answers["NewestEvents"] = l.NewestEvents(ctx, ledger.EventFilter{}, 10)
	_, answers["Now"] = l.Now(ctx)
	_, answers["Checkpoint"] = l.Checkpoint(ctx, "consumer")
	answers["SetCheckpoint"] = l.SetCheckpoint(ctx, "consumer", "")
	answers["Ping"] = l.Ping(ctx)
	answers["Keep"] = l.Keep(ctx, []ledger.Kept{{Job: "x", Run: 1}})
	_, _, answers["Due"] = l.Due(ctx, 1)
	_, answers["BeginRemoval"] = l.BeginRemoval(ctx, "x", 0, false)
	answers["EndRemoval"] = l.EndRemoval(ctx, "x")
	answers["Restore"] = l.Restore(ctx, []ledger.Saved{{Record: job.Record{ID: "z"}}})
	return answers
}

// TestUnknownClaims has the database go away while claims are made, for longer than
// they are tried: those that were made come back by themselves.
func TestUnknownClaims(t *testing.T) {
	url := newDatabase(t)
	p := newProxy(t, url)
	cfg := quiet(p.url, url)
	cfg.RetryFor, cfg.Poll = time.Nanosecond, 20*time.Millisecond
	l := mustOpen(t, cfg)
	for i := range 3 {
		if _, err := l.Create(t.Context(), job.Record{ID: job.ID(fmt.Sprint("job", i)), Model: red}); err != nil {
			t.Fatal(err)
		}
	}
	for failed := false; !failed; { // other statements may meet the fault first
		p.arm(1, answerLost)
		claim, err := l.Claim(t.Context(), slot("a"))
		p.disarm()
		if failed = err != nil; !failed && claim == nil {
			t.Fatal("all jobs are claimed")
		}
		if claim != nil {
			if _, err := l.Release(t.Context(), claim.ID, claim.Token, unspent); err != nil {
				t.Fatal(err)
			}
		}
	}
	hung := time.After(hang)
	for {
		changed := l.Changed()
		held, err := l.Held(t.Context(), "node")
		if err != nil && !errdefs.IsUnavailable(err) {
			t.Fatal(err)
		}
		if err == nil && len(held) == 0 {
			return
		}
		select {
		case <-changed:
		case <-time.After(100 * time.Millisecond):
		case <-hung:
			t.Fatal("the claim stays with nobody")
		}
	}
}

// TestRestart kills the server and starts it again while jobs are worked off. No
// change that was answered is lost, and each job ends once.
func TestRestart(t *testing.T) {
	own, err := postgrestest.Start("fsync=on", "synchronous_commit=on", "full_page_writes=on")
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	l := mustOpen(t, Config{URL: own.URL("postgres"), Lease: longLease, RetryFor: time.Minute})
	ctx := t.Context()
	const jobs, workers = 120, 4
	start, err := l.Now(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			for i := range jobs / workers {
				if _, err := l.Create(ctx, job.Record{ID: job.ID(fmt.Sprintf("job-%d-%d", w, i)), Model: red}); err != nil {
					t.Error(err)
				}
				c, err := l.Claim(ctx, slot(fmt.Sprint("sheep", w)))
				if err != nil || c == nil {
					t.Errorf("Claim = %v, %v", c, err)
					continue
				}
				if _, err := l.Finish(ctx, c.ID, c.Token, done); err != nil {
					t.Error(err)
				}
			}
		})
	}
	finished := make(chan struct{})
	go func() { group.Wait(); close(finished) }()
	for restarts := 0; restarts < 2; restarts++ {
		select {
		case <-finished:
		case <-l.Changed(): // in the middle of it
		}
		if restarts%2 == 0 {
			own.Kill()
		} else {
			own.Stop()
		}
		if err := own.Restart(); err != nil {
			t.Fatal(err)
		}
	}
	<-finished
	counts, err := l.Count(ctx)
	if err != nil || counts[job.Done] != jobs || counts[job.Queued]+counts[job.Processing] != 0 {
		t.Fatalf("counts are %v, %v", counts, err)
	}
	ended := map[job.ID]int{}
	for at, n := start, 0; n < 3*jobs; {
		changed := l.Changed()
		events, next, err := l.Events(ctx, at, ledger.EventFilter{}, 50)
		if err != nil {
			t.Fatal(err)
		}
		at = next
		n += len(events)
		for _, e := range events {
			if e.Kind == job.EventEnded {
				ended[e.Job]++
			}
		}
		if len(events) == 0 { // behind a number that a transaction had which was undone
			await(t, changed, fmt.Sprintf("%d of %d events came", n, 3*jobs))
		}
	}
	for id, n := range ended {
		if n != 1 {
			t.Errorf("%s ended %d times", id, n)
		}
	}
	if len(ended) != jobs {
		t.Errorf("%d of %d jobs ended", len(ended), jobs)
	}
}
