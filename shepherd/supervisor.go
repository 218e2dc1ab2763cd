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

// supervisor sees to a lane's runner: that one with the right model is up, that it
// comes back after a crash, that it goes. Only the lane's worker uses it.
type supervisor struct {
	lane    *lane
	runner  *runner // nil when none is up
	crashes crashes
	span    string    // of the log of the runner that was started last, see runtime.JobLogger
	freed   time.Time // when the runner had answered its last job; zero where it has had none
}

// runner is one life of a sheep's runner, from Run's call to its return.
type runner struct {
	model     job.Model
	began     time.Time
	conn      messenger.Conn
	cancel    context.CancelFunc
	answers   chan messenger.Answer // closed when no more will come
	told      chan struct{}         // closed when no more events will come
	connected chan struct{}         // closed when it takes jobs
	done      chan struct{}         // closed when Run has returned, as err says
	err       error
	loaded    func(error) // tells of the end of loading, once
}

// load makes sure that a runner with the attempt's model is up. The error is
// *runtime.LoadError or *runtime.Exit when it cannot be, or the cause of ctx's
// end.
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
// error is that of load.
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
			} else if err != nil { // no reason to give up the model that is loaded
				l.state.show("")
				return err
			}
		}
		l.happened(RunnerSwitched)
		s.stop()
	}
	return s.start(ctx, m, nil, time.Now())
}

// fetch has what the attempt's model needs fetched while the runner, which has
// another model, stays up. An error says that it cannot be had now: there is no
// reason to give up the model that is loaded.
func (s *supervisor) fetch(ctx context.Context, a *attempt) error {
	l := s.lane
	if left, why := l.modelRests.left(a.Model, time.Now()); left > 0 {
		return &restsError{why}
	}
	f, ok := l.Sheep.(runtime.Prefetcher)
	if !ok || a.fetched.Load() || l.mayLoad(a.Model) != nil { // Load says what is wrong
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

// start loads the model and starts a runner with it, for the attempt given, if
// any. Loading counts from began on. It returns when the runner takes messages, or
// could not be started.
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
	l.state.show("") // the devices' state tells the rest
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

// launch calls Run, which starts a runner or attaches to the one found by
// Recover. It has loaded be told when the runner takes jobs, or that it never
// did.
func (s *supervisor) launch(ctx context.Context, m job.Model, trace job.Trace, loaded func(error)) error {
	l := s.lane
	// A runner outlives the job it was started for: its context is its own, and
	// ends with stop.
	life, cancel := context.WithCancel(runtime.WithTrace(context.Background(), trace))
	r := &runner{
		model: m, began: time.Now(), cancel: cancel, loaded: loaded,
		answers:   make(chan messenger.Answer, messenger.MaxKept+1),
		connected: make(chan struct{}), done: make(chan struct{}), told: make(chan struct{}),
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
		defer close(r.told)
		l.receiveEvents(life, r.conn)
	})
	s.runner = r
	s.crashes.until = time.Time{}
	l.state.runner(m, true)
	return nil
}

// receiveEvents notes what the runner tells of its work, until it has ended.
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
			l.log.Warn("Something happened to the runner", "job", e.JobID, "what", e.Text)
		}
		if told, ok := l.state.tell(e); ok {
			told.Node, told.Sheep = l.node, l.Name
			l.hub.publish(told)
		}
	}
}

// observe shows how far a load or a start is.
func (l *lane) observe(e runtime.Event) {
	switch e.Stage {
	case runtime.Connected:
		l.state.show("")
		l.log.Debug("Runner takes jobs")
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
	for range r.answers { // what comes now is not wanted: the attempt has another end
	}
	<-r.done
	<-r.told
	r.loaded(context.Canceled)
	s.gone()
}

// gone notes that no runner is up.
func (s *supervisor) gone() {
	s.runner, s.freed = nil, time.Time{}
	s.lane.state.runner(job.Model{}, false)
	s.lane.state.show("")
}

// leave leaves the runner up, with the job it has if any, for the next daemon.
func (s *supervisor) leave() {
	r := s.runner
	s.lane.Sheep.Detach()
	for range r.answers { // not acknowledged, so they are kept for the next daemon
	}
	<-r.done
	r.cancel()
	<-r.told
	s.runner = nil
	s.lane.log.Info("Leaving the sheep up", "model", r.model.String())
}

// lost notes that the runner has ended, and returns why.
func (s *supervisor) lost() error {
	r := s.runner
	for range r.answers {
	}
	<-r.done
	r.cancel()
	<-r.told
	s.gone()
	return s.crashed(r)
}

// lostIdle notes that the runner ended while it had no job.
func (s *supervisor) lostIdle() {
	m := s.runner.model
	s.lane.log.Warn("Sheep died without notice", "model", m.String(), "error", s.lost())
}

// crashed counts an end of the runner that nobody asked for and returns why it
// ended.
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

// revive starts a crashed runner again, so that its model is loaded when the
// next job comes.
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
		l.log.Warn("Cannot start the crashed sheep again", "model", m.String(), "error", err)
		var load *runtime.LoadError
		if errors.As(err, &load) {
			s.crashes = crashes{} // the next job that wants the model will say why
		} else if wait, _, ok := s.crashes.pending(time.Now()); ok && wait == 0 { // no runner came up that could crash
			s.crashes.note(m, 0, time.Now())
		}
	}
}

// unload stops the idle runner, and with it gives up what its model takes.
func (s *supervisor) unload(why string) {
	m := s.runner.model
	s.lane.log.Info("Unloading the model of an idle sheep", "model", m.String(), "why", why)
	s.lane.state.show("unloading " + m.String() + ": " + why)
	s.stop()
}

// crashes remembers which model's runner crashed last and when it may be started
// again.
type crashes struct {
	model    job.Model
	backoff  runtime.Backoff
	until    time.Time // zero: nothing is to be started again
	deferred bool      // others need the devices: only a job starts it again
}

func (c *crashes) note(m job.Model, up time.Duration, now time.Time) {
	if m != c.model || c.backoff == (runtime.Backoff{}) {
		*c = crashes{model: m, backoff: runtime.DefaultBackoff()}
	}
	c.until, c.deferred = now.Add(c.backoff.Failed(up)), false
}

// pending says how long to wait before the crashed runner is started again, and
// with which model.
func (c *crashes) pending(now time.Time) (time.Duration, job.Model, bool) {
	if c.until.IsZero() {
		return 0, job.Model{}, false
	}
	return max(c.until.Sub(now), 0), c.model, true
}

// quoteLog is the end of what the sheep's runner has written, in one line: since it
// was started or, where it has the job, during that. It is empty where no runner was
// started, or the sheep does not tell one runner's lines from another's.
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
