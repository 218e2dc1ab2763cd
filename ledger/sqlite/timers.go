package sqlite

import (
	"fmt"
	"time"

	"github.com/iterait/shepherd/job"
)

// timerBatch is how many jobs whose time has come one transaction changes at
// most, of each kind.
const timerBatch = 64

// runTimers makes jobs claimable whose time has come, and fails those that
// waited for too long, where some are due.
func (t *tx) runTimers() error {
	if t.nextTimer.IsZero() || t.now.Before(t.nextTimer) {
		return nil
	}
	due, err := t.queryJobs(t.do.due, fromTime(t.now), timerBatch)
	if err != nil {
		return err
	}
	for _, r := range due {
		t.change(r)
		r.delayed = false
		if err := t.save(r); err != nil {
			return err
		}
		if err := t.record(r, job.Event{Kind: job.EventDue}); err != nil {
			return err
		}
	}
	overdue, err := t.queryJobs(t.do.overdue, fromTime(t.now), timerBatch)
	if err != nil {
		return err
	}
	for _, r := range overdue {
		if err := t.giveUp(r); err != nil {
			return err
		}
	}
	var notBefore, giveUp int64
	if _, err := t.queryOne([]any{&notBefore, &giveUp}, t.do.nextTimer); err != nil {
		return err
	}
	t.nextTimer = time.Time{}
	for _, at := range []int64{notBefore, giveUp} {
		if at != 0 {
			t.setTimer(toTime(at))
		}
	}
	return nil
}

// giveUp fails a job that nobody holds and whose time to wait is over.
func (t *tx) giveUp(r *row) error {
	event := job.Event{Kind: job.EventEnded, Cause: job.CauseDeadline}
	if r.giveUpAt().Equal(r.WaitUntil) {
		event.Cause = job.CauseWaitTimeout
		event.Reason = fmt.Sprintf("The job waited longer than its wait_timeout of %s allows", r.waitTimeout())
	} else {
		event.Reason = fmt.Sprintf("The job's deadline, %s, passed while it waited for a sheep", r.Deadline.Format(time.RFC3339))
	}
	t.change(r)
	return t.endRun(r, ending{state: job.Failed, failure: &job.Failure{Message: event.Reason}}, event)
}

// waitTimeout is how long the job was allowed to wait. Where that was not its own
// limit but a default, it is told by the second: WaitUntil was reckoned from a
// moment before EnqueuedAt.
func (r *row) waitTimeout() time.Duration {
	if limit := r.Limits.WaitTimeout; limit != nil && *limit > 0 {
		return *limit
	}
	wait := max(r.WaitUntil.Sub(r.EnqueuedAt), 0)
	if wait < time.Second {
		return wait
	}
	return wait.Round(time.Second)
}

// untilTimer is how long the writer can rest before a timer is due.
func (w *writer) untilTimer() time.Duration {
	const never = time.Hour
	if w.nextTimer.IsZero() {
		return never
	}
	return min(max(w.nextTimer.Sub(w.now()), 0), never)
}
