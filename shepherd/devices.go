package shepherd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/runtime"
)

// Devices is a sheep's share of the machine's devices (its GPUs), as whoever
// keeps them lends it. Other sheep may have a share of the same devices.
//
// # The protocol
//
//	Request ─► granted ─► [Prepare ─► Started] ─► Begin ─► End ─► done
//	                                    │
//	                                    └─ idle ─► [Yield] ─► Stopped
//
// A sheep with a job asks for its devices by Request, or Hold, and has them from
// the grant until it calls done. When it has to start a runner for that it calls
// Prepare first. The runner may stay up after done, idle, until Yield asks to
// have it stopped for another sheep; Stopped gives up what it took. While the
// sheep has its devices they are not asked back.
//
// All methods but Prepare and Fault return at once, and may be called from many
// goroutines.
type Devices interface {
	// Admission says which jobs the sheep may claim now.
	Admission() job.Admission

	// Notify has changed called whenever Admission has become more. It is called
	// once, before the other methods; changed returns at once.
	Notify(changed func())

	// Request asks for the devices for a job. Granted receives nil when the
	// sheep has them, or an error when it cannot have them because one is out.
	// A request that is made while an earlier one of the same sheep is not done
	// is granted after that at the earliest. The caller calls done once, granted
	// or not.
	Request() (granted <-chan error, done func())

	// Hold is a Request that is granted at once, or not made: a sheep whose
	// runner is up always gets it, another only where nobody else has or wants
	// the devices.
	Hold() (done func(), ok bool)

	// Yield receives when the sheep's runner, idle, is to be stopped.
	Yield() <-chan struct{}

	// Prepare waits, for a bounded time, until what the sheep needs of its
	// devices is free: a runner that has ended may leave them a moment later. The
	// error, of class errdefs.ErrUnavailable, says who has it; or it is ctx's.
	Prepare(ctx context.Context) error

	// Started tells that a runner with the model is up as a process, 0 where that
	// is not known yet, and Stopped that nothing is left of it.
	Started(m job.Model, pid int)
	Stopped()

	// Fault waits until a device is out and says why in a sentence without a
	// full stop, or until ctx ends and returns its error.
	Fault(ctx context.Context) error

	// Begin tells that the runner has been given the job, End that the sheep is
	// through with it: its account comes at once or, for a job that failed, as
	// soon as what its devices may have to say of that is known.
	Begin(id job.ID, at time.Time)
	End(id job.ID, at time.Time, failed bool) <-chan job.Account

	// State says in words what keeps the sheep from its devices; empty when
	// nothing does.
	State() string

	// Close gives the share back, when the sheep has ended.
	Close()
}

// deviceError is why a job's context ends when a device of its sheep is out.
type deviceError struct{ cause error }

func (e *deviceError) Error() string { return e.cause.Error() }

// errDevicesOut is why a job that was only prepared goes back to the queue.
var errDevicesOut = errors.New("a device of the sheep is out")

// admission is what the lane may claim.
func (l *lane) admission() job.Admission {
	if l.devices == nil {
		return job.AnyNow
	}
	return l.devices.Admission()
}

// admits says whether the lane may claim the job.
func (l *lane) admits(rec job.Record) bool {
	switch l.admission() {
	case job.NoJobs:
		return false
	case job.OwnJobs:
		return rec.Sheep == l.name
	}
	return true
}

// narrow restricts a claim to what the lane's devices allow. A job that may have
// to wait for them is claimed ahead: it stays queued, and any sheep that would be
// idle may take it over.
func (l *lane) narrow(slot *ledger.Slot) bool {
	switch l.admission() {
	case job.NoJobs:
		return false
	case job.OwnJobs:
		slot.Addressed, slot.Ahead = true, true
	case job.AnyJobs:
		slot.Ahead = true
	}
	return true
}

// offer holds the job out to the worker until it is taken, or given up, or the
// feed ends; before that it waits for the devices the job needs. It returns false
// when the feed has ended.
func (l *lane) offer(ctx context.Context, a *assignment) bool {
	next := l.next
	var granted <-chan error
	if l.devices != nil {
		granted, a.done = l.devices.Request()
		next = nil
		l.awaits(len(granted) == 0)
		defer l.waiting.Store(false)
	}
	l.feeder.waits()
	defer l.feeder.works()
	for {
		select {
		case err := <-granted:
			if err != nil {
				l.withdraw(a, errDevicesOut)
				return true
			}
			l.waiting.Store(false)
			next, granted = l.next, nil
		case next <- a:
			return true
		case <-a.gone:
			a.through()
			return true
		case <-ctx.Done():
			l.withdraw(a, context.Cause(ctx))
			return false
		}
	}
}

// withdraw hands the job that is held out back to the queue, unless somebody has
// taken it over.
func (l *lane) withdraw(a *assignment, why error) {
	a.through()
	if a.owner.CompareAndSwap(offeredByFeeder, givenUp) {
		l.abandon(a, why.Error())
	}
}

// through gives up the devices that were asked for, or had, for the job.
func (a *assignment) through() {
	if a.done != nil {
		a.done()
	}
}

