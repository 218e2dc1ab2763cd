package shepherd

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/runtime"
)

// errOtherJob is why a model is not loaded ahead of jobs: one of another model came.
var errOtherJob = errors.New("a job of another model came")

// preloader has a sheep load its own model while it has no job, at its start and
// whenever its runner was lost. Only wanted may be called by others than the worker.
type preloader struct {
	model   job.Model // zero for none
	due     time.Time // when to load it; zero for not
	up      bool      // a runner was, at the last look
	backoff runtime.Backoff

	mu      sync.Mutex
	loading job.Model               // zero while none is
	stop    context.CancelCauseFunc // while one is
}

func newPreloader(m job.Model) *preloader {
	return &preloader{model: m, up: true, backoff: runtime.DefaultBackoff()}
}

// look is told whether a runner is up. When it was and is not any more, and at the
// first look, the model is due.
func (p *preloader) look(up bool) {
	if p.up && !up && !p.model.IsZero() {
		p.due = time.Now()
	}
	p.up = up
}

// unloaded says that the runner was stopped to give up what it takes: the model is
// not due until a job has brought one up again.
func (p *preloader) unloaded() { p.due, p.up = time.Time{}, false }

// begin returns a context for loading m that ends when a job of another model comes.
func (p *preloader) begin(parent context.Context, m job.Model) context.Context {
	ctx, cancel := context.WithCancelCause(parent)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.loading, p.stop = m, cancel
	return ctx
}

func (p *preloader) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stop(errOver)
	p.loading = job.Model{}
}

// wanted is told the model of a job that the sheep is to run, or that it is told to load.
func (p *preloader) wanted(m job.Model) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.loading.IsZero() && m != p.loading {
		p.stop(errOtherJob)
	}
}

// preload loads the model.
func (w *worker) preload(feed context.Context) {
	l, p := w.lane, w.preloader
	p.due = time.Time{}
	err := w.loadAhead(feed, p.model)
	var state *job.SheepState
	switch {
	case err == nil:
		p.backoff.Reset()
	case errors.As(err, &state): // others have the devices: a job loads it
	case errors.Is(err, errOtherJob), feed.Err() != nil:
		p.due = time.Now().Add(time.Second) // the job may be another sheep's by then
	default:
		wait := max(p.backoff.Failed(0), time.Second)
		p.due = time.Now().Add(wait)
		l.log.Warn("Cannot load the model that the sheep is to have ready; trying again", "model", p.model.String(), "pause", wait, "error", err)
	}
}

// loadAhead loads a model without a job that wants it. The error is *job.SheepState
// where others have the devices, errOtherJob where a job of another model comes, what
// supervisor.change says, or the cause of ctx's end.
func (w *worker) loadAhead(ctx context.Context, m job.Model) error {
	l, p := w.lane, w.preloader
	done, ok := l.share.hold()
	if !ok {
		return &job.SheepState{Sheep: l.Name, Is: job.SheepNoDevices}
	}
	defer done()
	ctx = p.begin(ctx, m)
	defer p.end()
	if a := l.feeder.holds(); a != nil {
		p.wanted(a.Model)
	}
	l.state.loadAhead(m)
	defer l.state.loadAhead(job.Model{})
	err := w.supervisor.change(ctx, m)
	if err == nil {
		w.idleSince = time.Now()
	}
	return err
}

// prefetch fetches the model of a job that is prepared ahead, beside the runner's
// job: what its Load will need is here by then.
func (l *lane) prefetch(ctx context.Context, a *attempt) {
	f, ok := l.Sheep.(runtime.Prefetcher)
	if !ok || !a.ahead || l.state.has(a.Model) || l.mayLoad(a.Model) != nil {
		return
	}
	l.life.running.Go(func() {
		ctx, release := a.stopper.bind(ctx)
		defer release()
		err := f.Prefetch(ctx, a.Model, runtime.Discard)
		a.fetched.Store(err == nil)
		if err != nil && ctx.Err() == nil {
			l.log.Debug("The model of a job that waits cannot be fetched ahead of it", "job", a.ID, "model", a.Model.String(), "error", err)
		}
	})
}
