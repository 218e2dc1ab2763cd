package shepherd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/storage"
)

// diedMessage is the original's word for a runner that ended under its job.
const diedMessage = "Sheep container died without notice"

// errCancelled is why a job's context ends when a client cancelled the job, or
// the claim on it was lost in another way.
var errCancelled = errors.New("the job was cancelled")

// run takes a job through the runner. When it returns, the job is answered and
// being finished, or handed back, or lost to somebody else.
func (l *lane) run(a *assignment) {
	l.begin(a.ID)
	ctx, stop := l.hold(a.ID)
	defer stop()

	if a.ahead {
		rec, err := l.retryLedger(ctx, func() (job.Record, error) {
			return l.shepherd.cfg.Ledger.Start(ctx, a.ID, a.Token)
		})
		if err != nil {
			l.leave(ctx, a, err)
			return
		}
		a.Record = rec
		l.shepherd.mirror.note(a.ID)
	} else if l.lost(ctx, a.ID) { // before hold could be told
		l.leave(ctx, a, errCancelled)
		return
	}

	// A job that the runner does not have yet is not worth draining for.
	ready, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	defer context.AfterFunc(l.shepherd.feed, func() { giveUp(errStopping) })()
	if err := l.load(ready, a.Model); err != nil {
		l.refuse(ready, a, err)
		return
	}
	select {
	case <-a.staged:
	case <-ready.Done():
	}
	if ready.Err() != nil {
		l.leave(ready, a, context.Cause(ready))
		return
	}
	if a.err != nil {
		l.refuse(ready, a, a.err)
		return
	}
	err := l.runner.conn.Send(ctx, messenger.Input{JobID: a.ID, IODataRoot: l.dir})
	if err != nil && !errors.Is(err, messenger.ErrClosed) {
		l.stopRunner()
		l.refuse(ctx, a, &runtime.Exit{Code: -1, Lost: true, Detail: fmt.Sprintf("the job could not be given to it: %v", err)})
		return
	}
	l.await(ctx, a)
}

