package shepherd

import (
	"cmp"
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
)

// supervisor manages a lane's runner: it starts one with the right model, restarts it after
// a crash, and stops it. Only the lane's worker uses it.
type supervisor struct {
	lane    *lane
	runner  *runner // nil when none is up
	crashes crashes
	span    string    // the log of the runner that was started last, see runtime.JobLogger
	freed   time.Time // when the runner answered its last job; zero if it had none
}

// runner is one run of a sheep's runner, from the call of Sheep.Run to its return.
type runner struct {
	model      job.Model
	began      time.Time
	conn       messenger.Conn
	cancel     context.CancelFunc
	answers    chan messenger.Answer // closed after the last answer
	eventsDone chan struct{}         // closed after the last event
	connected  chan struct{}         // closed when the runner accepts jobs
	done       chan struct{}         // closed when Run has returned, as err says
	err        error
	loaded     func(error) // records the end of loading; only the first call counts
}

// load makes sure that a runner with the attempt's model is up. The error is
// *runtime.LoadError or *runtime.Exit if it cannot be started, or the cause of ctx's end.
func (s *supervisor) load(ctx context.Context, a *attempt) error {
	l := s.lane
	m := a.Model
	began := time.Now()
	if s.runner != nil && closed(s.runner.done) {
		s.lostIdle()
	}
	if s.runner != nil {
		if s.runner.model == m {
			return l.mayLoad(m) // the rules may have changed since
		}
		l.logRequires(a)
		if err := s.fetch(ctx, a); err != nil {
			return err
		}
		l.happened(RunnerSwitched)
		s.stop()
	} else {
		l.logRequires(a)
	}
	if wait, model, ok := s.crashes.pending(time.Now()); ok && model == m {
		l.state.show("crashed; starting again with " + m.String() + " in " + wait.Round(time.Millisecond).String())
		if sleep(ctx, wait) != nil {
			return context.Cause(ctx)
		}
	} else if ok {
		s.crashes = crashes{}
	}
	return s.start(ctx, m, a, began)
}

// change makes sure that a runner with the model is up while the sheep has no job. The
// errors are those of load.
func (s *supervisor) change(ctx context.Context, m job.Model) error {
	l := s.lane
	if s.runner != nil && closed(s.runner.done) {
		s.lostIdle()
	}
	if s.runner != nil {
		if s.runner.model == m {
			return l.mayLoad(m)
		}
		if f, ok := l.Sheep.(runtime.Prefetcher); ok && l.mayLoad(m) == nil {
			if err := f.Prefetch(ctx, m, l.observe); ctx.Err() != nil {
				return context.Cause(ctx)
			} else if err != nil { // keep the loaded model
				l.state.show("")
				return err
			}
		}
		l.happened(RunnerSwitched)
		s.stop()
	}
	return s.start(ctx, m, nil, time.Now())
}

// fetch fetches the attempt's model while the runner stays up with another one. On an error
// the model cannot be loaded now, and the loaded one is kept.
func (s *supervisor) fetch(ctx context.Context, a *attempt) error {
	l := s.lane
	if left, why := l.modelRests.left(a.Model, time.Now()); left > 0 {
		return &restsError{why}
	}
	f, ok := l.Sheep.(runtime.Prefetcher)
	if !ok || a.fetched.Load() || l.mayLoad(a.Model) != nil { // Load reports what is wrong
		return nil
	}
	err := f.Prefetch(ctx, a.Model, l.observe)
	l.state.show("")
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errdefs.IsUnavailable(err):
		return err
	}
	return nil
}

