package sqlite

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// wall is a clock that can be set.
type wall struct{ ahead atomic.Int64 }

func (w *wall) now() time.Time          { return time.Now().Add(time.Duration(w.ahead.Load())) }
func (w *wall) set(ahead time.Duration) { w.ahead.Store(int64(ahead)) }

// endJobs creates and cancels jobs.
func endJobs(t *testing.T, l *Ledger, ids ...string) {
	t.Helper()
	for _, id := range ids {
		if _, err := l.Create(t.Context(), job.Record{ID: job.ID(id), Model: job.Model{Name: "m"}}); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Cancel(t.Context(), job.ID(id)); err != nil {
			t.Fatal(err)
		}
	}
}

// kept returns how many ended records and how many events there are.
func kept(t *testing.T, l *Ledger) (records, events int) {
	t.Helper()
	counts, err := l.Count(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all, _, err := l.storedEvents(t.Context(), 0, 1<<60, ledger.EventFilter{}, 10000)
	if err != nil {
		t.Fatal(err)
	}
	return counts[job.Cancelled], len(all)
}

// TestClockJumps sets the clock forward and back, while the ledger is open and closed: the
// history ages by the time that passed, and by a day at most while the ledger is closed.
func TestClockJumps(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	synctest.Test(t, func(t *testing.T) {
		clock := new(wall)
		cfg := Config{Path: filepath.Join(t.TempDir(), "ledger.db"), Keep: 10 * day, EventKeep: 10 * day, Now: clock.now}
		l := mustOpen(t, cfg)
		pass := func(d time.Duration, records int) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			if r, e := kept(t, l); r != records || e != 2*records {
				t.Fatalf("%d records and %d events are kept, want %d and %d", r, e, records, 2*records)
			}
		}
		reopen := func(ahead time.Duration) {
			t.Helper()
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			clock.set(ahead)
			l = mustOpen(t, cfg)
		}
		endJobs(t, l, "a", "b")
		pass(day, 2)
		clock.set(1000 * day) // forward while it is open
		pass(day, 2)
		endJobs(t, l, "c")
		reopen(1000 * day)
		pass(day, 3)
		reopen(2000 * day) // forward, twice, while it is closed
		reopen(3000 * day)
		pass(day, 3)   // 6 days old
		reopen(0)      // back
		pass(3*day, 3) // 9 days old
		pass(day+2*time.Hour, 1)
		pass(3*day, 0) // the last one is that much younger
		reopen(0)
		pass(time.Hour, 0)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestAgeIsSaved kills the ledger after it was idle for a long time: its age is kept.
func TestAgeIsSaved(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := &harness{Config{Path: filepath.Join(t.TempDir(), "ledger.db"), Keep: 100 * time.Hour}}
		l := h.Open(t)
		endJobs(t, l.(*Ledger), "a")
		for range 30 {
			time.Sleep(4 * time.Hour)
			synctest.Wait()
			before := l
			l = h.Crash(t, l)
			before.Close()
		}
		synctest.Wait()
		if records, _ := kept(t, l.(*Ledger)); records != 0 {
			t.Errorf("%d records are kept after 120 h, want none", records)
		}
		l.Close()
	})
}

// TestClockBack sets the clock back during a run: the times of the record, its attempts
// and its events do not go back.
func TestClockBack(t *testing.T) {
	clock := new(wall)
	l := openTemp(t, Config{Now: clock.now})
	step := 0
	back := func() {
		step++
		clock.set(-time.Duration(step) * time.Hour)
	}
	var rec job.Record
	for run := range 2 {
		var err error
		if rec, err = l.Create(t.Context(), job.Record{ID: "x"}); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			back()
			c, err := l.Claim(t.Context(), ledger.Slot{Node: "n", Sheep: "a", Ahead: true})
			if err != nil || c == nil {
				t.Fatalf("Claim = %v, %v", c, err)
			}
			back()
			if _, err := l.Start(t.Context(), "x", c.Token); err != nil {
				t.Fatal(err)
			}
			back()
			if _, err := l.Release(t.Context(), "x", c.Token, ledger.Return{Cause: job.CauseInterrupted}); err != nil {
				t.Fatal(err)
			}
		}
		back()
		c, err := l.Claim(t.Context(), ledger.Slot{Node: "n", Sheep: "a"})
		if err != nil || c == nil {
			t.Fatalf("Claim = %v, %v", c, err)
		}
		back()
		rec, err = l.Finish(t.Context(), "x", c.Token, ledger.Outcome{State: job.Done, Cause: job.CauseDone, At: clock.now()})
		if err != nil {
			t.Fatal(err)
		}
		if rec.StartedAt.Before(rec.EnqueuedAt) || rec.FinishedAt.Before(rec.StartedAt) || rec.Run != run+1 {
			t.Errorf("%+v", rec)
		}
	}
	attempts, err := l.Attempts(t.Context(), "x")
	if err != nil || len(attempts) != 6 {
		t.Fatalf("attempts %+v, %v", attempts, err)
	}
	var last time.Time
	for _, a := range attempts {
		for _, at := range []time.Time{a.Began, a.Started, a.Ended} {
			if at.Before(last) {
				t.Errorf("%v comes after %v in attempt %d.%d", at, last, a.Run, a.Number)
			}
			last = at
		}
	}
	events, _, err := l.Events(t.Context(), "", ledger.EventFilter{}, 100)
	if err != nil || len(events) != 18 {
		t.Fatalf("%d events, %v", len(events), err)
	}
	for i := range events[1:] {
		if events[i+1].At.Before(events[i].At) {
			t.Errorf("%+v comes after %+v", events[i+1], events[i])
		}
	}
}

