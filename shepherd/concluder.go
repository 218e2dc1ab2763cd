package shepherd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/crashpoint"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/storage"
)

// maxConcluding bounds how many attempts of a sheep may be concluded while its runner runs
// the next job. It must stay below messenger.MaxKept.
const maxConcluding = 4

// graceTime is how long an interrupted lane may still spend on nearly finished work: storing
// the results of an answered job, or a change of the ledger.
const graceTime = 5 * time.Second

// concluder ends attempts. Every attempt that this daemon ends goes through its end method.
type concluder struct {
	lane  *lane
	slots chan struct{} // holds one element per attempt being concluded
	// unacknowledged are the jobs whose answers the runner may still keep.
	unacknowledged set[job.ID]

	mu   sync.Mutex
	open int           // attempts being ended, including those that wait for a slot
	idle chan struct{} // closed when open becomes 0; nil if nobody waits for that
}

func newConcluder(l *lane) *concluder {
	return &concluder{lane: l, slots: make(chan struct{}, maxConcluding)}
}

// causeFenced ends an attempt that someone else has ended already: the ledger has the real
// cause.
const causeFenced job.Cause = "fenced"

// stopped returns the ending of an attempt whose contexts were cancelled with the cause why.
func stopped(why error) ending {
	var trouble *troubleError
	var device *deviceError
	switch {
	case errors.As(why, &trouble):
		return trouble.ending
	case errors.As(why, &device):
		return ending{cause: job.CauseDevice, reason: fmt.Sprintf("A device was lost under this job (%s)", device)}
	case errors.Is(why, errCancelled):
		return ending{cause: job.CauseCancelled, reason: errCancelled.Error()}
	case errors.Is(why, errFenced), errors.Is(why, ledger.ErrFenced), errors.Is(why, ledger.ErrFinal):
		return ending{cause: causeFenced, reason: why.Error()}
	case errors.Is(why, errTakenOver):
		return ending{cause: job.CauseTakenOver, reason: why.Error()}
	case errors.Is(why, errDeadline):
		return ending{cause: job.CauseDeadline, reason: "The job's deadline has passed"}
	case errors.Is(why, errLoadTimeout):
		return ending{cause: job.CauseLoadTimeout, reason: why.Error()}
	case errors.Is(why, errRunTimeout):
		return ending{cause: job.CauseRunTimeout, reason: why.Error()}
	}
	return ending{cause: job.CauseHandedBack, reason: why.Error()}
}

// end ends the attempt in the background. It blocks only while maxConcluding attempts are
// being ended already.
func (c *concluder) end(work context.Context, a *attempt, end ending) { c.endAfter(work, nil, a, end) }

// endAfter is end for an attempt whose results are not stored before over is closed; see
// handover. A nil over counts as closed.
func (c *concluder) endAfter(work context.Context, over <-chan struct{}, a *attempt, end ending) {
	l := c.lane
	at := l.clock.now()
	account := accountOf(l, a, end, at)
	a.yield()
	if a.conn != nil {
		l.concluder.unacknowledged.add(a.ID)
	}
	c.mu.Lock()
	c.open++
	c.mu.Unlock()
	c.slots <- struct{}{}
	l.life.running.Go(func() {
		defer c.ended()
		defer func() { <-c.slots }()
		waitOver(work, over)
		c.conclude(work, a, end, at, account)
	})
}

func (c *concluder) ended() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open--
	if c.open == 0 && c.idle != nil {
		close(c.idle)
		c.idle = nil
	}
}

// accountOf tells the devices that the sheep has finished the job, if the runner was given
// it, and returns their account of it.
func accountOf(l *lane, a *attempt, end ending, at time.Time) <-chan job.Account {
	if a.sent.IsZero() {
		return share{}.end(a.ID, at, false)
	}
	return l.share.end(a.ID, at, end.cause != job.CauseDone && !neutral(end.cause))
}

// neutral reports whether neither the job nor the devices can be blamed for this cause.
func neutral(c job.Cause) bool {
	return c == job.CauseCancelled || c == job.CauseHandedBack || c == job.CauseTakenOver ||
		c == job.CauseDaemonKilled || c == causeFenced
}

// wait returns when all attempts passed to end before the call have ended. The feeder may
// keep ending others meanwhile.
func (c *concluder) wait() {
	c.mu.Lock()
	if c.open == 0 {
		c.mu.Unlock()
		return
	}
	if c.idle == nil {
		c.idle = make(chan struct{})
	}
	idle := c.idle
	c.mu.Unlock()
	<-idle
}

