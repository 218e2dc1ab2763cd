package shepherd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
)

// runner is one life of a sheep's runner, from Run's call to its return.
type runner struct {
	model   job.Model
	began   time.Time
	conn    messenger.Conn
	cancel  context.CancelFunc
	answers chan messenger.Answer // closed when no more will come
	done    chan struct{}         // closed when Run has returned, as err says
	err     error
	loaded  func(error)
	ready   atomic.Pointer[time.Time] // when it began to take jobs
}

// load makes sure that a runner with the job's model is up. The error is
// *runtime.LoadError or *runtime.Exit when it cannot be, or ctx's.
func (l *lane) load(ctx context.Context, a *assignment) error {
	m := a.Model
	if l.runner != nil {
		select {
		case <-l.runner.done:
			l.lostIdle()
		default:
			if l.runner.model == m {
				return l.trust(m) // the rules may have changed since
			}
			l.happened(RunnerSwitched)
		}
	}
	l.logRequires(a)
	l.stopRunner()
	if wait, model, ok := l.crashes.pending(time.Now()); ok && model == m {
		l.show("crashed; starting again with " + m.String() + " in " + wait.Round(time.Millisecond).String())
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	} else if ok {
		l.crashes = crashes{}
	}
	return l.startRunner(ctx, m, a)
}

// startRunner loads the model and starts a runner with it, for the job given, if
// any. It returns when the runner takes messages, or could not be started.
func (l *lane) startRunner(ctx context.Context, m job.Model, a *assignment) error {
	if err := l.trust(m); err != nil {
		return err
	}
	l.logStarting(m)
	l.setRunner(nil, m)
	l.mu.Lock()
	l.told = ""
	l.mu.Unlock()
	began := time.Now()
	l.worker.waits() // an image may take its time
	err := l.sheep.Load(ctx, m, l.observe)
	l.worker.works()
	l.passedFor(a, m, PhasePull, began, err)
	if err != nil {
		l.show("")
		return err
	}
	if err := l.prepare(ctx); err != nil {
		l.show("")
		return err
	}
	began = time.Now()
	var once sync.Once
	loaded := func(err error) { once.Do(func() { l.passedFor(a, m, PhaseLoad, began, err) }) }
	if err := l.launch(ctx, m, l.traceOf(a), loaded); err != nil {
		loaded(err)
		return err
	}
	l.happened(RunnerStarted)
	return nil
}

// launch calls Run, which starts a runner or attaches to the one found by
// Recover. It has loaded be told when the runner takes jobs, or that it never
// did.
func (l *lane) launch(ctx context.Context, m job.Model, trace job.Trace, loaded func(error)) error {
	// A runner outlives the job it was started for: its context is its own, and
	// ends with stopRunner.
	life, cancel := context.WithCancel(runtime.WithTrace(context.Background(), trace))
	r := &runner{
		model: m, began: time.Now(), cancel: cancel, loaded: loaded,
		answers: make(chan messenger.Answer, messenger.MaxKept+1), done: make(chan struct{}),
	}
	started := make(chan struct{}, 1)
	l.running.Go(func() {
		defer close(r.done)
		r.err = l.sheep.Run(life, func(e runtime.Event) {
			switch e.Stage {
			case runtime.Starting:
				l.hasDevices(m, e.PID)
				select {
				case started <- struct{}{}:
				default:
				}
			case runtime.Connected:
				now := time.Now()
				r.ready.Store(&now)
				loaded(nil)
			}
			l.observe(e)
		})
		if !errors.Is(r.err, runtime.ErrDetached) {
			l.leftDevices()
		}
	})
	select {
	case <-r.done:
		cancel()
		l.show("")
		return l.crashed(r)
	case <-ctx.Done():
		cancel()
		<-r.done
		l.show("")
		return context.Cause(ctx)
	case <-started:
	}
	r.conn = l.sheep.Conn()
	l.running.Go(func() {
		defer close(r.answers)
		for {
			a, err := r.conn.Recv(life)
			if err != nil {
				return
			}
			r.answers <- a
		}
	})
	l.runner = r
	l.crashes.until = time.Time{}
	l.setRunner(r, m)
	return nil
}

