package shepherd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
)

// diedMessage is the original's word for a runner that ended under its job.
const diedMessage = "Sheep container died without notice"

// loadPause is how long a sheep rests after it could not be started for a reason
// that may pass; twice that after the second time, and so on. Meanwhile the job
// is anyone's.
const loadPause = 250 * time.Millisecond

// errCancelled is why a job's context ends when a client cancelled the job, or
// the claim on it was lost in another way.
var errCancelled = errors.New("the job was cancelled")

// run takes a job through the runner. When it returns, the job is answered and
// being finished, or handed back, or lost to somebody else.
func (l *lane) run(a *assignment) {
	l.begin(a)
	ctx, stop := l.hold(a.ID)
	defer stop()

	if a.ahead {
		l.worker.waits() // for a disk with room, it may be
		rec, err := l.retryLedger(ctx, a.ID, func() (job.Record, error) {
			return l.shepherd.cfg.Ledger.Start(ctx, a.ID, a.Token)
		})
		l.worker.works()
		if err != nil {
			l.leave(ctx, a, err)
			return
		}
		a.State, a.StartedAt = rec.State, rec.StartedAt // the rest is the same, and read by staging meanwhile
		l.shepherd.mirror.note(a.ID)
	} else if l.lost(ctx, a.ID) { // before hold could be told
		l.leave(ctx, a, errCancelled)
		return
	}

	l.passed(a, PhaseQueued, a.EnqueuedAt, nil)

	// A job that the runner does not have yet is not worth draining for.
	ready, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	defer context.AfterFunc(l.open, func() { giveUp(context.Cause(l.open)) })()
	if err := l.load(ready, a); err != nil {
		l.refuse(ready, a, err)
		return
	}
	l.worker.waits()
	select {
	case <-a.staged:
	case <-ready.Done():
	}
	l.worker.works()
	if ready.Err() != nil {
		l.leave(ready, a, context.Cause(ready))
		return
	}
	if a.err != nil {
		l.refuse(ready, a, a.err)
		return
	}
	if err := l.tellTrace(a); err != nil {
		l.refuse(ready, a, err)
		return
	}
	l.logSending(a)
	a.sent = time.Now()
	if a.ahead && !l.freed.IsZero() {
		l.shepherd.cfg.Observer.Waited(l.name, a.sent.Sub(l.freed))
	}
	err := l.runner.conn.Send(ctx, messenger.Input{JobID: a.ID, IODataRoot: l.dir})
	if err != nil && !errors.Is(err, messenger.ErrClosed) {
		l.stopRunner()
		l.refuse(ctx, a, &runtime.Exit{Code: -1, Lost: true, Detail: fmt.Sprintf("the job could not be given to it: %v", err)})
		return
	}
	l.begun(a.ID, job.Now())
	l.await(ctx, a)
}

// hold returns a context that ends when the job is no longer this sheep's, with
// errCancelled, when a device is out, with a *deviceError, or when running jobs
// are to be handed back.
func (l *lane) hold(id job.ID) (_ context.Context, stop func()) {
	sub := l.shepherd.hub.subscribe(id)
	ctx, cancel := context.WithCancelCause(l.work)
	watching := make(chan struct{})
	l.running.Go(func() {
		defer close(watching)
		for {
			select {
			case <-ctx.Done():
				return
			case rec := <-sub.C:
				// The event may be of before the claim: the ledger knows.
				if (rec.State.Final() || rec.Holder != l.name) && l.lost(ctx, id) {
					cancel(errCancelled)
					return
				}
			}
		}
	})
	devices := make(chan struct{})
	if l.devices == nil {
		close(devices)
	} else {
		l.running.Go(func() {
			defer close(devices)
			l.watchDevices(ctx, cancel)
		})
	}
	return ctx, func() {
		cancel(nil)
		<-watching
		<-devices
		sub.close()
	}
}

// lost asks the ledger whether the claim on the job is gone.
func (l *lane) lost(ctx context.Context, id job.ID) bool {
	rec, err := l.shepherd.cfg.Ledger.Get(ctx, id)
	return errors.Is(err, ledger.ErrNotFound) || err == nil && (rec.State.Final() || rec.Holder != l.name)
}

// plan sets the model that the sheep will have when what is claimed is done.
func (l *lane) plan(m job.Model) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.planned = m
}

func (l *lane) begin(a *assignment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.busy, l.job, l.tenant = true, a.ID, a.Tenant
}