func (c *concluder) conclude(work context.Context, a *attempt, end ending, at time.Time, account <-chan job.Account) {
	l := c.lane
	if !a.answered {
		a.stopper.stop(errOver)
	}
	<-a.prepared
	l.budget.free(a.reserved.Load())
	told := <-account

	ctx, release := grace(work)
	defer release()
	var collected storage.Collected
	if a.answered && (end.cause == job.CauseDone || end.cause == job.CauseError) {
		var err error
		collected, err = c.collect(ctx, a)
		if err != nil && ctx.Err() != nil && l.isLeaving() {
			l.log.Warn("Cannot store a job's results before the shutdown; the next daemon stores them", "job", a.ID, "error", err)
			c.leave(a)
			return
		}
		if err == nil {
			crashpoint.Reached(crashpoint.OutputsCollected)
		}
		end = c.afterCollect(ctx, a, end, err)
	}
	if told.Lost && end.cause != job.CauseDone && !neutral(end.cause) { // the devices may have caused it
		lost := stopped(&deviceError{errors.New(told.Cause)})
		lost.failure = cmp.Or(end.failure, &job.Failure{Message: end.reason})
		end = lost
	}
	if end.cause == causeFenced || errors.Is(context.Cause(work), errLeaseLost) {
		l.log.Info("Job is no longer this sheep's", "job", a.ID)
		c.release(a, true)
		return
	}
	if a.starting != nil {
		<-a.starting // the end of an attempt comes after its start
	}
	if err := c.settle(ctx, a, end, at, told, collected.Warnings); err != nil {
		// The lane ends, but the daemon may keep running and retry in the background.
		l.background(func(ctx context.Context) {
			if err := c.settle(ctx, a, end, at, told, collected.Warnings); err != nil {
				// The claim stays with this node, so the next daemon ends it.
				l.log.Error("Cannot end an attempt in the ledger; the next daemon ends it", "job", a.ID, "error", err)
				c.leave(a)
				return
			}
			c.release(a, true)
		})
		return
	}
	c.release(a, true)
}

// collect stores the outputs of a job that the runner has answered.
func (c *concluder) collect(ctx context.Context, a *attempt) (storage.Collected, error) {
	l := c.lane
	within, release := a.stopper.bind(ctx) // a cancel interrupts it
	defer release()
	began := time.Now()
	replace := a.Attempt > 1 || a.Run > 1 || a.adopted || a.staged.Outputs
	var collected storage.Collected
	err := l.persist(within, a.ID, "store the results", func() (err error) {
		collected, err = c.storeResults(within, a, replace)
		return err
	})
	a.phases.Collect = l.passed(a, a.Model, PhaseCollect, began, err)
	return collected, err
}

// afterCollect returns the ending of an answered job after its results were stored, or
// failed to be stored with err.
func (c *concluder) afterCollect(ctx context.Context, a *attempt, end ending, err error) ending {
	if err == nil {
		return end
	}
	if why := a.stopper.stopped(); why != nil {
		return stopped(why)
	}
	switch {
	case ctx.Err() != nil:
		return ending{cause: job.CauseHandedBack, reason: "the results could not be stored in time"}
	case errors.Is(err, storage.ErrWorkDir) && !errdefs.IsInvalidArgument(err), isMachineFault(err):
		return ending{cause: job.CauseSheep, reason: fmt.Sprintf("the results cannot be read on sheep %s: %v", c.lane.Name, err)}
	case end.cause == job.CauseError: // the runner's failure is more useful
		return end
	}
	return ending{cause: job.CauseOutputs, reason: fmt.Sprintf("The results of this job cannot be stored: %s", err)}
}

