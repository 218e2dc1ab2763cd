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
	"github.com/iterait/shepherd/storage"
)

// ending is how a job's time in the runner ended.
type ending struct {
	answered bool           // the runner answered: there are outputs
	failure  *job.Failure   // nil: it is done
	conn     messenger.Conn // where the answer is to be acknowledged; nil where it is not
}

// finish puts a job's files and state away, beside the runner's next job.
func (l *lane) finish(a *assignment, e ending) {
	a.FinishedAt = job.Now()
	account := l.account(a.ID, e.failure != nil)
	l.worker.waits() // for storage, it may be
	l.slots <- struct{}{}
	l.worker.works()
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
		told := <-account
		if told.Lost && l.retries(a) { // the runner knew before we did
			l.retry(a, told.Cause)
			if e.conn != nil {
				l.acknowledge(e.conn, a.ID)
			}
			return
		}
		a.Usage = told.Usage
		err := l.conclude(a, e.answered, explain(e.failure, told))
		l.passed(a, PhaseCollect, a.FinishedAt, err)
		if err != nil && e.answered && l.isParting() {
			// The answer is kept with the runner, and the claim with this node.
			l.log.Warn("Cannot put a job's results away in time; the next daemon does", "job", a.ID, "error", err)
			return
		}
		if err != nil {
			l.log.Error("Cannot put a job's results away; it goes back to the queue", "job", a.ID, "error", err)
			l.clear(a)
			l.release(context.WithoutCancel(l.work), a, true, err.Error())
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
	ctx := l.work
	if ctx.Err() != nil {
		// Answered just as the time to drain was up: a moment more to keep it.
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		ctx = grace
	}
	own := answered // the failure, if any, is the runner's
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
			own = false
			failure = &job.Failure{Message: fmt.Sprintf("The results of this job cannot be stored: %s", err)}
		}
	}

	outcome := ledger.Outcome{State: job.Done, Failure: failure, At: a.FinishedAt, Usage: a.Usage}
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
	_, err = l.retryLedger(ctx, a.ID, func() (job.Record, error) {
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
	l.shepherd.cfg.Observer.Ended(l.name, outcome.State)
	l.logEnd(a, own, failure)
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
			trouble := "Storage is away; trying again until it is back"
			if errdefs.IsResourceExhausted(err) {
				trouble = "A disk is full; trying again until there is room"
			}
			l.log.Warn(trouble, "job", id, "doing", what, "error", err)
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
func (l *lane) retryLedger(ctx context.Context, id job.ID, fn func() (job.Record, error)) (job.Record, error) {
	backoff := 100 * time.Millisecond
	for {
		rec, err := fn()
		if err == nil || !errdefs.IsUnavailable(err) && !errdefs.IsResourceExhausted(err) {
			return rec, err
		}
		l.log.Error("The ledger cannot make a change durable; trying again", "job", id, "error", err)
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
		l.shepherd.cfg.Observer.Returned(l.name)
		l.log.Info("Job goes back to the queue", "job", a.ID, "why", why)
	case errors.Is(err, ledger.ErrFenced):
	default:
		// The claim stays; the next start of the daemon puts the job back.
		l.log.Error("Cannot hand a job back", "job", a.ID, "error", err)
	}
}