// await waits for the answer to the job that the runner has.
func (l *lane) await(ctx context.Context, a *assignment) {
	defer l.worker.works()
	for {
		l.worker.waits()
		select {
		case answer, ok := <-l.runner.answers:
			l.worker.works()
			switch {
			case !ok:
				l.died(a)
				return
			case answer.JobID == a.ID:
				l.crashes = crashes{} // a runner that answers is in no crash loop
				l.freed = time.Now()
				l.ran(a, l.runner, failed(answer.Failure))
				l.finish(a, ending{answered: true, failure: answer.Failure, conn: l.runner.conn})
				return
			}
			l.answered(answer)
		case <-l.parting:
			// The job stays this sheep's: the next daemon goes on with it.
			l.log.Info("Job goes on while the daemon is away", "job", a.ID)
			return
		case <-ctx.Done():
			l.worker.works()
			// The runner cannot be told to drop a job, so it goes with it.
			l.ran(a, l.runner, context.Cause(ctx))
			l.stopRunner()
			l.leave(ctx, a, context.Cause(ctx))
			return
		}
	}
}

// answered deals with an answer to a job other than the one under way: one from
// before the daemon's restart is finished, an unknown one is dropped.
func (l *lane) answered(answer messenger.Answer) {
	if a := l.adopted.take(answer.JobID); a != nil {
		l.finish(a, ending{answered: true, failure: answer.Failure, conn: l.runner.conn})
		return
	}
	l.log.Warn("Dropping an answer to a job that this sheep does not have", "job", answer.JobID)
	l.acknowledge(l.runner.conn, answer.JobID)
}

// died ends the job whose runner ended under it.
func (l *lane) died(a *assignment) {
	r := l.runner
	<-r.done
	r.cancel()
	l.runner, l.freed = nil, time.Time{}
	l.setRunner(nil, job.Model{})
	why := l.crashed(r)
	l.ran(a, r, why)
	l.refuse(l.work, a, why)
}

// failed is the failure as an error, nil where there is none.
func failed(f *job.Failure) error {
	if f == nil {
		return nil
	}
	return f
}

// refuse ends a job that could not be run, for the reason given: it fails, or
// is handed back where another try may go better.
func (l *lane) refuse(ctx context.Context, a *assignment, why error) {
	if ctx.Err() != nil {
		l.leave(ctx, a, context.Cause(ctx))
		return
	}
	var load *runtime.LoadError
	var exit *runtime.Exit
	switch {
	case errors.As(why, &exit) && exit.Lost && a.Attempt < l.shepherd.cfg.MaxAttempts:
		l.account(a.ID, false)
		l.log.Warn("Sheep was lost under its job; the job goes back to the queue", "job", a.ID, "attempt", a.Attempt, "error", exit)
		a.cancel()
		<-a.staged
		l.clear(a)
		l.release(ctx, a, false, exit.Error())
		return
	case errors.As(why, &load) && errdefs.IsUnavailable(load) && a.Attempt < l.shepherd.cfg.MaxAttempts:
		l.log.Warn("Sheep cannot be started now; the job goes back to the queue", "job", a.ID, "attempt", a.Attempt, "error", load)
		l.plan(job.Model{})
		a.cancel()
		<-a.staged
		l.clear(a)
		l.release(ctx, a, false, load.Message)
		l.rest(loadPause << (a.Attempt - 1))
	case errors.As(why, &load):
		l.plan(job.Model{})
		l.finish(a, ending{failure: &job.Failure{Message: fmt.Sprintf("Failed to start sheep for this job (%s)", load.Message)}})
	case errors.As(why, &exit):
		message := fmt.Sprintf("%s (%s)", diedMessage, exit)
		if exit.Lost {
			message = fmt.Sprintf("%s (%s; tried %d times)", diedMessage, exit, a.Attempt)
		}
		l.finish(a, ending{failure: &job.Failure{Message: message}})
	default:
		l.finish(a, ending{failure: &job.Failure{Message: why.Error()}})
	}
}

// rest keeps the worker from the next job for a while, unless there will be none.
func (l *lane) rest(pause time.Duration) {
	select {
	case <-time.After(pause):
	case <-l.open.Done():
	}
}

// leave gives up a job without an outcome: it was cancelled, or is handed back
// unspent.
func (l *lane) leave(ctx context.Context, a *assignment, why error) {
	a.cancel()
	<-a.staged
	var out *deviceError
	if errors.As(why, &out) {
		l.lose(a, out)
		return
	}
	l.account(a.ID, false)
	l.clear(a)
	if errors.Is(why, errCancelled) || errors.Is(why, ledger.ErrFenced) {
		l.log.Info("Job is no longer this sheep's", "job", a.ID)
		return
	}
	l.release(ctx, a, true, why.Error())
}