// settle ends the attempt in the ledger with judge's verdict. It returns an error only if
// the ledger could not make the change durable.
func (c *concluder) settle(ctx context.Context, a *attempt, end ending, at time.Time, told job.Account, warnings []string) error {
	l := c.lane
	if a.unstarted {
		if err := l.recordStart(ctx, a); err != nil && !errors.Is(err, errCancelled) && !errors.Is(err, ledger.ErrFenced) {
			return err
		}
		a.unstarted = false
	}
	f, err := c.facts(ctx, a, end)
	if err != nil {
		return err
	}
	v := judge(end, f)
	switch {
	case v.rests:
		pause := l.rests.fault(end.reason, time.Now())
		l.log.Warn("Sheep rests after a fault of its own", "job", a.ID, "pause", pause, "cause", string(end.cause), "error", end.reason)
	case v.modelRests:
		pause := l.modelRests.fault(a.Model, end.reason, time.Now())
		if named(a.Sheep) { // Slot.Except does not keep addressed jobs away
			v.notBefore = f.now.Add(pause)
		}
		l.log.Warn("Sheep does not try this model for a while", "job", a.ID, "model", a.Model.String(), "pause", pause, "cause", string(end.cause), "error", end.reason)
	case end.cause == job.CauseDone:
		l.rests.succeeded()
		l.modelRests.succeeded(a.Model)
		l.forecaster.note(a.Model, a.took())
	}
	if v.state == "" {
		rec, err := l.retryLedger(ctx, a.ID, func() (job.Record, error) {
			return l.ledger.Release(ctx, a.ID, a.Token, ledger.Return{
				Cause: end.cause, Reason: end.reason, Spent: v.spent, NotBefore: v.notBefore, Usage: told.Usage, Phases: a.took(), Log: a.log,
			})
		})
		if err == nil {
			crashpoint.Reached(crashpoint.Released)
		}
		switch {
		case err == nil && rec.State.Final():
			l.log.Info("Job has ended", "job", a.ID, "state", string(rec.State))
		case err == nil:
			l.log.Info("Job goes back to the queue", "job", a.ID, "attempt", a.Attempt, "cause", string(end.cause), "why", end.reason)
		case errors.Is(err, ledger.ErrFenced):
			l.log.Info("Job is no longer this sheep's", "job", a.ID)
		default:
			return err
		}
		return nil
	}

	outcome := ledger.Outcome{State: v.state, At: at, Cause: end.cause, Reason: end.reason, Usage: told.Usage, Phases: a.took(), Log: a.log, Warnings: slices.Concat(a.warnings, warnings)}
	if v.state == job.Failed {
		failure := cmp.Or(end.failure, &job.Failure{Message: end.reason})
		if v.message != "" {
			failure = &job.Failure{Message: v.message}
		} else if others := l.flock.asked(l, a.Model); end.cause == job.CauseNotHere && !named(a.Sheep) && others != "" {
			own := end.reason
			if err := l.cannot(a.Model); err != nil {
				own = reasonOf(err)
			}
			failure = &job.Failure{Message: fmt.Sprintf("Failed to start sheep for this job (no sheep can run it; `%s`: %s; %s)", l.Name, own, others)}
		}
		outcome.Failure = explain(failure, told)
		for _, warning := range a.warnings { // they may explain the failure
			outcome.Failure = explain(outcome.Failure, job.Account{Cause: warning})
		}
	}
	rec, err := l.retryLedger(ctx, a.ID, func() (job.Record, error) { return l.ledger.Finish(ctx, a.ID, a.Token, outcome) })
	if err == nil {
		crashpoint.Reached(crashpoint.Finished)
	}
	switch {
	case err == nil && rec.State == job.Cancelled:
		l.log.Info("Job cancelled", "job", a.ID)
	case err == nil:
		l.logEnd(a, end.cause == job.CauseError, rec.Failure)
	case errors.Is(err, ledger.ErrFenced), errors.Is(err, ledger.ErrFinal):
		l.log.Info("Job is no longer this sheep's", "job", a.ID)
	default:
		return err
	}
	return nil
}

// facts gathers judge's input. Earlier attempts are read only for causes that depend on
// them.
func (c *concluder) facts(ctx context.Context, a *attempt, end ending) (facts, error) {
	l := c.lane
	f := facts{
		now: l.clock.now(), spent: a.Spent, retries: a.limits.retries, pause: a.limits.pause,
		maxAttempts: l.maxAttempts, patience: a.limits.load, tries: a.Attempt,
	}
	if end.cause == job.CauseNotHere || end.cause == job.CauseDevice {
		f.elsewhere = !named(a.Sheep) && l.flock.elsewhere(l, a.Model, end.cause == job.CauseDevice)
	}
	if end.cause == job.CauseNotHere && !named(a.Sheep) && !f.elsewhere {
		_, err := l.retryLedger(ctx, a.ID, func() (_ job.Record, err error) {
			if l.placement.check(a.Model) != nil { // it waits for a node that the rules allow
				f.elsewhere = true
				return job.Record{}, nil
			}
			f.elsewhere, err = l.onPeer(ctx, a)
			return job.Record{}, err
		})
		if err != nil {
			return facts{}, err
		}
		if f.elsewhere {
			l.flock.decline(a.Model, time.Now())
		}
	}
	if wrecks(end.cause) || end.cause == job.CauseDaemonKilled || end.cause == job.CauseUnavailable {
		attempts, err := l.attempts(ctx, a.ID)
		if err != nil {
			return facts{}, err
		}
		f.history = historyOf(attempts, a.Run, a.Attempt)
	}
	return f, nil
}

// release frees what the attempt holds: its directory and, if safe, the runner's stored
// answer.
func (c *concluder) release(a *attempt, safe bool) {
	c.lane.tokens.remove(a.Token)
	a.unwatch()
	if a.conn != nil && safe {
		acknowledge(c.lane, a.conn, a.ID)
	}
	if a.dir == nil {
		return
	}
	if err := a.dir.remove(); err != nil {
		c.lane.log.Warn("Cannot remove a job's working directory", "job", a.ID, "error", err)
	}
	crashpoint.Reached(crashpoint.DirectoryRemoved)
}

