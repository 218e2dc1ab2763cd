package shepherd_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/runtime"
)

// isIn checks that an order was refused for what the sheep is like.
func isIn(t *testing.T, err error, want job.SheepTrouble) {
	t.Helper()
	var state *job.SheepState
	if !errors.As(err, &state) || state.Is != want {
		t.Errorf("the order ended with %v, want %s", err, want)
	}
}

func (p *fixture) condition(sheep string) job.Condition {
	p.t.Helper()
	for _, s := range p.core.Sheep(p.t.Context()) {
		if s.Name == sheep {
			return s.Condition
		}
	}
	p.t.Fatalf("there is no sheep %s", sheep)
	return ""
}

// awaitIdle waits until the sheep would load a model.
func (p *fixture) awaitIdle() {
	p.t.Helper()
	gone, leave := context.WithCancel(p.t.Context())
	leave()
	p.eventually("the sheep is idle", func() bool {
		var state *job.SheepState
		return !errors.As(p.core.LoadSheep(gone, "sheep", ready), &state)
	})
}

// A sheep that is drained finishes its job and takes no other: what it has only prepared
// goes to others at once, and what is addressed to it waits.
func TestDrainSheep(t *testing.T) {
	p := newFixture(t, "a", "b")
	begun, open := p.gated()
	p.start()
	p.submit("wait-1", "m", "1", to("a"))
	p.began(begun, "wait-1")
	p.submit("prepared", "m", "2", to("a"))
	held := func(by string) func() bool {
		return func() bool {
			rec, err := p.ledger.Get(t.Context(), "prepared")
			return err == nil && rec.Holder == by
		}
	}
	p.eventually("the sheep prepares the next job", held("a"))
	if err := p.core.DrainSheep("a"); err != nil {
		t.Fatal(err)
	}
	isIn(t, p.core.DrainSheep("a"), job.SheepDrained)
	p.eventually("what was only prepared is handed back", held(""))
	if got := p.condition("a"); got != job.Drained {
		t.Errorf("the sheep is %q", got)
	}
	if s := p.core.Sheep(t.Context())[0]; s.Job != "wait-1" || !s.Running {
		t.Errorf("the sheep that drains is %+v", s)
	}
	open()
	p.await("wait-1", job.Done)
	p.submit("free", "m", "3")
	p.await("free", job.Done)
	if attempts, err := p.ledger.Attempts(t.Context(), "free"); err != nil || len(attempts) != 1 || attempts[0].Sheep != "b" {
		t.Errorf("the job for any sheep was tried as %+v, %v", attempts, err)
	}
	if why, err := p.core.Explain(t.Context(), "prepared", ""); err != nil || !strings.Contains(why.String(), "told to take no more jobs") {
		t.Errorf("the job that waits for the drained sheep: %+v, %v", why, err)
	}
	if err := p.core.ResumeSheep("a"); err != nil {
		t.Fatal(err)
	}
	isIn(t, p.core.ResumeSheep("a"), job.SheepNotDrained)
	p.await("prepared", job.Done)
	attempts, err := p.ledger.Attempts(t.Context(), "prepared")
	if err != nil || len(attempts) != 2 || attempts[0].Cause != job.CauseHandedBack || attempts[0].Spent {
		t.Errorf("the job that was prepared was tried as %+v, %v", attempts, err)
	}
}

