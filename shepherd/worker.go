package shepherd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/internal/crashpoint"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/storage"
)

// diedMessage is the original shepherd's message for a runner that ended during its job.
const diedMessage = "Sheep container died without notice"

// Causes for stopping an attempt when a time limit of its job expires.
var (
	errDeadline    = errors.New("the job's deadline has passed")
	errLoadTimeout = errors.New("load_timeout")
	errRunTimeout  = errors.New("run_timeout")
)

// worker gives a lane's runner one job after another.
type worker struct {
	lane       *lane
	pulse      pulse
	supervisor *supervisor
	preloader  *preloader
	handover   handover
	idleSince  time.Time
	loading    sync.Mutex                      // held by the caller of lane.load
	found      *adoption                       // found by recover, adopted by run
	loads      chan func(feed context.Context) // loads of models that an operator requested
}

func newWorker(l *lane) *worker {
	return &worker{lane: l, supervisor: &supervisor{lane: l}, preloader: newPreloader(l.Preload), loads: make(chan func(feed context.Context))}
}

// run gives the runner jobs until feed ends, and then stops the runner or leaves it up. When
// work ends, running jobs are handed back.
func (w *worker) run(feed, work context.Context) {
	defer w.pulse.waits()
	defer w.shutDown()
	w.pulse.works()
	if left := w.adopt(work); left {
		return
	}
	for {
		if w.lane.state.end() {
			w.idleSince = time.Now()
		}
		s := w.supervisor
		w.preloader.look(s.runner != nil)
		var ended <-chan struct{}
		var again, preload <-chan time.Time
		var yield <-chan struct{}
		if s.runner != nil {
			ended, yield = s.runner.done, w.lane.share.yield()
		} else if wait, model, ok := s.crashes.pending(time.Now()); ok && !s.crashes.deferred && !w.lane.state.isDrained() {
			w.lane.state.show("crashed; starting again with " + model.String() + " in " + wait.Round(time.Millisecond).String())
			again = time.After(wait)
		} else if due := w.preloader.due; !due.IsZero() && !w.lane.state.isDrained() {
			preload = time.After(time.Until(due))
		}
		if closed(feed.Done()) {
			return
		}
		if closed(ended) { // check before giving it a job
			s.lostIdle()
			continue
		}
		if !w.lane.feeder.offering() {
			w.handover.end()
		}
		idle, stopIdle := w.idleTooLong()
		w.pulse.waits()
		select {
		case <-feed.Done():
			stopIdle()
			w.pulse.works()
			return
		case a := <-w.lane.feeder.offers:
			w.pulse.works()
			if left := w.process(feed, work, a); left {
				stopIdle()
				return // the runner keeps its job for the next daemon
			}
		case <-ended:
			w.pulse.works()
			w.handover.end()
			s.lostIdle()
		case <-w.lane.state.resumed:
		case load := <-w.loads: // the pulse stays in waits: a pull may take long
			w.handover.end()
			load(feed)
			w.pulse.works()
		case <-yield:
			w.pulse.works()
			w.handover.end()
			w.unload("its devices are needed for another sheep")
		case <-idle:
			w.pulse.works()
			w.unload("no job for " + w.lane.IdleTimeout.String())
		case <-again:
			w.pulse.works()
			select {
			case a := <-w.lane.feeder.offers: // a job takes precedence
				if left := w.process(feed, work, a); left {
					stopIdle()
					return
				}
			default:
				s.revive(feed)
			}
		case <-preload:
			select {
			case a := <-w.lane.feeder.offers:
				w.pulse.works()
				if left := w.process(feed, work, a); left {
					stopIdle()
					return
				}
			default: // the pulse stays in waits: a pull may take long
				w.preload(feed)
			}
			w.pulse.works()
		}
		stopIdle()
	}
}