// leave leaves the attempt to the next daemon.
func (c *concluder) leave(a *attempt) {
	a.unwatch()
	if a.dir != nil {
		a.dir.leave()
	}
}

// acknowledge lets the runner forget its answer. Runners keep a bounded number of answers,
// so a failed acknowledgement is retried for graceTime.
func acknowledge(l *lane, conn messenger.Conn, id job.ID) {
	ctx, cancel := context.WithTimeout(context.Background(), graceTime)
	defer cancel()
	for {
		err := conn.Ack(ctx, id)
		if err == nil {
			crashpoint.Reached(crashpoint.Acknowledged)
		}
		if err == nil || errors.Is(err, messenger.ErrClosed) {
			l.concluder.unacknowledged.remove(id)
			return
		}
		if sleep(ctx, 200*time.Millisecond) != nil {
			l.log.Warn("Cannot acknowledge an answer", "job", id, "error", err)
			l.concluder.unacknowledged.add(id)
			return
		}
	}
}

// grace returns a context that ends graceTime after work has ended. It ends together with
// work if the node's lease is lost, because other nodes may have the job then.
func grace(work context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(work))
	var timer *time.Timer
	var mu sync.Mutex
	stop := context.AfterFunc(work, func() {
		mu.Lock()
		defer mu.Unlock()
		more := graceTime
		if errors.Is(context.Cause(work), errLeaseLost) {
			more = 0
		}
		timer = time.AfterFunc(more, func() { cancel(context.Cause(work)) })
	})
	return ctx, func() {
		stop()
		mu.Lock()
		defer mu.Unlock()
		if timer != nil {
			timer.Stop()
		}
		cancel(errOver)
	}
}

// persist calls fn until it succeeds, fails for good, or ctx ends.
func (l *lane) persist(ctx context.Context, id job.ID, doing string, fn func() error) error {
	pause := 200 * time.Millisecond
	for tries := 1; ; tries++ {
		err := fn()
		if err == nil || ctx.Err() != nil || !l.worthRetrying(ctx, err) {
			return err
		}
		if tries == 1 || tries%20 == 0 {
			trouble := "Storage is unavailable; retrying until it is back"
			if errdefs.IsResourceExhausted(err) {
				trouble = "Storage is full; retrying until there is room"
			}
			l.log.Warn(trouble, "job", id, "doing", doing, "error", err)
		}
		if sleep(ctx, pause) != nil {
			return err
		}
		pause = min(2*pause, 5*time.Second)
	}
}

// worthRetrying reports whether an error means that storage is unavailable, full or rejects
// all requests, as opposed to a fault of this one job or of the machine.
func (l *lane) worthRetrying(ctx context.Context, err error) bool {
	switch {
	case errors.Is(err, errBudget), errors.Is(err, storage.ErrWorkDir),
		errdefs.IsNotFound(err), errdefs.IsInvalidArgument(err):
		return false
	case errdefs.IsPermissionDenied(err):
		return l.store.Ping(ctx) != nil
	case errdefs.IsUnavailable(err), errdefs.IsResourceExhausted(err), errors.Is(err, context.DeadlineExceeded):
		return true
	}
	return false
}

// attempts reads a job's attempts, retrying until the ledger answers.
func (l *lane) attempts(ctx context.Context, id job.ID) (attempts []job.Attempt, err error) {
	_, err = l.retryLedger(ctx, id, func() (job.Record, error) {
		attempts, err = l.ledger.Attempts(ctx, id)
		return job.Record{}, err
	})
	return attempts, err
}

// retryLedger retries fn while the ledger is unavailable or its disk is full.
func (l *lane) retryLedger(ctx context.Context, id job.ID, fn func() (job.Record, error)) (job.Record, error) {
	pause := 100 * time.Millisecond
	for {
		rec, err := fn()
		if err == nil || !errdefs.IsUnavailable(err) && !errdefs.IsResourceExhausted(err) {
			return rec, err
		}
		l.log.Error("The ledger cannot make a change durable; retrying", "job", id, "error", err)
		if sleep(ctx, pause) != nil {
			return rec, err
		}
		pause = min(2*pause, 5*time.Second)
	}
}

// sleep waits for d, or returns ctx's error.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// isMachineFault reports whether the machine caused an error, so that every job would fail
// with it: too many open files, a full, read-only or broken disk, no memory.
func isMachineFault(err error) bool {
	for _, errno := range []unix.Errno{unix.EMFILE, unix.ENFILE, unix.ENOSPC, unix.EDQUOT, unix.EROFS, unix.EIO, unix.ENOMEM, unix.ENOBUFS, unix.EAGAIN} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}