// awaits notes whether the job that is held out has to wait for devices though
// the lane is idle, and has idle sheep look whether they may take it over.
func (l *lane) awaits(waiting bool) {
	l.waiting.Store(waiting)
	if waiting && !l.isBusy() {
		l.shepherd.flock.wake(job.Record{})
	}
}

// begun tells that the runner has the job since then.
func (l *lane) begun(id job.ID, since time.Time) {
	if l.devices != nil {
		l.devices.Begin(id, since)
	}
}

// mayGiveUp says whether a job that the lane holds out would otherwise wait.
func (l *lane) mayGiveUp() bool { return l.isBusy() || l.waiting.Load() }

// watchDevices ends a job's context when a device is out. It returns when ctx
// has ended.
func (l *lane) watchDevices(ctx context.Context, cancel context.CancelCauseFunc) {
	if err := l.devices.Fault(ctx); ctx.Err() == nil {
		cancel(&deviceError{err})
	}
}

// lose ends a job whose devices failed under it: it goes back to the queue where
// another sheep may run it, and fails otherwise.
func (l *lane) lose(a *assignment, why *deviceError) {
	if l.retries(a) {
		l.account(a.ID, false)
		l.retry(a, why.Error())
		return
	}
	l.finish(a, ending{failure: &job.Failure{Message: fmt.Sprintf("A device was lost under this job (%s)", why)}})
}

// retries says whether a job whose devices failed is to be tried by another sheep.
func (l *lane) retries(a *assignment) bool {
	return a.Attempt < l.shepherd.cfg.MaxAttempts && l.shepherd.flock.elsewhere(l, a)
}

// retry hands the job back for that.
func (l *lane) retry(a *assignment, why string) {
	l.log.Warn("A device was lost under a job; the job goes back to the queue", "job", a.ID, "attempt", a.Attempt, "error", why)
	l.clear(a)
	l.release(l.work, a, false, why)
}

// elsewhere says whether a lane other than this one may run the job.
func (f *flock) elsewhere(l *lane, a *assignment) bool {
	for _, other := range f.all() {
		if other == l || !a.free || other.admission() == job.NoJobs {
			continue
		}
		checker, ok := other.sheep.(runtime.ModelChecker)
		if !ok || checker.CheckModel(a.Model) == nil {
			return true
		}
	}
	return false
}

// account asks for what is known of the job that the runner had.
func (l *lane) account(id job.ID, failed bool) <-chan job.Account {
	if l.devices == nil {
		none := make(chan job.Account, 1)
		none <- job.Account{}
		return none
	}
	return l.devices.End(id, job.Now(), failed)
}

// explain adds to a failure what the devices reported.
func explain(failure *job.Failure, account job.Account) *job.Failure {
	if failure == nil || account.Cause == "" {
		return failure
	}
	explained := *failure
	explained.Message = fmt.Sprintf("%s (%s)", failure.Message, account.Cause)
	return &explained
}

// prepare makes sure that what the runner needs of its devices is free.
func (l *lane) prepare(ctx context.Context) error {
	if l.devices == nil {
		return nil
	}
	l.show("") // the devices' state tells the rest
	l.worker.waits()
	err := l.devices.Prepare(ctx)
	l.worker.works()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errdefs.IsUnavailable(err):
		return &runtime.LoadError{Message: err.Error(), Class: errdefs.ErrUnavailable}
	}
	return &runtime.LoadError{Message: err.Error(), Class: errdefs.ErrInternal}
}

// hasDevices tells whoever keeps the devices that a runner is up with them.
func (l *lane) hasDevices(m job.Model, pid int) {
	if l.devices != nil {
		l.devices.Started(m, pid)
	}
}

// leftDevices tells that nothing is left of the runner.
func (l *lane) leftDevices() {
	if l.devices != nil {
		l.devices.Stopped()
	}
}

// take takes the devices for a runner without a job, unless others need them.
func (l *lane) take() (done func(), ok bool) {
	if l.devices == nil {
		return func() {}, true
	}
	return l.devices.Hold()
}

// yield receives when the idle runner is to be stopped for another sheep.
func (l *lane) yield() <-chan struct{} {
	if l.devices == nil || l.runner == nil {
		return nil
	}
	return l.devices.Yield()
}

// tired fires when the runner has been idle for long enough to be stopped.
func (l *lane) tired() <-chan time.Time {
	if l.idleTimeout == 0 || l.runner == nil {
		return nil
	}
	return time.After(time.Until(l.idleSince.Add(l.idleTimeout)))
}

// unload stops the idle runner, and with it gives up what its model takes.
func (l *lane) unload(why string) {
	m := l.runner.model
	l.log.Info("Unloading the model of an idle sheep", "model", m.String(), "why", why)
	l.show("unloading " + m.String() + ": " + why)
	l.stopRunner()
	l.mu.Lock()
	if l.planned == m {
		l.planned = job.Model{}
	}
	l.mu.Unlock()
	l.awaits(l.waiting.Load())
}