// closed reports whether c, on which nothing is sent, is closed.
func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// idleTooLong returns a channel that receives when the runner has been idle for IdleTimeout.
func (w *worker) idleTooLong() (_ <-chan time.Time, stop func()) {
	if w.lane.IdleTimeout == 0 || w.supervisor.runner == nil {
		return nil, func() {}
	}
	timer := time.NewTimer(time.Until(w.idleSince.Add(w.lane.IdleTimeout)))
	return timer.C, func() { timer.Stop() }
}

// unload stops the idle runner. If the offered attempt waits for devices, it wakes idle
// sheep, which may run its job sooner.
func (w *worker) unload(why string) {
	w.supervisor.unload(why)
	w.preloader.unloaded()
	if w.lane.feeder.waitsForDevices() {
		w.lane.flock.wakeFirst(w.lane)
	}
}

// shutDown ends the worker: it stops the runner, or leaves it to the next daemon.
func (w *worker) shutDown() {
	w.handover.end()
	s := w.supervisor
	leave := s.runner != nil && w.lane.isLeaving()
	if !leave {
		s.stop()
	}
	w.pulse.waits()
	w.lane.concluder.wait() // answers are acknowledged on the connection, which leave closes
	w.pulse.works()
	if leave {
		s.leave()
	}
}

// process runs an attempt's job and ends the attempt. left is set if it has not ended and is
// left to the next daemon.
func (w *worker) process(feed, work context.Context, a *attempt) (left bool) {
	w.lane.state.begin(a)
	if !a.take() {
		return false
	}
	return w.conclude(work, a, func(ctx context.Context) (ending, bool) { return w.try(feed, work, ctx, a) })
}

// conclude calls run and ends the attempt with its result. run's context ends when the
// attempt is stopped. left is set if the attempt has not ended and is left to the next
// daemon.
func (w *worker) conclude(work context.Context, a *attempt, run func(ctx context.Context) (_ ending, left bool)) (left bool) {
	end, left := w.watched(work, a, run)
	if left {
		w.lane.log.Info("Job continues while the daemon is down", "job", a.ID)
		a.yield()
		w.lane.concluder.leave(a)
		return true
	}
	a.endLog(w.lane)
	var over <-chan struct{}
	if a.answered {
		over = w.handover.begin()
	}
	w.pulse.waits() // possibly for storage
	w.lane.concluder.endAfter(work, over, a, end)
	w.pulse.works()
	return false
}

// watched calls run while it watches the attempt's deadline and devices.
func (w *worker) watched(work context.Context, a *attempt, run func(ctx context.Context) (_ ending, left bool)) (_ ending, left bool) {
	l := w.lane
	ctx, release := a.stopper.bind(work)
	defer release()
	if !a.Deadline.IsZero() {
		defer time.AfterFunc(l.clock.until(a.Deadline), func() { a.stopper.stop(errDeadline) }).Stop()
	}
	if l.share.has() {
		watching := make(chan struct{})
		l.life.running.Go(func() {
			defer close(watching)
			l.share.watch(ctx, a)
		})
		defer func() { release(); <-watching }()
	}
	return run(ctx)
}

