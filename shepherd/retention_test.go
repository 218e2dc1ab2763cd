package shepherd_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/sqlite"
	"github.com/iterait/shepherd/shepherd"
	"github.com/iterait/shepherd/storage"
)

// keep has the fixture's ledger and core keep files as the policy says; the core is
// started again.
func (p *fixture) keep(policy job.Retention) {
	p.t.Helper()
	p.stop()
	if err := p.ledger.Close(); err != nil {
		p.t.Fatal(err)
	}
	l, err := sqlite.Open(p.t.Context(), sqlite.Config{Path: p.dir + "/ledger.db", Log: p.config.Log, Retention: policy.For})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { l.Close() })
	p.ledger, p.config.Ledger, p.config.Webhooks = l, l, l
	p.config.Retention = shepherd.Retention{Ledger: l, Policy: policy, Interval: 20 * time.Millisecond}
	p.start()
}

// there reports whether the job has a place in storage.
func (p *fixture) there(id job.ID) bool {
	p.t.Helper()
	there, err := p.store.Exists(p.t.Context(), id)
	if err != nil {
		p.t.Fatal(err)
	}
	return there
}

// A job's files go when their time is over, and not before: that of its end, its
// model, or its own.
func TestRetention(t *testing.T) {
	p := newFixture(t)
	rule, err := job.ParseRule("short*")
	if err != nil {
		t.Fatal(err)
	}
	at := func(d time.Duration) *time.Duration { return &d }
	p.keep(job.Retention{
		All:    job.KeepTimes{Done: at(time.Hour)},
		Models: []job.KeepRule{{Models: rule, KeepTimes: job.KeepTimes{Done: at(time.Millisecond)}}},
	})
	p.submit("hour", "m", "1")
	p.submit("short", "short-lived", "2")
	p.submit("own-long", "short-lived", "3", func(r *job.Request) { r.Keep = at(0) })
	p.submit("own-short", "m", "4", func(r *job.Request) { r.Keep = at(time.Millisecond) })
	for _, id := range []string{"hour", "short", "own-long", "own-short"} {
		p.await(id, job.Done)
	}
	p.eventually("the files of two jobs are gone", func() bool {
		for _, id := range []job.ID{"short", "own-short"} {
			if rec, err := p.ledger.Get(t.Context(), id); err != nil || !rec.FilesRemoved {
				return false
			}
		}
		return true
	})
	for id, want := range map[job.ID]bool{"hour": true, "short": false, "own-long": true, "own-short": false} {
		if got := p.there(id); got != want {
			t.Errorf("job %s is in storage: %t", id, got)
		}
		if status, err := p.core.Job(t.Context(), id); err != nil || status.State != job.Done {
			t.Errorf("job %s is %+v, %v", id, status, err)
		}
	}
	if _, err := p.core.Output(t.Context(), "short", job.DefaultOutput, nil); !errors.Is(err, job.ErrNoFile) {
		t.Errorf("an output that is gone: %v", err)
	}
	var unknown *job.UnknownJob
	again := job.Request{ID: "short", Model: job.Model{Name: "m"}}
	if err := p.core.Submit(t.Context(), again); !errors.As(err, &unknown) {
		t.Errorf("a new run without inputs: %v", err)
	}
	view, err := p.core.View(t.Context(), "hour")
	if err != nil || !view.KeptUntil.Equal(view.FinishedAt.Add(time.Hour)) {
		t.Errorf("finished at %s, kept until %s, %v", view.FinishedAt, view.KeptUntil, err)
	}

	// Another policy is for the jobs of before, too.
	p.keep(job.Retention{All: job.KeepTimes{Done: at(time.Millisecond)}})
	p.eventually("the other's files are gone", func() bool { return !p.there("hour") })
	if !p.there("own-long") || p.output("own-long") != "3" {
		t.Error("files that were to be kept for ever are gone")
	}
	p.keep(job.Retention{})
	p.submit("ever", "m", "5")
	p.await("ever", job.Done)
	if view, err := p.core.View(t.Context(), "ever"); err != nil || !view.KeptUntil.IsZero() {
		t.Errorf("kept until %s, %v", view.KeptUntil, err)
	}
}