// TestWorldInBubble simulates days on virtual time, with the ledger in a real file: delayed
// jobs, jobs that wait too long, sheep that wait for events, and a ledger that is closed
// and opened again.
func TestWorldInBubble(t *testing.T) {
	t.Parallel()
	for seed := range 5 {
		synctest.Test(t, func(t *testing.T) { runWorld(t, seed) })
	}
}

func runWorld(t *testing.T, seed int) {
	const jobs, sheep = 30, 3
	cfg := Config{Path: filepath.Join(t.TempDir(), "ledger.db")}
	l := mustOpen(t, cfg)
	begin := time.Now()
	ended := make(chan error, sheep)
	for i := range sheep {
		go func() {
			ended <- runSheep(t, l, ledger.Slot{Node: "n", Sheep: fmt.Sprint("sheep", i), Ahead: i%2 == 0})
		}()
	}
	for i := range jobs {
		rec := job.Record{ID: job.ID(fmt.Sprint("job", i)), Model: job.Model{Name: fmt.Sprint("m", i%4)}, Priority: (i + seed) % 3}
		switch (i + seed) % 5 {
		case 1:
			rec.NotBefore = begin.Add(time.Duration(i) * time.Hour)
		case 2:
			rec.NotBefore, rec.WaitUntil = begin.Add(1000*time.Hour), begin.Add(time.Duration(i)*time.Hour) // too late
		}
		if _, err := l.Create(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(seed) * time.Minute)
	}
	time.Sleep(100 * time.Hour)
	synctest.Wait()
	counts, err := l.Count(t.Context())
	if err != nil || counts[job.Done] != jobs-jobs/5 || counts[job.Failed] != jobs/5 {
		t.Errorf("seed %d: counts are %v, %v", seed, counts, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for range sheep {
		if err := <-ended; err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
	}
	l = mustOpen(t, cfg)
	records, _, err := l.List(t.Context(), ledger.Filter{}, 0, jobs+1)
	if err != nil || len(records) != jobs {
		t.Errorf("seed %d: %d records, %v", seed, len(records), err)
	}
	for _, r := range records {
		if !r.NotBefore.IsZero() && r.State == job.Done && r.StartedAt.Before(r.NotBefore) {
			t.Errorf("seed %d: %s started at %v, not before %v", seed, r.ID, r.StartedAt, r.NotBefore)
		}
		// Virtual time stands still while the file is written, so times are exact to the
		// microsecond.
		if r.State == job.Failed && !r.FinishedAt.Equal(slices.MaxFunc([]time.Time{r.WaitUntil, r.EnqueuedAt}, time.Time.Compare)) {
			t.Errorf("seed %d: %s failed at %v, was to wait until %v", seed, r.ID, r.FinishedAt, r.WaitUntil)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// runSheep runs jobs until the ledger is closed.
func runSheep(t *testing.T, l *Ledger, slot ledger.Slot) error {
	for {
		changed := l.Changed()
		c, err := l.Claim(t.Context(), slot)
		if errors.Is(err, errClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		if c == nil {
			<-changed
			continue
		}
		if _, err := l.Start(t.Context(), c.ID, c.Token); err != nil {
			return err
		}
		time.Sleep(time.Minute)
		if _, err := l.Finish(t.Context(), c.ID, c.Token, ledger.Outcome{State: job.Done, Cause: job.CauseDone}); err != nil {
			return err
		}
	}
}

// TestClockBehind opens a ledger while the clock is behind its last change.
func TestClockBehind(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	var clock wall
	for _, test := range []struct {
		ahead time.Duration
		warns bool
	}{{0, false}, {-clockTolerance / 2, false}, {-31 * 365 * 24 * time.Hour, true}, {0, false}} {
		clock.set(test.ahead)
		var log bytes.Buffer
		l := mustOpen(t, Config{Path: path, Now: clock.now, Log: slog.New(slog.NewTextHandler(&log, nil))})
		if warned := strings.Contains(log.String(), "The clock of this machine is behind"); warned != test.warns {
			t.Errorf("at %v: %q", test.ahead, log.String())
		}
		endJobs(t, l, fmt.Sprint("job", len(log.String()), test.ahead.Milliseconds()))
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if found, err := Inspect(t.Context(), path); err != nil || clock.now().Sub(found.LastChange).Abs() > time.Hour {
			t.Errorf("at %v: the last change was at %v, %v", test.ahead, found.LastChange, err)
		}
	}
}
