package shepherd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
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
}

// load makes sure that a runner with the model is up. The error is *runtime.
// LoadError or *runtime.Exit when it cannot be, or ctx's.
func (l *lane) load(ctx context.Context, m job.Model) error {
	if l.runner != nil {
		select {
		case <-l.runner.done:
			l.lostIdle()
		default:
			if l.runner.model == m {
				return nil
			}
			l.log.Info("Slaughtering sheep for another model", "model", m.String(), "loaded", l.runner.model.String())
		}
		l.stopRunner()
	}
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
	return l.startRunner(ctx, m)
}

// startRunner loads the model and starts a runner with it. It returns when the
// runner takes messages, or could not be started.
func (l *lane) startRunner(ctx context.Context, m job.Model) error {
	l.log.Info("Starting sheep", "model", m.String())
	l.setRunner(nil, m)
	l.mu.Lock()
	l.told = ""
	l.mu.Unlock()
	if err := l.sheep.Load(ctx, m, l.observe); err != nil {
		l.show("")
		return err
	}
	if err := l.prepare(ctx); err != nil {
		l.show("")
		return err
	}
	return l.launch(ctx, m)
}

// launch calls Run, which starts a runner or attaches to the one found by
// Recover.
func (l *lane) launch(ctx context.Context, m job.Model) error {
	// A runner outlives the job it was started for: its context is its own, and
	// ends with stopRunner.
	life, cancel := context.WithCancel(context.Background())
	r := &runner{
		model: m, began: time.Now(), cancel: cancel,
		answers: make(chan messenger.Answer, messenger.MaxKept+1), done: make(chan struct{}),
	}
	started := make(chan struct{}, 1)
	l.running.Go(func() {
		defer close(r.done)
		r.err = l.sheep.Run(life, func(e runtime.Event) {
			if e.Stage == runtime.Starting {
				l.hasDevices(m, e.PID)
				select {
				case started <- struct{}{}:
				default:
				}
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
	r.cancel()
	for range r.answers { // what comes now is not wanted: see run
	}
	<-r.done
	l.runner = nil
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
	l.runner = nil
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
	}
	if r.err == nil {
		return fmt.Errorf("runner ended without a cause")
	}
	return r.err
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
	if err := l.startRunner(l.open, m); err != nil && l.open.Err() == nil {
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