// A policy that is taken back holds for what ended under it.
// crowdedStore counts the removals that are under way at a time.
type crowdedStore struct {
	storage.Store
	open, most atomic.Int32
}

func (s *crowdedStore) Remove(ctx context.Context, id job.ID) error {
	now := s.open.Add(1)
	defer s.open.Add(-1)
	for most := s.most.Load(); now > most && !s.most.CompareAndSwap(most, now); most = s.most.Load() {
	}
	time.Sleep(5 * time.Millisecond) // so that others can be under way
	return s.Store.Remove(ctx, id)
}

// Where whole batches are due, several removals are under way at a time, and none
// is left out.
func TestRetentionOfMany(t *testing.T) {
	p := newFixture(t)
	store := &crowdedStore{Store: p.store}
	p.config.Store = store
	p.keep(job.Retention{})
	var ids []job.ID
	for i := range 150 {
		id := fmt.Sprintf("job-%d", i)
		p.submit(id, "m", "x")
		ids = append(ids, job.ID(id))
	}
	p.submit("kept", "m", "x", func(r *job.Request) { r.Keep = new(time.Duration(0)) })
	p.await("kept", job.Done)
	for _, id := range ids {
		p.await(string(id), job.Done)
	}
	p.keep(job.Retention{All: job.KeepTimes{Done: new(time.Millisecond)}})
	for _, id := range ids { // one after the other: to look at all of them again and again keeps the storage busy
		p.eventually("the files of "+string(id)+" are gone", func() bool {
			rec, err := p.ledger.Get(t.Context(), id)
			return err == nil && rec.FilesRemoved && !p.there(id)
		})
	}
	if most := store.most.Load(); most < 2 || most > 8 {
		t.Errorf("%d removals were under way at a time, want 2 to 8", most)
	}
	if !p.there("kept") {
		t.Error("a job that is to be kept is gone")
	}
}

func TestRetentionTakenBack(t *testing.T) {
	p := newFixture(t)
	p.keep(job.Retention{All: job.KeepTimes{Done: new(time.Hour)}})
	p.submit("kept", "m", "1")
	p.await("kept", job.Done)
	p.keep(job.Retention{})
	p.eventually("the job is kept for ever", func() bool {
		rec, err := p.ledger.Get(t.Context(), "kept")
		return err == nil && rec.KeptUntil.IsZero()
	})
	if p.output("kept") != "1" {
		t.Error("the output is gone")
	}
}

