package shepherd_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
)

// Sheep that are told to stop have no runner; jobs wait for them, those handed
// back too, and run once they are told to start.
func TestStopAndStartSheep(t *testing.T) {
	p := newFixture(t, "a", "b")
	begun, open := p.gated()
	p.start()
	p.submit("wait-1", "m", "1", to("a"))
	p.began(begun, "wait-1")
	p.submit("warm", "m", "1", to("b"))
	p.await("warm", job.Done)
	for range 2 { // twice is the same
		if err := p.core.StopSheep(0); err != nil {
			t.Fatal(err)
		}
	}
	if n := p.runners.Alive(); n != 0 {
		t.Errorf("%d runners are up while the sheep are stopped", n)
	}
	p.submit("later", "m", "2", to("b"))
	for _, id := range []job.ID{"wait-1", "later"} {
		if rec, err := p.ledger.Get(t.Context(), id); err != nil || rec.State != job.Queued {
			t.Errorf("job %s is %s, %v", id, rec.State, err)
		}
	}
	// A sheep that comes meanwhile works.
	p.applied(p.apply(0, p.members["a"], p.members["b"], p.member("c")))
	p.submit("for-c", "m", "3", to("c"))
	p.await("for-c", job.Done)

	if err := p.core.StartSheep(); err != nil {
		t.Fatal(err)
	}
	open()
	p.await("wait-1", job.Done)
	p.await("later", job.Done)
}

// Of sheep that are named the others work on.
func TestStopNamedSheep(t *testing.T) {
	p := newFixture(t, "a", "b")
	p.start()
	for _, id := range []string{"a", "b"} {
		p.submit("warm-"+id, "m", "1", to(id))
		p.await("warm-"+id, job.Done)
	}
	for _, change := range []func(names ...string) error{
		func(names ...string) error { return p.core.StopSheep(0, names...) }, p.core.StartSheep,
	} {
		if unknown := (*job.UnknownSheep)(nil); !errors.As(change("a", "none"), &unknown) || unknown.Name != "none" {
			t.Errorf("a name that no sheep has: %v", unknown)
		}
	}
	if err := p.core.StopSheep(0, "a"); err != nil {
		t.Fatal(err)
	}
	if n := p.runners.Alive(); n != 1 {
		t.Errorf("%d runners are up, want that of b", n)
	}
	p.submit("waits", "m", "2", to("a"))
	p.submit("goes-on", "m", "3", to("b"))
	p.await("goes-on", job.Done)
	if rec, err := p.ledger.Get(t.Context(), "waits"); err != nil || rec.State != job.Queued {
		t.Errorf("the job for the sheep that was stopped is %s, %v", rec.State, err)
	}
	if err := p.core.StartSheep("b"); err != nil { // it was not stopped
		t.Error(err)
	}
	if err := p.core.StartSheep("a"); err != nil {
		t.Fatal(err)
	}
	p.await("waits", job.Done)
}

// The idle sheep that stay take what one that goes was woken for.
func TestWakesAreNotLost(t *testing.T) {
	p := newFixture(t, "a", "b")
	p.start()
	p.applied(p.apply(0, p.members["b"]))
	if err := p.core.StopSheep(time.Hour); err != nil {
		t.Fatal(err)
	}
	p.applied(p.apply(0, p.members["b"], p.member("c")))
	for _, id := range []string{"job-1", "job-2", "job-3"} {
		p.submit(id, "m", id)
		p.await(id, job.Done)
	}
}

// A core that closes finishes what it finds and starts nothing.
func TestClosing(t *testing.T) {
	p := newFixture(t)
	begun, open := p.gated()
	p.start()
	p.submit("wait-1", "m", "1")
	p.began(begun, "wait-1")
	p.submit("next", "m", "2")
	p.core.Leave(t.Context())

	p.config.Closing = true
	p.start()
	if err := p.core.Submit(t.Context(), job.Request{ID: "more", Model: job.Model{Name: "m", Version: "v1"}, Payload: []byte("x")}); err != job.ErrDraining {
		t.Errorf("submit: %v", err)
	}
	open()
	p.stop()
	for id, want := range map[job.ID]job.State{"wait-1": job.Done, "next": job.Queued} {
		if rec, err := p.ledger.Get(t.Context(), id); err != nil || rec.State != want {
			t.Errorf("job %s is %s, %v; want %s", id, rec.State, err, want)
		}
	}
}

// A daemon that is told to end does not wait for the longer time that a sheep, which was
// told to stop before, has for its job.
func TestStopWhileSheepStops(t *testing.T) {
	p := newFixture(t, "a", "b")
	begun, open := p.gated()
	defer open()
	p.start()
	p.submit("wait-1", "m", "1", to("a"))
	p.began(begun, "wait-1")
	stopped := make(chan error, 1)
	go func() { stopped <- p.core.StopSheep(time.Hour, "a") }()
	p.eventually("the sheep is told to stop", func() bool { return p.core.Sheep(t.Context())[0].Condition == job.Stopped })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p.core.Stop(ctx)
	if err := receive(t, stopped, "the sheep does not stop"); !errors.Is(err, job.ErrDraining) {
		t.Errorf("the sheep that was told to stop: %v", err)
	}
	if rec, err := p.ledger.Get(t.Context(), "wait-1"); err != nil || rec.State != job.Queued {
		t.Errorf("its job is %s, %v", rec.State, err)
	}
}