// try gives the job to the runner and returns how the attempt ended. left is set if it has
// not ended and is left to the next daemon. ctx ends when the attempt is stopped.
func (w *worker) try(feed, work, ctx context.Context, a *attempt) (end ending, left bool) {
	l := w.lane
	defer w.handover.end()
	if r := w.supervisor.runner; r == nil || r.model != a.Model || !closed(a.prepared) {
		w.handover.end() // loading a model or staging inputs may take long
	}
	late := w.startsLate(a)
	if a.ahead && !late {
		if end, ok := w.start(ctx, a); !ok {
			return end, false
		}
	}
	l.passed(a, a.Model, PhaseQueued, a.EnqueuedAt, nil)

	for unsent := 0; ; unsent++ {
		if end, ok := w.ready(feed, ctx, a); !ok {
			return end, false
		}
		if feed.Err() != nil { // the feed ended at the last moment
			return stopped(context.Cause(feed)), false
		}
		err := w.forgetEarlier(ctx, a)
		if err == nil {
			if end, ok := w.place(ctx, a); !ok {
				return end, false
			}
			w.dropAnswers(work)
			l.logSending(a)
			a.sent = time.Now()
			if a.ahead && !w.supervisor.freed.IsZero() {
				l.observer.Waited(l.Name, a.sent.Sub(w.supervisor.freed))
			}
			err = w.supervisor.runner.conn.Send(ctx, messenger.Input{JobID: a.ID, IODataRoot: a.dir.ioDataRoot(), Deadline: a.due()})
		}
		if err == nil {
			break
		}
		if !errors.Is(err, messenger.ErrClosed) {
			w.supervisor.stop()
			if ctx.Err() != nil {
				return stopped(context.Cause(ctx)), false
			}
			return exitEnding(&runtime.Exit{Code: -1, Lost: true, Detail: fmt.Sprintf("the job could not be given to it: %v", err)}), false
		}
		why := w.lostUnsent(work)
		var exit *runtime.Exit
		if unsent == maxUnsent || !errors.As(why, &exit) {
			return w.loadEnding(a, why), false
		}
		l.log.Warn("Sheep died before it was given the job", "job", a.ID, "model", a.Model.String(), "error", why)
		if late { // loading the model again may take long
			late = false
			if end, ok := w.start(ctx, a); !ok {
				return end, false
			}
		}
	}
	crashpoint.Reached(crashpoint.Sent)
	w.handover.end()
	if late {
		w.startBehind(work, a)
	}
	l.share.begin(a.ID, l.clock.now())
	return w.await(work, ctx, a)
}

// startsLate reports whether the runner is given the attempt's job without waiting until the
// ledger has its start, so that the runner is not idle during that. The claim is durable. If
// the daemon is killed before the start is, the next one learns from the attempt's directory
// and from the runner that the runner had the job; see recover. An answer that the runner
// keeps from an earlier attempt could be mistaken for the answer to this one then, so only
// the first attempt of a job starts late.
func (w *worker) startsLate(a *attempt) bool {
	r := w.supervisor.runner
	return a.ahead && a.Run == 1 && a.Attempt == 1 && !w.lane.concluder.unacknowledged.has(a.ID) &&
		r != nil && r.model == a.Model && closed(a.prepared)
}

// start records in the ledger that the attempt has started. If the attempt must not go on, it
// returns its ending.
func (w *worker) start(ctx context.Context, a *attempt) (_ ending, ok bool) {
	w.pulse.waits() // possibly for room on the ledger's disk
	err := w.lane.recordStart(ctx, a)
	w.pulse.works()
	switch {
	case ctx.Err() != nil:
		return stopped(context.Cause(ctx)), false
	case err != nil:
		return stopped(err), false
	}
	return ending{}, true
}

// startBehind is start for an attempt whose job the runner has already: it does not wait for
// the ledger, and stops the attempt if it must not go on.
func (w *worker) startBehind(work context.Context, a *attempt) {
	a.starting = make(chan struct{})
	w.lane.life.running.Go(func() {
		defer close(a.starting)
		crashpoint.Reached(crashpoint.SentUnstarted)
		ctx, release := grace(work)
		defer release()
		err := w.lane.recordStart(ctx, a)
		switch {
		case err == nil:
		case ctx.Err() != nil: // the lane ends: settle records it
			a.unstarted = true
		default:
			a.stopper.stop(err)
		}
	})
}

// recordStart starts the attempt in the ledger. The error is errCancelled if the job's cancel
// was requested.
func (l *lane) recordStart(ctx context.Context, a *attempt) error {
	rec, err := l.retryLedger(ctx, a.ID, func() (job.Record, error) { return l.ledger.Start(ctx, a.ID, a.Token) })
	switch {
	case err != nil:
		return err
	case rec.Cancelling:
		return errCancelled
	}
	crashpoint.Reached(crashpoint.Started)
	return nil
}

// maxUnsent is how often an attempt starts a runner anew that ended before it was given the
// job. The job is not the cause, but its model may be.
const maxUnsent = 2

