package shepherd

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/runtime"
)

// errOtherJob cancels a load without a job because a job of another model arrived.
var errOtherJob = errors.New("a job of another model came")

// preloader loads a sheep's preload model while it has no job, at its start and after its
// runner was lost. Only wanted may be called by others than the worker.
type preloader struct {
	model   job.Model // zero for none
	due     time.Time // when to load it; zero for never
	up      bool      // whether a runner was up at the last call of look
	backoff runtime.Backoff

	mu      sync.Mutex
	loading job.Model               // zero while no load is in progress
	stop    context.CancelCauseFunc // cancels the load in progress
}

func newPreloader(m job.Model) *preloader {
	return &preloader{model: m, up: true, backoff: runtime.DefaultBackoff()}
}

// look is called with whether a runner is up. The model becomes due when a runner is up no
// more, and at the first call.
func (p *preloader) look(up bool) {
	if p.up && !up && !p.model.IsZero() {
		p.due = time.Now()
	}
	p.up = up
}

// unloaded records that the runner was stopped to free its resources. The model does not
// become due until a job has started a runner again.
func (p *preloader) unloaded() { p.due, p.up = time.Time{}, false }

// begin returns a context for loading m that a job of another model cancels.
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

// wanted cancels a load of another model than m, which a job or an operator needs.
func (p *preloader) wanted(m job.Model) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.loading.IsZero() && m != p.loading {
		p.stop(errOtherJob)
	}
}

// preload loads the preload model.
func (w *worker) preload(feed context.Context) {
	l, p := w.lane, w.preloader
	p.due = time.Time{}
	err := w.loadAhead(feed, p.model)
	var state *job.SheepState
	switch {
	case err == nil:
		p.backoff.Reset()
	case errors.As(err, &state): // other sheep hold the devices: the next job loads the model
	case errors.Is(err, errOtherJob), feed.Err() != nil:
		p.due = time.Now().Add(time.Second) // another sheep may take the job
	default:
		wait := max(p.backoff.Failed(0), time.Second)
		p.due = time.Now().Add(wait)
		l.log.Warn("Cannot preload the sheep's model; retrying", "model", p.model.String(), "pause", wait, "error", err)
	}
}

// loadAhead loads a model without a job that needs it. The error is *job.SheepState if other
// sheep hold the devices, errOtherJob if a job of another model arrives, an error of
// supervisor.change, or the cause of ctx's end.
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

// prefetch fetches the model of a job that is prepared ahead while the runner runs another
// job, so that Load need not wait for it.
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
			l.log.Debug("Cannot prefetch the model of a waiting job", "job", a.ID, "model", a.Model.String(), "error", err)
		}
	})
}