func TestRemoveJob(t *testing.T) {
	p := newFixture(t)
	p.keep(job.Retention{})
	var unknown *job.UnknownJob
	if err := p.core.Remove(t.Context(), "unknown"); !errors.As(err, &unknown) {
		t.Errorf("an unknown job: %v", err)
	}
	p.submit("gone", "m", "1")
	p.await("gone", job.Done)
	if err := p.core.Remove(t.Context(), "gone"); err != nil {
		t.Fatal(err)
	}
	if p.there("gone") {
		t.Error("its files are there")
	}
	if _, err := p.core.Job(t.Context(), "gone"); !errors.As(err, &unknown) {
		t.Errorf("the removed job: %v", err)
	}
	p.submit("gone", "m", "2")
	p.await("gone", job.Done)
	if got := p.output("gone"); got != "2" {
		t.Errorf("the new job gave %q", got)
	}

	// One that storage alone knows.
	if err := p.store.Init(t.Context(), "old", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := p.store.SetStatus(t.Context(), "old", job.Status{State: job.Processing, EnqueuedAt: job.Now()}); err != nil {
		t.Fatal(err)
	}
	if err := p.core.Remove(t.Context(), "old"); !errors.Is(err, job.ErrNotEnded) {
		t.Errorf("a job of another daemon: %v", err)
	}
	if err := p.store.SetStatus(t.Context(), "old", job.Status{State: job.Done, EnqueuedAt: job.Now(), FinishedAt: job.Now()}); err != nil {
		t.Fatal(err)
	}
	if err := p.core.Remove(t.Context(), "old"); err != nil || p.there("old") {
		t.Errorf("a job of before: %v", err)
	}

	// One that has not ended.
	if _, err := p.ledger.Create(t.Context(), job.Record{ID: "later", Model: job.Model{Name: "m"}, NotBefore: job.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	if err := p.core.Remove(t.Context(), "later"); !errors.Is(err, job.ErrNotEnded) {
		t.Errorf("a queued job: %v", err)
	}
}

// Storage goes away during a removal: no new run begins meanwhile, and the removal
// goes on by itself, in the next daemon if need be.
func TestRemovalCutShort(t *testing.T) {
	p := newFixture(t)
	p.keep(job.Retention{})
	p.submit("half", "m", "1")
	p.await("half", job.Done)
	p.store.hook(func() {
		p.store.remove = func(job.ID) error { return fmt.Errorf("storage is away: %w", errdefs.ErrUnavailable) }
	})
	var away *job.Unavailable
	if err := p.core.Remove(t.Context(), "half"); !errors.As(err, &away) {
		t.Fatalf("without storage: %v", err)
	}
	again := job.Request{ID: "half", Model: job.Model{Name: "m"}}
	if err := p.core.Submit(t.Context(), again); !errors.Is(err, job.ErrRemoving) {
		t.Errorf("a new run meanwhile: %v", err)
	}
	p.store.hook(func() { p.store.remove = nil })
	p.keep(job.Retention{})
	p.eventually("the job is gone", func() bool {
		_, err := p.ledger.Get(t.Context(), "half")
		return errors.Is(err, ledger.ErrNotFound)
	})
	if p.there("half") {
		t.Error("its files are there")
	}
	p.submit("half", "m", "2")
	p.await("half", job.Done)
}

// A removal that takes longer than a client is kept waiting goes on without it.
func TestRemovalContinues(t *testing.T) {
	p := newFixture(t)
	p.keep(job.Retention{})
	p.submit("large", "m", "1")
	p.await("large", job.Done)
	p.stop()
	p.config.Retention.Patience = time.Nanosecond
	p.start()
	if err := p.core.Remove(t.Context(), "large"); !errors.Is(err, job.ErrRemovalContinues) {
		t.Fatalf("got %v", err)
	}
	p.eventually("the job is gone", func() bool {
		_, err := p.ledger.Get(t.Context(), "large")
		return errors.Is(err, ledger.ErrNotFound)
	})
	if p.there("large") {
		t.Error("its files are there")
	}
}

// Of a job that only storage knows nothing says that its removal has begun: where it
// takes long the client asks again.
func TestRemovalStops(t *testing.T) {
	p := newFixture(t)
	p.keep(job.Retention{})
	if err := p.store.Init(t.Context(), "foreign", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := p.store.SetStatus(t.Context(), "foreign", job.Status{State: job.Done}); err != nil {
		t.Fatal(err)
	}
	p.stop()
	patience := p.config.Retention.Patience
	p.config.Retention.Patience = time.Nanosecond
	p.start()
	if err := p.core.Remove(t.Context(), "foreign"); !errors.Is(err, job.ErrRemovalStopped) {
		t.Fatalf("got %v", err)
	}
	if !p.there("foreign") {
		t.Error("its files are gone")
	}
	p.stop()
	p.config.Retention.Patience = patience
	p.start()
	if err := p.core.Remove(t.Context(), "foreign"); err != nil || p.there("foreign") {
		t.Errorf("removed again: %v", err)
	}
}

// Removing and submitting one job at once: either there is a job with its inputs,
// or there is none.
func TestRemoveRacesSubmit(t *testing.T) {
	p := newFixture(t)
	p.keep(job.Retention{})
	model := job.Model{Name: "m", Version: "v1"}
	for round := range 30 {
		id := job.ID(fmt.Sprintf("race-%d", round))
		p.submit(string(id), "m", "first")
		p.await(string(id), job.Done)
		submitted := make(chan error, 1)
		go func() { submitted <- p.core.Submit(t.Context(), job.Request{ID: id, Model: model}) }()
		removed := p.core.Remove(t.Context(), id)
		switch err := receive(t, submitted, "the submission does not return"); {
		case err == nil:
			if s := p.await(string(id), job.Done); !p.there(id) {
				t.Fatalf("removal %v: the job is %+v and not in storage", removed, s)
			}
			if removed == nil {
				t.Fatal("both were done")
			}
		case removed != nil:
			t.Fatalf("neither was done: %v, %v", err, removed)
		default:
			if p.there(id) {
				t.Fatal("a removed job is in storage")
			}
		}
	}
}