// lostUnsent records that the runner ended before it was given the job, and returns why.
func (w *worker) lostUnsent(work context.Context) error {
	for answer := range w.supervisor.runner.answers {
		w.answered(work, answer)
	}
	return w.supervisor.lost()
}

// ready loads the model and waits until the inputs are staged. On failure it returns the
// attempt's ending. It also ends with feed: a drain does not wait for a job that
// the runner does not have yet.
func (w *worker) ready(feed, ctx context.Context, a *attempt) (ending, bool) {
	l := w.lane
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(errOver)
	defer context.AfterFunc(feed, func() { giveUp(context.Cause(feed)) })()
	select {
	case <-a.prepared:
		if a.trouble != nil { // do not load its model
			return *a.trouble, false
		}
	default:
	}
	if l.peers != nil { // another node may have the model: keep the loaded one
		if err := l.cannot(a.Model); err != nil {
			return ending{cause: job.CauseNotHere, reason: fmt.Sprintf("Failed to start sheep for this job (%s)", reasonOf(err))}, false
		}
	}
	loading := w.startLoadTimer(a, giveUp)
	w.pulse.waits() // pulling an image may take long
	err := w.supervisor.load(ctx, a)
	w.pulse.works()
	loading()
	if err != nil {
		if ctx.Err() != nil {
			return w.stoppedEnding(ctx, a, context.Cause(ctx)), false
		}
		return w.loadEnding(a, err), false
	}
	w.pulse.waits()
	select {
	case <-a.prepared:
	case <-ctx.Done():
	}
	w.pulse.works()
	if ctx.Err() != nil {
		return stopped(context.Cause(ctx)), false
	}
	if a.trouble != nil {
		return *a.trouble, false
	}
	return ending{}, true
}

// place moves the attempt's directory to where the runner finds it. On failure it returns the
// attempt's ending.
func (w *worker) place(ctx context.Context, a *attempt) (_ ending, ok bool) {
	l := w.lane
	if a.dir.shown { // to a runner that has ended
		return ending{}, true
	}
	user, err := l.owner(ctx, a.Model)
	if err != nil {
		return w.loadEnding(a, err), false
	}
	if err := errors.Join(a.dir.writeTrace(l.traceOf(a)), a.dir.show(user)); err != nil {
		return *l.prepareEnding(ctx, a, err), false
	}
	crashpoint.Reached(crashpoint.DirectoryPlaced)
	return ending{}, true
}

// startLoadTimer calls giveUp when loading takes longer than the job's load_timeout from now
// on. stop stops the timer.
func (w *worker) startLoadTimer(a *attempt, giveUp context.CancelCauseFunc) (stop func()) {
	a.loadBegan = time.Now()
	if a.limits.load <= 0 {
		return func() {}
	}
	timer := time.AfterFunc(a.limits.load, func() { giveUp(errLoadTimeout) })
	return func() { timer.Stop() }
}