// hold returns a context that ends when the job is no longer this sheep's, with
// errCancelled, or when running jobs are to be handed back.
func (l *lane) hold(id job.ID) (_ context.Context, stop func()) {
	sub := l.shepherd.hub.subscribe(id)
	ctx, cancel := context.WithCancelCause(l.shepherd.work)
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
	return ctx, func() {
		cancel(nil)
		<-watching
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

func (l *lane) begin(id job.ID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.busy, l.job = true, id
}

// await waits for the answer to the job that the runner has.
func (l *lane) await(ctx context.Context, a *assignment) {
	for {
		select {
		case answer, ok := <-l.runner.answers:
			switch {
			case !ok:
				l.died(a)
				return
			case answer.JobID == a.ID:
				l.crashes = crashes{} // a runner that answers is in no crash loop
				l.finish(a, ending{answered: true, failure: answer.Failure, conn: l.runner.conn})
				return
			}
			l.answered(answer)
		case <-ctx.Done():
			// The runner cannot be told to drop a job, so it goes with it.
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
	l.runner = nil
	l.setRunner(nil, job.Model{})
	l.refuse(l.shepherd.work, a, l.crashed(r))
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
		l.log.Warn("Sheep was lost under its job; the job goes back to the queue", "job", a.ID, "attempt", a.Attempt, "error", exit)
		a.cancel()
		<-a.staged
		l.clear(a)
		l.release(ctx, a, false, exit.Error())
		return
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

// leave gives up a job without an outcome: it was cancelled, or is handed back
// unspent.
func (l *lane) leave(ctx context.Context, a *assignment, why error) {
	a.cancel()
	<-a.staged
	l.clear(a)
	if errors.Is(why, errCancelled) || errors.Is(why, ledger.ErrFenced) {
		l.log.Info("Job is no longer this sheep's", "job", a.ID)
		return
	}
	l.release(ctx, a, true, why.Error())
}

// ending is how a job's time in the runner ended.
type ending struct {
	answered bool           // the runner answered: there are outputs
	failure  *job.Failure   // nil: it is done
	conn     messenger.Conn // where the answer is to be acknowledged; nil where it is not
}

// finish puts a job's files and state away, beside the runner's next job.
func (l *lane) finish(a *assignment, e ending) {
	a.FinishedAt = job.Now()
	l.slots <- struct{}{}
	over := make(chan struct{})
	l.mu.Lock()
	l.ending[a.ID] = over
	l.mu.Unlock()
	l.finishers.Go(func() {
		defer func() {
			l.mu.Lock()
			delete(l.ending, a.ID)
			l.mu.Unlock()
			close(over)
			<-l.slots
		}()
		a.cancel()
		<-a.staged
		if err := l.conclude(a, e.answered, e.failure); err != nil {
			l.log.Error("Cannot put a job's results away; it goes back to the queue", "job", a.ID, "error", err)
			l.clear(a)
			l.release(context.WithoutCancel(l.shepherd.work), a, true, err.Error())
		}
		if e.conn != nil {
			l.acknowledge(e.conn, a.ID)
		}
	})
}

// conclude writes outputs, then job_status.json, then the ledger, trying again
// for as long as storage is away: the state in storage is the commit mark that
// a later daemon finds when this one dies between the last two.
func (l *lane) conclude(a *assignment, answered bool, failure *job.Failure) error {
	ctx := l.shepherd.work
	if ctx.Err() != nil {
		// Answered just as the time to drain was up: a moment more to keep it.
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		ctx = grace
	}
	if answered {
		replace := a.Attempt > 1 || a.Run > 1 || a.result.Outputs
		err := l.persist(ctx, a.ID, "collect the outputs", func() error {
			return l.shepherd.cfg.Store.Collect(ctx, a.ID, a.dir, replace)
		})
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return err
		case failure == nil:
			failure = &job.Failure{Message: fmt.Sprintf("The results of this job cannot be stored: %s", err)}
		}
	}

	outcome := ledger.Outcome{State: job.Done, Failure: failure, At: a.FinishedAt}
	if failure != nil {
		outcome.State = job.Failed
	}
	rec := a.Record
	rec.State, rec.Failure = outcome.State, failure
	release := l.shepherd.mirror.exclusive(a.ID)
	err := l.persist(ctx, a.ID, "write the state", func() error {
		return l.shepherd.cfg.Store.SetStatus(ctx, a.ID, rec.Status())
	})
	release()
	if err != nil && ctx.Err() != nil {
		return err
	}
	if err != nil { // the place is gone, or closed to us: the ledger still tells the client
		l.log.Warn("Cannot write a job's final state to storage", "job", a.ID, "error", err)
	}
	_, err = l.retryLedger(ctx, func() (job.Record, error) {
		return l.shepherd.cfg.Ledger.Finish(ctx, a.ID, a.Token, outcome)
	})
	if errors.Is(err, ledger.ErrFenced) || errors.Is(err, ledger.ErrFinal) {
		l.shepherd.mirror.note(a.ID) // what the ledger says goes to storage
		l.log.Info("Job ended otherwise before its answer was safe", "job", a.ID)
		l.clear(a)
		return nil
	}
	if err != nil {
		return err
	}
	if failure != nil {
		l.log.Info("Job failed", "job", a.ID, "model", a.Model.String(), "error", failure.Message)
	} else {
		l.log.Info("Job done", "job", a.ID, "model", a.Model.String())
	}
	l.clear(a)
	return nil
}

// persist calls fn until it succeeds, cannot succeed, or ctx ends.
func (l *lane) persist(ctx context.Context, id job.ID, what string, fn func() error) error {
	backoff := 200 * time.Millisecond
	for tries := 1; ; tries++ {
		err := fn()
		if err == nil || ctx.Err() != nil || !l.worthRetrying(ctx, err) {
			return err
		}
		if tries == 1 || tries%20 == 0 {
			l.log.Warn("Storage is away; trying again until it is back", "job", id, "doing", what, "error", err)
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, 5*time.Second)
	}
}

// worthRetrying tells storage that is away, full or closed to us altogether from
// a fault of this one job.
func (l *lane) worthRetrying(ctx context.Context, err error) bool {
	switch {
	case errors.Is(err, storage.ErrBadName), errdefs.IsNotFound(err), errdefs.IsInvalidArgument(err):
		return false
	case errdefs.IsPermissionDenied(err):
		return l.shepherd.cfg.Store.Ping(ctx) != nil
	case errdefs.IsUnavailable(err), errdefs.IsResourceExhausted(err), errors.Is(err, context.DeadlineExceeded):
		return true
	}
	return false
}

// retryLedger repeats a change that the ledger could not make durable.
func (l *lane) retryLedger(ctx context.Context, fn func() (job.Record, error)) (job.Record, error) {
	backoff := 100 * time.Millisecond
	for {
		rec, err := fn()
		if err == nil || !errdefs.IsUnavailable(err) && !errdefs.IsResourceExhausted(err) {
			return rec, err
		}
		l.log.Error("The ledger cannot make a change durable; trying again", "error", err)
		select {
		case <-ctx.Done():
			return rec, err
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, 5*time.Second)
	}
}

func (l *lane) acknowledge(conn messenger.Conn, id job.ID) {
	ctx, cancel := context.WithTimeout(context.Background(), commitTime)
	defer cancel()
	if err := conn.Ack(ctx, id); err != nil && !errors.Is(err, messenger.ErrClosed) {
		l.log.Warn("Cannot acknowledge an answer", "job", id, "error", err)
	}
}

// release hands the job back to the queue.
func (l *lane) release(ctx context.Context, a *assignment, unspent bool, why string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTime)
	defer cancel()
	err := l.shepherd.cfg.Ledger.Release(ctx, a.ID, a.Token, unspent)
	switch {
	case err == nil:
		l.log.Info("Job goes back to the queue", "job", a.ID, "why", why)
	case errors.Is(err, ledger.ErrFenced):
	default:
		// The claim stays; the next start of the daemon puts the job back.
		l.log.Error("Cannot hand a job back", "job", a.ID, "error", err)
	}
}

// stage copies a job's inputs to its working directory, trying again for as long
// as storage is away. A job ahead of its turn that does not fit the budget waits
// with its inputs until the worker takes it.
func (l *lane) stage(ctx context.Context, a *assignment) (storage.Staged, error) {
	budget := l.shepherd.flock.budget
	if err := l.awaitEnd(ctx, a.id); err != nil {
		return storage.Staged{}, err
	}
	if err := freshDir(a.dir); err != nil {
		return storage.Staged{}, err
	}
	var staged storage.Staged
	for {
		var limit int64
		if a.ahead && a.owner.Load() != takenByWorker {
			var ok bool
			if limit, ok = budget.left(); !ok {
				if err := l.awaitTurn(ctx, a); err != nil {
					return staged, err
				}
				limit = 0
			}
		}
		err := l.persist(ctx, a.id, "stage the inputs", func() (err error) {
			staged, err = l.shepherd.cfg.Store.Stage(ctx, a.id, a.dir, limit)
			if limit > 0 && errdefs.IsResourceExhausted(err) {
				err = errTooLarge
			}
			return err
		})
		switch {
		case errors.Is(err, errTooLarge):
			if err := l.awaitTurn(ctx, a); err != nil {
				return staged, err
			}
			continue
		case err == nil:
			if a.ahead {
				a.bytes = staged.Bytes
				budget.add(a.bytes)
			}
			return staged, nil
		case errdefs.IsNotFound(err):
			return staged, &job.UnknownJob{ID: string(a.id)}
		}
		return staged, fmt.Errorf("the inputs of this job cannot be fetched: %w", err)
	}
}

var errTooLarge = errors.New("the inputs do not fit the budget for jobs prepared ahead")

// awaitEnd waits until nothing is left of an earlier run of the job: a client may
// submit it again as soon as it is told of the end, while the working directory
// and the kept answer are still there.
func (l *lane) awaitEnd(ctx context.Context, id job.ID) error {
	l.mu.Lock()
	over := l.ending[id]
	l.mu.Unlock()
	if over == nil {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-over:
		return nil
	}
}

// awaitTurn waits until the worker has taken the job.
func (l *lane) awaitTurn(ctx context.Context, a *assignment) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-a.turn:
		return nil
	}
}

// clear removes what the job has on disk.
func (l *lane) clear(a *assignment) {
	if a.bytes > 0 {
		l.shepherd.flock.budget.add(-a.bytes)
		a.bytes = 0
	}
	if err := os.RemoveAll(a.dir); err != nil {
		l.log.Warn("Cannot remove a job's working directory", "job", a.ID, "error", err)
	}
}

// freshDir makes an empty working directory. As a rule none is there, so it
// looks for one only when making it fails.
func freshDir(dir string) error {
	err := os.Mkdir(dir, 0o755)
	if err != nil {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("clean working directory: %w", err)
		}
		err = os.MkdirAll(dir, 0o755)
	}
	for _, sub := range []string{job.InputDir, job.OutputDir} {
		if err == nil {
			err = os.Mkdir(filepath.Join(dir, sub), 0o755)
		}
	}
	if err != nil {
		return fmt.Errorf("create working directory: %w", err)
	}
	return nil
}
