package shepherd_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
)

var ready = job.Model{Name: "ready", Version: "v1"}

// loads notes which models the fixture's sheep load.
func (p *fixture) loads() func() []string {
	var mu sync.Mutex
	var names []string
	before := p.load
	p.load = func(ctx context.Context, m job.Model) error {
		if before != nil {
			if err := before(ctx, m); err != nil {
				return err
			}
		}
		mu.Lock()
		defer mu.Unlock()
		names = append(names, m.Name)
		return nil
	}
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(names)
	}
}

func (p *fixture) isUp(m job.Model) func() bool {
	return func() bool {
		s := p.core.Sheep(p.t.Context())[0]
		return s.Running && s.Model == m
	}
}

// A sheep's own model is up without a job, at its start and after its runner died;
// jobs of it find it loaded.
func TestPreload(t *testing.T) {
	p := newFixture(t)
	p.preload = ready
	loads := p.loads()
	p.start()
	p.eventually("the model is up", p.isUp(ready))
	p.submit("one", "ready", "x")
	p.await("one", job.Done)
	if got := loads(); len(got) != 1 {
		t.Errorf("loaded were %v", got)
	}
	p.runners.Kill("sheep", runtime.Exit{Code: 1})
	p.eventually("its runner is started again", func() bool { return p.runners.Starts("sheep") == 2 && p.isUp(ready)() })
	// Another model's job takes its place, and it stays away while that is up.
	p.submit("two", "other", "x")
	p.await("two", job.Done)
	if !p.isUp(job.Model{Name: "other", Version: "v1"})() {
		t.Error("the other model is not up")
	}
	// It comes back when that one's runner was stopped with its job.
	p.handle = func(ctx context.Context, _ job.Model, _ messenger.Input) error { <-ctx.Done(); return ctx.Err() }
	limit := 10 * time.Millisecond
	p.submit("three", "other", "x", func(r *job.Request) { r.Limits.RunTimeout = &limit })
	p.await("three", job.Failed)
	p.eventually("the model is up again", p.isUp(ready))
}

// A job of another model does not wait for a model that is loaded for nobody.
func TestPreloadGivesWay(t *testing.T) {
	p := newFixture(t)
	p.preload = ready
	loading := make(chan struct{}, 10)
	p.load = func(ctx context.Context, m job.Model) error {
		if m != ready {
			return nil
		}
		loading <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}
	p.start()
	receive(t, loading, "the model is not loaded")
	p.submit("job", "other", "x")
	p.await("job", job.Done)
}

// A model that cannot be loaded is tried again.
func TestPreloadIsTriedAgain(t *testing.T) {
	p := newFixture(t)
	p.preload = ready
	tries := 0
	p.load = func(context.Context, job.Model) error {
		if tries++; tries == 1 {
			return &runtime.LoadError{Message: "the registry is away", Class: errdefs.ErrUnavailable}
		}
		return nil
	}
	p.start()
	p.eventually("the model is up", p.isUp(ready))
}

// prefetching is a sheep that can fetch models beside its runner.
type prefetching struct {
	runtime.Sheep
	fetch func(context.Context, job.Model) error
}

func (s *prefetching) Prefetch(ctx context.Context, m job.Model, _ runtime.Observer) error {
	return s.fetch(ctx, m)
}

// While a sheep runs a job, the model of the one that it prepares is fetched; that
// this fails is of no matter.
func TestPrefetch(t *testing.T) {
	for name, outcome := range map[string]error{"well": nil, "badly": errors.New("no room")} {
		t.Run(name, func(t *testing.T) {
			p := newFixture(t)
			fetched, goOn := make(chan job.Model, 10), make(chan struct{})
			p.wrap = func(s runtime.Sheep) runtime.Sheep {
				return &prefetching{s, func(ctx context.Context, m job.Model) error {
					fetched <- m
					return outcome
				}}
			}
			p.handle = func(ctx context.Context, m job.Model, in messenger.Input) error {
				if in.JobID == "first" {
					<-goOn
				}
				return echo(ctx, m, in)
			}
			p.start()
			p.submit("first", "m", "x")
			p.eventually("the first runs", func() bool {
				s, err := p.core.Job(t.Context(), "first")
				return err == nil && s.State == job.Processing
			})
			p.submit("second", "next", "x")
			for receive(t, fetched, "the next model is not fetched") != (job.Model{Name: "next", Version: "v1"}) {
			}
			close(goOn)
			p.await("first", job.Done)
			p.await("second", job.Done)
		})
	}
}

// A sheep keeps the model that it has, and works with it, while another cannot be
// fetched.
func TestModelStaysWhileAnotherCannotBeFetched(t *testing.T) {
	for _, address := range []string{"", "sheep"} {
		t.Run("addressed to "+address, func(t *testing.T) {
			p := newFixture(t)
			var back atomic.Bool
			p.wrap = func(s runtime.Sheep) runtime.Sheep {
				return &prefetching{s, func(_ context.Context, m job.Model) error {
					if m.Name == "next" && !back.Load() {
						return &runtime.LoadError{Message: "the registry is away", Class: errdefs.ErrUnavailable}
					}
					return nil
				}}
			}
			p.start()
			p.submit("first", "m", "x")
			p.await("first", job.Done)
			p.submit("second", "next", "x", func(r *job.Request) { r.Sheep = address })
			p.eventually("the sheep says why it does not run the second", func() bool {
				return strings.Contains(p.core.Sheep(t.Context())[0].Detail, "with the model next:v1: Failed to start sheep for this job (the registry is away)")
			})
			for _, id := range []string{"third", "fourth"} {
				p.submit(id, "m", "x")
				p.await(id, job.Done)
			}
			if n := p.runners.Starts("sheep"); n != 1 {
				t.Errorf("runners were started %d times, want once", n)
			}
			back.Store(true)
			p.await("second", job.Done)
			attempts, err := p.ledger.Attempts(t.Context(), "second")
			if err != nil || len(attempts) < 2 || attempts[0].Cause != job.CauseUnavailable || attempts[0].Spent {
				t.Errorf("the attempts of the second are %+v, %v", attempts, err)
			}
		})
	}
}