// await waits for the answer to the job that the runner has.
func (w *worker) await(work, ctx context.Context, a *attempt) (_ ending, left bool) {
	l := w.lane
	s := w.supervisor
	defer w.pulse.works()
	began := a.sent
	connected := s.runner.connected
	var loadOver, runOver <-chan time.Time
	if a.limits.load > 0 {
		timer := time.NewTimer(a.limits.load - time.Since(a.loadBegan))
		defer timer.Stop()
		loadOver = timer.C
	}
	ran := func(err error) { a.phases.Run = l.passed(a, a.Model, PhaseRun, began, err) }
	receive := func(answer messenger.Answer, ok bool) (_ ending, over bool) {
		w.pulse.works()
		switch {
		case !ok:
			why := s.lost()
			ran(why)
			return w.loadEnding(a, why), true
		case answer.JobID == a.ID:
			crashpoint.Reached(crashpoint.Answered)
			s.crashes = crashes{} // a runner that answers is not in a crash loop
			s.freed = time.Now()
			ran(failed(answer.Failure))
			return answered(a, answer, s.runner.conn), true
		}
		w.answered(work, answer)
		return ending{}, false
	}
	for {
		if closed(connected) { // the runner accepts jobs: run_timeout counts from now on, not load_timeout
			connected, loadOver = nil, nil
			if now := time.Now(); now.After(began) && !a.adopted {
				began = now
			}
			l.state.running(a.ID, began.UTC())
			if a.limits.run > 0 {
				timer := time.NewTimer(a.limits.run - time.Since(began))
				defer timer.Stop()
				runOver = timer.C
			}
		}
		select { // an answer takes precedence over all other events
		case answer, ok := <-s.runner.answers:
			if end, over := receive(answer, ok); over {
				return end, false
			}
			continue
		default:
		}
		w.pulse.waits()
		select {
		case answer, ok := <-s.runner.answers:
			if end, over := receive(answer, ok); over {
				return end, false
			}
		case <-connected:
		case <-loadOver:
			a.stopper.stop(errLoadTimeout)
		case <-runOver:
			a.stopper.stop(errRunTimeout)
		case <-l.life.leaving:
			return ending{}, true // the sheep keeps the job: the next daemon continues it
		case <-ctx.Done():
			w.pulse.works()
			why := context.Cause(ctx)
			end := w.stoppedEnding(ctx, a, why)
			dropped := errors.Is(why, errCancelled) && w.dropJob(work, a)
			ran(why)
			if !dropped {
				s.stop() // the runner cannot drop a job
			}
			return end, false
		}
	}
}

// dropTime is how long a runner may take to answer a job that it was told to drop.
const dropTime = 10 * time.Second

// dropJob tells the runner to drop the attempt's job, if it supports that, and reports whether
// it has: then the runner keeps its model and is free for another job.
func (w *worker) dropJob(work context.Context, a *attempt) bool {
	r := w.supervisor.runner
	c, ok := r.conn.(messenger.Canceller)
	if !ok {
		return false
	}
	ctx, cancel := context.WithTimeout(work, dropTime)
	defer cancel()
	if c.Cancel(ctx, a.ID) != nil {
		return false
	}
	for {
		select {
		case answer, ok := <-r.answers:
			if !ok {
				return false
			}
			if answer.JobID == a.ID {
				a.conn, a.log = r.conn, answer.Log // the job is cancelled regardless of the answer
				w.supervisor.freed = time.Now()
				return true
			}
			w.answered(work, answer)
		case <-ctx.Done():
			return false
		}
	}
}

// stoppedEnding returns the ending of a stopped attempt, with the runner's last detail and log
// lines. It is called before the runner is stopped.
func (w *worker) stoppedEnding(ctx context.Context, a *attempt, why error) ending {
	l := w.lane
	end := stopped(why)
	var what string
	var parts []string
	switch {
	case errors.Is(why, errLoadTimeout):
		what = "Failed to start sheep for this job"
		parts = append(parts, fmt.Sprintf("the model was not loaded within its load_timeout of %s", a.limits.load))
	case errors.Is(why, errRunTimeout):
		what = "The runner was stopped"
		parts = append(parts, fmt.Sprintf("it had this job for longer than its run_timeout of %s", a.limits.run))
	default:
		return end
	}
	for _, detail := range []string{l.state.view().Detail, w.quoteLog(context.WithoutCancel(ctx), a, errors.Is(why, errLoadTimeout))} {
		if detail != "" {
			parts = append(parts, detail)
		}
	}
	end.reason = fmt.Sprintf("%s (%s)", what, strings.Join(parts, "; "))
	return end
}

// answered records the runner's answer and returns the attempt's ending.
func answered(a *attempt, answer messenger.Answer, conn messenger.Conn) ending {
	a.answered, a.conn, a.log, a.warnings = true, conn, answer.Log, answer.Warnings
	if answer.Failure == nil {
		return ending{cause: job.CauseDone}
	}
	return ending{cause: job.CauseError, reason: answer.Failure.Message, failure: answer.Failure}
}