// start loads the model and starts a runner with it, for an attempt unless a is nil. The
// duration of loading counts from began. It returns when the runner has been started, or
// could not be.
func (s *supervisor) start(ctx context.Context, m job.Model, a *attempt, began time.Time) error {
	l := s.lane
	if err := l.mayLoad(m); err != nil {
		return err
	}
	l.logStarting(m)
	s.span = ""
	l.state.runner(m, false)
	l.state.newStage("", time.Time{})
	err := l.Sheep.Load(ctx, m, l.observe)
	pulled := l.passed(a, m, PhasePull, began, err)
	if err != nil {
		l.state.show("")
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	l.state.show("") // view shows the devices' state meanwhile
	if err := l.share.prepare(ctx); err != nil {
		return err
	}
	starting := time.Now()
	var once sync.Once
	tell := func(err error) {
		once.Do(func() {
			took := pulled + l.passed(a, m, PhaseLoad, starting, err)
			if err == nil {
				l.turns.loaded(m, took, time.Now())
			}
			if a != nil {
				a.loadTook(took)
			}
		})
	}
	if err := s.launch(ctx, m, l.traceOf(a), tell); err != nil {
		tell(err)
		return err
	}
	l.happened(RunnerStarted)
	return nil
}

// launch calls Run, which starts a runner or attaches to the one that Recover found. It
// calls loaded when the runner accepts jobs, or has ended before that.
func (s *supervisor) launch(ctx context.Context, m job.Model, trace job.Trace, loaded func(error)) error {
	l := s.lane
	// A runner outlives the job it was started for, so it has a context of its own, which
	// stop cancels.
	life, cancel := context.WithCancel(runtime.WithTrace(context.Background(), trace))
	r := &runner{
		model: m, began: time.Now(), cancel: cancel, loaded: loaded,
		answers:   make(chan messenger.Answer, messenger.MaxKept+1),
		connected: make(chan struct{}), done: make(chan struct{}), eventsDone: make(chan struct{}),
	}
	if j, ok := l.Sheep.(runtime.JobLogger); ok {
		s.span = j.BeginSpan()
	}
	started := make(chan struct{}, 1)
	connected := sync.OnceFunc(func() { close(r.connected) })
	l.life.running.Go(func() {
		defer close(r.done)
		r.err = l.Sheep.Run(life, func(e runtime.Event) {
			switch e.Stage {
			case runtime.Starting:
				l.share.started(m, e.PID)
				select {
				case started <- struct{}{}:
				default:
				}
			case runtime.Connected:
				loaded(nil)
				connected()
			}
			l.observe(e)
		})
		if !errors.Is(r.err, runtime.ErrDetached) {
			l.share.stopped()
		}
	})
	select {
	case <-r.done:
		cancel()
		l.state.show("")
		return s.crashed(r)
	case <-ctx.Done():
		cancel()
		<-r.done
		l.state.show("")
		return context.Cause(ctx)
	case <-started:
	}
	r.conn = l.Sheep.Conn()
	l.life.running.Go(func() {
		defer close(r.answers)
		for {
			a, err := r.conn.Recv(life)
			if err != nil {
				return
			}
			r.answers <- a
		}
	})
	l.life.running.Go(func() {
		defer close(r.eventsDone)
		l.receiveEvents(life, r.conn)
	})
	s.runner = r
	s.crashes.until = time.Time{}
	l.state.runner(m, true)
	return nil
}

// receiveEvents records the runner's events until it has ended.
func (l *lane) receiveEvents(ctx context.Context, conn messenger.Conn) {
	source, ok := conn.(messenger.EventSource)
	if !ok {
		return
	}
	for {
		e, err := source.RecvEvent(ctx)
		if err != nil {
			return
		}
		if e.Kind == messenger.EventWarning {
			l.log.Warn("The runner reported an incident", "job", e.JobID, "what", e.Text)
		}
		if event, ok := l.state.tell(e); ok {
			event.Node, event.Sheep = l.node, l.Name
			l.hub.publish(event)
		}
	}
}

// observe records the progress of loading a model and starting a runner.
func (l *lane) observe(e runtime.Event) {
	switch e.Stage {
	case runtime.Connected:
		l.state.show("")
		l.log.Debug("Runner accepts jobs")
	case runtime.Starting:
		l.state.show(cmp.Or(e.Text, "starting"))
		l.log.Debug("Runner started", "pid", e.PID)
	default:
		l.state.showLoading(e)
		if l.state.newStage(e.Stage, time.Now()) {
			l.log.Info("Loading the model", "stage", string(e.Stage), "progress", e.Text)
		}
	}
}

// stop stops the runner and waits until nothing of it is left.
func (s *supervisor) stop() {
	r := s.runner
	if r == nil {
		return
	}
	s.lane.logSlaughter(r)
	r.cancel()
	for range r.answers { // late answers are ignored: the attempt has ended otherwise
	}
	<-r.done
	<-r.eventsDone
	r.loaded(context.Canceled)
	s.gone()
}

// gone records that no runner is up.
func (s *supervisor) gone() {
	s.runner, s.freed = nil, time.Time{}
	s.lane.state.runner(job.Model{}, false)
	s.lane.state.show("")
}

// leave detaches from the runner and leaves it up, with its job, for the next daemon.
func (s *supervisor) leave() {
	r := s.runner
	s.lane.Sheep.Detach()
	for range r.answers { // unacknowledged answers are kept for the next daemon
	}
	<-r.done
	r.cancel()
	<-r.eventsDone
	s.runner = nil
	s.lane.log.Info("Leaving the sheep up", "model", r.model.String())
}

// lost records that the runner has ended, and returns why.
func (s *supervisor) lost() error {
	r := s.runner
	for range r.answers {
	}
	<-r.done
	r.cancel()
	<-r.eventsDone
	s.gone()
	return s.crashed(r)
}

// lostIdle records that the runner ended while it had no job.
func (s *supervisor) lostIdle() {
	m := s.runner.model
	s.lane.log.Warn("Sheep died without notice", "model", m.String(), "error", s.lost())
}

// crashed records an unrequested end of the runner and returns why it ended.
func (s *supervisor) crashed(r *runner) error {
	var load *runtime.LoadError
	if !errors.As(r.err, &load) && !errors.Is(r.err, runtime.ErrDetached) {
		s.crashes.note(r.model, time.Since(r.began), time.Now())
		s.lane.happened(RunnerCrashed)
	}
	err := r.err
	if err == nil {
		err = errors.New("runner ended without a cause")
	}
	r.loaded(err)
	return err
}

// revive restarts a crashed runner, so that its model is loaded when the next job arrives.
func (s *supervisor) revive(ctx context.Context) {
	l := s.lane
	_, m, _ := s.crashes.pending(time.Now())
	done, ok := l.share.hold()
	if !ok {
		s.crashes.deferred = true
		l.state.show("")
		return
	}
	defer done()
	l.state.revive(m)
	err := s.start(ctx, m, nil, time.Now())
	if err == nil {
		l.happened(RunnerRevived)
	} else if ctx.Err() == nil {
		l.log.Warn("Cannot restart the crashed runner", "model", m.String(), "error", err)
		var load *runtime.LoadError
		if errors.As(err, &load) {
			s.crashes = crashes{} // the next job that needs the model will report why
		} else if wait, _, ok := s.crashes.pending(time.Now()); ok && wait == 0 { // the runner did not even start
			s.crashes.note(m, 0, time.Now())
		}
	}
}

// unload stops the idle runner, which frees the resources of its model.
func (s *supervisor) unload(why string) {
	m := s.runner.model
	s.lane.log.Info("Unloading the model of an idle sheep", "model", m.String(), "why", why)
	s.lane.state.show("unloading " + m.String() + ": " + why)
	s.stop()
}

// crashes records which model's runner crashed last and when it may be restarted.
type crashes struct {
	model    job.Model
	backoff  runtime.Backoff
	until    time.Time // zero if there is nothing to restart
	deferred bool      // other sheep need the devices: only a job restarts the runner
}

func (c *crashes) note(m job.Model, up time.Duration, now time.Time) {
	if m != c.model || c.backoff == (runtime.Backoff{}) {
		*c = crashes{model: m, backoff: runtime.DefaultBackoff()}
	}
	c.until, c.deferred = now.Add(c.backoff.Failed(up)), false
}

// pending returns how long to wait before the crashed runner is restarted, and with which
// model.
func (c *crashes) pending(now time.Time) (time.Duration, job.Model, bool) {
	if c.until.IsZero() {
		return 0, job.Model{}, false
	}
	return max(c.until.Sub(now), 0), c.model, true
}

// quoteLog returns the last lines of the runner's output as one line: since its start if
// loading is set, otherwise since it was given the job. It is empty if no runner was
// started, or the sheep cannot separate the output of different runners.
func (w *worker) quoteLog(ctx context.Context, a *attempt, loading bool) string {
	l := w.lane
	span := w.supervisor.span
	if !loading {
		span = cmp.Or(l.state.span(a.ID, nil), span)
	}
	logger, ok := l.Sheep.(runtime.JobLogger)
	if !ok || span == "" {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, graceTime)
	defer cancel()
	lines := runtime.LastLines(ctx, logger, span)
	if len(lines) == 0 {
		return ""
	}
	return "last log lines: " + strings.Join(lines, " | ")
}