// setRunner shows the runner's state to those outside the worker.
func (l *lane) setRunner(r *runner, m job.Model) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.up, l.loaded = r != nil, m
}

func (l *lane) observe(e runtime.Event) {
	switch e.Stage {
	case runtime.Connected:
		l.show("")
		l.log.Debug("Runner takes jobs")
	case runtime.Starting:
		l.show("starting")
		l.log.Debug("Runner started", "pid", e.PID)
	default:
		l.show(cmp.Or(e.Text, string(e.Stage)))
		if l.worthTelling(e.Stage, time.Now()) {
			l.log.Info("Loading the model", "stage", string(e.Stage), "progress", e.Text)
		}
	}
}

// tellEvery is how often the log says how far a model's loading is.
const tellEvery = 10 * time.Second

// worthTelling says whether progress belongs in the log: when a stage begins,
// and now and then while it lasts.
func (l *lane) worthTelling(stage runtime.Stage, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if stage == l.told && now.Sub(l.toldAt) < tellEvery {
		return false
	}
	l.told, l.toldAt = stage, now
	return true
}

// stopRunner slaughters the runner and waits until nothing of it is left.
func (l *lane) stopRunner() {
	r := l.runner
	if r == nil {
		return
	}
	l.logSlaughter(r)
	r.cancel()
	for range r.answers { // what comes now is not wanted: see run
	}
	<-r.done
	r.loaded(context.Canceled)
	l.runner, l.freed = nil, time.Time{}
	l.setRunner(nil, job.Model{})
	l.show("")
}

// letGo leaves the runner up, with the job it has if any, for the next daemon.
func (l *lane) letGo() {
	r := l.runner
	l.sheep.Detach()
	for range r.answers { // not acknowledged, so they are kept for the next daemon
	}
	<-r.done
	r.cancel()
	l.runner = nil
	l.log.Info("Leaving the sheep up", "model", r.model.String())
}

// lostIdle notes that the runner ended while it had no job.
func (l *lane) lostIdle() {
	r := l.runner
	for range r.answers { // an answer to no job: dropped
	}
	r.cancel()
	l.runner, l.freed = nil, time.Time{}
	l.setRunner(nil, job.Model{})
	err := l.crashed(r)
	l.log.Warn("Sheep died without notice", "model", r.model.String(), "error", err)
}

// crashed counts an end of the runner that nobody asked for and returns why it
// ended.
func (l *lane) crashed(r *runner) error {
	var load *runtime.LoadError
	if !errors.As(r.err, &load) {
		l.crashes.note(r.model, time.Since(r.began), time.Now())
		l.happened(RunnerCrashed)
	}
	err := r.err
	if err == nil {
		err = fmt.Errorf("runner ended without a cause")
	}
	r.loaded(err)
	return err
}

// revive starts a crashed runner again, so that its model is loaded when the
// next job comes.
func (l *lane) revive() {
	_, m, _ := l.crashes.pending(time.Now())
	done, ok := l.take()
	if !ok {
		l.crashes.left = true
		l.show("")
		return
	}
	defer done()
	err := l.startRunner(l.open, m, nil)
	if err == nil {
		l.happened(RunnerRevived)
	} else if l.open.Err() == nil {
		l.log.Warn("Cannot start the crashed sheep again", "model", m.String(), "error", err)
		var load *runtime.LoadError
		if errors.As(err, &load) {
			l.crashes = crashes{} // the next job that wants the model will say why
		}
	}
}

// crashes remembers which model's runner crashed last and when it may be started
// again.
type crashes struct {
	model   job.Model
	backoff runtime.Backoff
	until   time.Time // zero: nothing is to be started again
	left    bool      // others need the devices: only a job starts it again
}

func (c *crashes) note(m job.Model, up time.Duration, now time.Time) {
	if m != c.model || c.backoff == (runtime.Backoff{}) {
		*c = crashes{model: m, backoff: runtime.DefaultBackoff()}
	}
	c.until, c.left = now.Add(c.backoff.Failed(up)), false
}

// pending says how long to wait before the crashed runner is started again, and
// with which model.
func (c *crashes) pending(now time.Time) (time.Duration, job.Model, bool) {
	if c.until.IsZero() {
		return 0, job.Model{}, false
	}
	return max(c.until.Sub(now), 0), c.model, true
}
