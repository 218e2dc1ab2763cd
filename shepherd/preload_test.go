package shepherd_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
)

var ready = job.Model{Name: "ready", Version: "v1"}

// loads notes which models the pen's sheep load.
func (p *pen) loads() func() []string {
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

func (p *pen) isUp(m job.Model) func() bool {
	return func() bool {
		s := p.core.Sheep(p.t.Context())[0]
		return s.Running && s.Model == m
	}
}

// A sheep's own model is up without a job, at its start and after its runner died;
// jobs of it find it loaded.
func TestPreload(t *testing.T) {
	p := newPen(t)
	p.preload = ready
	loads := p.loads()
	p.start()
	p.eventually("the model is up", p.isUp(ready))
	p.submit("one", "ready", "x")
	p.await("one", job.Done)
	if got := loads(); len(got) != 1 {
		t.Errorf("loaded were %v", got)
	}
	p.pasture.Kill("sheep", runtime.Exit{Code: 1})
	p.eventually("its runner is started again", func() bool { return p.pasture.Starts("sheep") == 2 && p.isUp(ready)() })
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
	p := newPen(t)
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
	<-loading
	p.submit("job", "other", "x")
	p.await("job", job.Done)
}

// A model that cannot be loaded is tried again.
func TestPreloadIsTriedAgain(t *testing.T) {
	p := newPen(t)
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

func (s *prefetching) Prefetch(ctx context.Context, m job.Model) error { return s.fetch(ctx, m) }

// While a sheep runs a job, the model of the one that it prepares is fetched; that
// this fails, or takes long, is of no matter.
func TestPrefetch(t *testing.T) {
	for name, outcome := range map[string]error{"well": nil, "badly": errors.New("no room"), "not at all": context.Canceled} {
		t.Run(name, func(t *testing.T) {
			p := newPen(t)
			fetched, goOn := make(chan job.Model, 10), make(chan struct{})
			p.wrap = func(s runtime.Sheep) runtime.Sheep {
				return &prefetching{s, func(ctx context.Context, m job.Model) error {
					fetched <- m
					if errors.Is(outcome, context.Canceled) {
						<-ctx.Done() // of the attempt
						return ctx.Err()
					}
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
			for m := range fetched {
				if m == (job.Model{Name: "next", Version: "v1"}) {
					break
				}
			}
			close(goOn)
			p.await("first", job.Done)
			p.await("second", job.Done)
		})
	}
}