// answered handles an answer to a job other than the current one: a job from before the
// daemon's restart is ended; an answer to an unknown job is dropped.
func (w *worker) answered(work context.Context, answer messenger.Answer) {
	conn := w.supervisor.runner.conn
	if a := w.found.take(answer.JobID); a != nil {
		w.lane.concluder.end(work, a, answered(a, answer, conn))
		return
	}
	w.lane.log.Warn("Dropping an answer to a job that this sheep does not have", "job", answer.JobID)
	acknowledge(w.lane, conn, answer.JobID)
}

// forgetEarlier lets the runner forget the answer to an earlier attempt of the job, or to a
// removed job with its id, which has ended: a runner that keeps it would not run the job. It is
// called before the attempt's directory is in its place, because a daemon that starts again
// takes the answer of a runner for that of the attempt whose directory it finds there.
func (w *worker) forgetEarlier(ctx context.Context, a *attempt) error {
	if a.Attempt == 1 && a.Run == 1 && !w.lane.concluder.unacknowledged.has(a.ID) {
		return nil
	}
	if err := w.supervisor.runner.conn.Ack(ctx, a.ID); err != nil {
		return fmt.Errorf("its answer to an earlier attempt cannot be acknowledged: %w", err)
	}
	w.lane.concluder.unacknowledged.remove(a.ID)
	return nil
}

// dropAnswers handles answers that arrived since the runner's last job: an answer that is
// sent twice must not count for another attempt of the same job.
func (w *worker) dropAnswers(work context.Context) {
	for {
		select {
		case answer, ok := <-w.supervisor.runner.answers:
			if !ok {
				return // the runner has ended, which Send reports
			}
			w.answered(work, answer)
		default:
			return
		}
	}
}

// failed returns the failure as an error; nil for none.
func failed(f *job.Failure) error {
	if f == nil {
		return nil
	}
	return f
}

// loadEnding returns the ending of an attempt whose model could not be loaded, or whose
// runner ended.
func (w *worker) loadEnding(a *attempt, why error) ending {
	l := w.lane
	var load *runtime.LoadError
	var exit *runtime.Exit
	var rests *restsError
	switch {
	case errors.As(why, &rests):
		return ending{cause: job.CauseUnavailable, reason: rests.reason}
	case errors.Is(why, runtime.ErrDetached):
		return ending{cause: job.CauseSheep, reason: fmt.Sprintf("another daemon has taken over the runner of sheep %s: end one of the two", l.Name)}
	case errors.As(why, &exit):
		return exitEnding(exit)
	case errors.As(why, &load):
		reason := fmt.Sprintf("Failed to start sheep for this job (%s)", load.Message)
		switch {
		case errdefs.IsNotFound(load):
			l.known.miss(a.Model, load, time.Now())
			return ending{cause: job.CauseNotHere, reason: reason}
		case errdefs.IsUnavailable(load):
			return ending{cause: job.CauseUnavailable, reason: reason}
		case errdefs.IsResourceExhausted(load), isMachineFault(load):
			return ending{cause: job.CauseSheep, reason: reason}
		case l.cannot(a.Model) != nil:
			return ending{cause: job.CauseNotHere, reason: reason}
		}
		return ending{cause: job.CauseModel, reason: reason}
	case errors.Is(why, storage.ErrWorkDir), isMachineFault(why):
		return ending{cause: job.CauseSheep, reason: fmt.Sprintf("sheep %s cannot run jobs: %v", l.Name, why)}
	}
	return ending{cause: job.CauseModel, reason: fmt.Sprintf("Failed to start sheep for this job (%s)", why)}
}

// exitEnding returns the ending of an attempt whose runner ended.
func exitEnding(exit *runtime.Exit) ending {
	end := ending{cause: job.CauseRunnerDied, reason: fmt.Sprintf("%s (%s)", diedMessage, exit)}
	if exit.Lost {
		end.cause = job.CauseLost
	}
	return end
}