// A drain holds over a restart of the daemon and over a change of the sheep's
// configuration, and the sheep loads nothing by itself.
func TestDrainStays(t *testing.T) {
	p := newFixture(t, "a", "b")
	p.preload = ready
	var kept []string
	p.config.KeepDrained = func(sheep []string) error { kept = sheep; return nil }
	p.start()
	p.eventually("the model is up", p.isUp(ready))
	for _, name := range []string{"b", "a"} {
		if err := p.core.DrainSheep(name); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.core.ResumeSheep("b"); err != nil {
		t.Fatal(err)
	}
	p.stop()
	if !slices.Equal(kept, []string{"a"}) {
		t.Errorf("kept is %q", kept)
	}

	starts := p.runners.Starts("a")
	p.config.Drained = kept
	p.start()
	p.submit("one", "m", "1")
	p.await("one", job.Done)
	p.applied(p.apply(0, p.member("a"), p.members["b"]))
	if got := p.condition("a"); got != job.Drained {
		t.Errorf("the sheep whose configuration changed is %q", got)
	}
	p.submit("two", "m", "2", to("a"))
	p.submit("three", "m", "3")
	p.await("three", job.Done)
	if n := p.runners.Starts("a"); n != starts {
		t.Errorf("the drained sheep started %d runners", n-starts)
	}
	if err := p.core.ResumeSheep("a"); err != nil {
		t.Fatal(err)
	}
	p.await("two", job.Done)
}

// What cannot be kept is not done.
func TestDrainThatCannotBeKept(t *testing.T) {
	p := newFixture(t)
	p.config.KeepDrained = func([]string) error { return errors.New("no room") }
	p.start()
	if err := p.core.DrainSheep("sheep"); err == nil {
		t.Error("the sheep is drained")
	}
	p.submit("job", "m", "1")
	p.await("job", job.Done)
}

// Resume lets a stopped sheep work; it stays drained where it was only started.
func TestResumeStartsAStoppedSheep(t *testing.T) {
	p := newFixture(t)
	p.start()
	if err := errors.Join(p.core.DrainSheep("sheep"), p.core.StopSheep(0, "sheep")); err != nil {
		t.Fatal(err)
	}
	if got := p.condition("sheep"); got != job.Stopped {
		t.Errorf("the sheep is %q", got)
	}
	isIn(t, p.core.RestartSheep("sheep", 0), job.SheepStopped)
	isIn(t, p.core.LoadSheep(t.Context(), "sheep", ready), job.SheepStopped)
	if err := p.core.StartSheep("sheep"); err != nil {
		t.Fatal(err)
	}
	if got := p.condition("sheep"); got != job.Drained {
		t.Errorf("the sheep is %q", got)
	}
	if err := errors.Join(p.core.StopSheep(0, "sheep"), p.core.ResumeSheep("sheep")); err != nil {
		t.Fatal(err)
	}
	p.submit("job", "m", "1")
	p.await("job", job.Done)
}

// A restart hands the job back unspent, and the sheep goes on with it under a new
// runner; with a drain the job ends first.
func TestRestartSheep(t *testing.T) {
	p := newFixture(t)
	begun, open := p.gated()
	p.start()
	p.submit("wait-1", "m", "1")
	p.began(begun, "wait-1")
	if err := p.core.RestartSheep("sheep", 0); err != nil {
		t.Fatal(err)
	}
	p.began(begun, "wait-1")
	if n := p.runners.Starts("sheep"); n != 2 {
		t.Errorf("%d runners were started, want 2", n)
	}
	restarted := make(chan error, 1)
	go func() { restarted <- p.core.RestartSheep("sheep", time.Hour) }()
	open()
	p.await("wait-1", job.Done)
	if err := receive(t, restarted, "the restart does not return"); err != nil {
		t.Fatal(err)
	}
	attempts, err := p.ledger.Attempts(t.Context(), "wait-1")
	if err != nil || len(attempts) != 2 || attempts[0].Cause != job.CauseHandedBack || attempts[0].Spent {
		t.Errorf("the job was tried as %+v, %v", attempts, err)
	}
	if p.core.Sheep(t.Context())[0].Running {
		t.Error("the runner outlived the restart")
	}
	p.submit("two", "m", "2")
	p.await("two", job.Done)
}

// Whoever has less patience counts: a restart, a reload or the daemon's end does not wait
// for the longer time that an earlier restart leaves a job. Other sheep are not touched.
func TestRestartGivesWay(t *testing.T) {
	for name, c := range map[string]struct {
		hasten func(p *fixture) error
		want   job.State
	}{
		"to a restart": {func(p *fixture) error { return p.core.RestartSheep("a", 0) }, job.Done},
		"to a stop": {func(p *fixture) error {
			return errors.Join(p.core.StopSheep(0, "a"), p.core.StartSheep("a"))
		}, job.Done},
		"to a reload": {func(p *fixture) error {
			return receive(p.t, p.apply(0, p.member("a"), p.members["b"]), "apply does not return")
		}, job.Done},
		"to the end": {func(p *fixture) error {
			ctx, cancel := context.WithCancel(p.t.Context())
			cancel()
			p.core.Stop(ctx)
			return nil
		}, job.Queued},
	} {
		t.Run(name, func(t *testing.T) {
			p := newFixture(t, "a", "b")
			begun, open := p.gated()
			p.start()
			p.submit("wait-1", "m", "1", to("a"))
			p.began(begun, "wait-1")
			restarted := make(chan error, 1)
			go func() { restarted <- p.core.RestartSheep("a", time.Hour) }()
			p.eventually("the sheep drains for its restart", func() bool { return p.condition("a") == job.Drained })
			// A reload that does not touch the sheep does not wait for it.
			p.applied(p.apply(0, p.members["a"], p.members["b"], p.member("c")))
			if err := c.hasten(p); err != nil {
				t.Fatal(err)
			}
			if err := receive(t, restarted, "the restart does not return"); err != nil && (c.want != job.Queued || !errors.Is(err, job.ErrDraining)) {
				t.Errorf("the restart that waited: %v", err)
			}
			open()
			if c.want == job.Done {
				p.await("wait-1", job.Done)
			}
			if rec, err := p.ledger.Get(t.Context(), "wait-1"); err != nil || rec.State != c.want {
				t.Errorf("the job is %s, %v", rec.State, err)
			}
		})
	}
}

// A model is loaded in the place of another; jobs of it find it.
func TestLoadSheep(t *testing.T) {
	p := newFixture(t)
	loads := p.loads()
	p.check = func(_ string, m job.Model) error {
		if m.Name == "none" {
			return &runtime.LoadError{Message: "there is no model none", Class: errdefs.ErrNotFound}
		}
		return nil
	}
	p.start()
	p.awaitIdle()
	for _, name := range []string{"other", "ready", "ready"} { // what is loaded already is no trouble
		if err := p.core.LoadSheep(t.Context(), "sheep", job.Model{Name: name, Version: "v1"}); err != nil {
			t.Fatal(err)
		}
	}
	if !p.isUp(ready)() {
		t.Errorf("the sheep is %+v", p.core.Sheep(t.Context())[0])
	}
	p.submit("job", "ready", "x")
	p.await("job", job.Done)
	p.awaitIdle()
	if got := loads(); !slices.Equal(got, []string{"other", "ready"}) {
		t.Errorf("loaded were %q", got)
	}
	var missing *job.ModelError
	err := p.core.LoadSheep(t.Context(), "sheep", job.Model{Name: "none", Version: "v1"})
	if !errors.As(err, &missing) || !errdefs.IsNotFound(err) || missing.Problem != "there is no model none" {
		t.Errorf("a model that there is not: %v", err)
	}
	if !p.isUp(ready)() {
		t.Error("the model that was loaded is gone")
	}
	if err := p.core.LoadSheep(t.Context(), "sheep", job.Model{}); !errors.As(err, new(*job.Invalid)) {
		t.Errorf("no model: %v", err)
	}
	for _, o := range []job.Order{{Do: job.Drain}, {Do: job.Resume}, {Do: job.Restart}, {Do: job.Load, Model: ready}} {
		var unknown *job.UnknownSheep
		if err := p.core.OrderSheep(t.Context(), "wolf", o); !errors.As(err, &unknown) || unknown.Name != "wolf" {
			t.Errorf("%s of an unknown sheep: %v", o.Do, err)
		}
	}
	if err := p.core.OrderSheep(t.Context(), "sheep", job.Order{Do: "sing"}); !errors.As(err, new(*job.Invalid)) {
		t.Errorf("an order that there is not: %v", err)
	}
}

// A sheep with a job loads nothing else, and one at a time.
func TestLoadOfABusySheep(t *testing.T) {
	p := newFixture(t)
	begun, open := p.gated()
	p.start()
	p.submit("wait-1", "m", "1")
	p.began(begun, "wait-1")
	isIn(t, p.core.LoadSheep(t.Context(), "sheep", ready), job.SheepBusy)
	open()
	p.await("wait-1", job.Done)
}

// slowly has the fixture load the model "ready" until the context ends.
func (p *fixture) slowly() (loading chan struct{}) {
	loading = make(chan struct{}, 10)
	p.load = func(ctx context.Context, m job.Model) error {
		if m != ready {
			return nil
		}
		loading <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}
	return loading
}

// What ends the loading of a model that an operator asked for.
func TestLoadEnds(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(p *fixture, leave context.CancelFunc)
		want func(t *testing.T, err error)
	}{
		"with its caller": {func(_ *fixture, leave context.CancelFunc) { leave() }, func(t *testing.T, err error) {
			if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}},
		"with a job of another model": {func(p *fixture, _ context.CancelFunc) { p.submit("other", "m", "1") }, func(t *testing.T, err error) { isIn(t, err, job.SheepDisturbed) }},
		"with the sheep":              {func(p *fixture, _ context.CancelFunc) { _ = p.core.StopSheep(0) }, func(t *testing.T, err error) { isIn(t, err, job.SheepStopped) }},
		"with the daemon": {func(p *fixture, _ context.CancelFunc) { p.core.Stop(p.t.Context()) }, func(t *testing.T, err error) {
			if !errors.Is(err, job.ErrDraining) {
				t.Error(err)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newFixture(t)
			loading := p.slowly()
			p.start()
			p.awaitIdle()
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			var asking sync.WaitGroup
			defer asking.Wait()
			loaded := make(chan error, 1)
			asking.Go(func() { loaded <- p.core.LoadSheep(ctx, "sheep", ready) })
			receive(t, loading, "the model is not loaded")
			isIn(t, p.core.LoadSheep(t.Context(), "sheep", job.Model{Name: "m", Version: "v1"}), job.SheepBusy)
			c.end(p, leave)
			c.want(t, receive(t, loaded, "the loading does not end"))
		})
	}
}

// An operator's model goes before the one that the sheep loads by itself, and a drained
// sheep is told by nobody else.
func TestLoadOfADrainedSheep(t *testing.T) {
	p := newFixture(t)
	p.preload = ready
	loading := p.slowly()
	p.start()
	receive(t, loading, "the model is not loaded")
	if err := p.core.DrainSheep("sheep"); err != nil {
		t.Fatal(err)
	}
	p.submit("job", "m", "1")
	other := job.Model{Name: "other", Version: "v1"}
	if err := p.core.LoadSheep(t.Context(), "sheep", other); err != nil {
		t.Fatal(err)
	}
	if !p.isUp(other)() {
		t.Errorf("the sheep is %+v", p.core.Sheep(t.Context())[0])
	}
	if err := p.core.ResumeSheep("sheep"); err != nil {
		t.Fatal(err)
	}
	p.await("job", job.Done)
}
