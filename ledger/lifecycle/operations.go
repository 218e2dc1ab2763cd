package lifecycle

import (
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// Create returns the row of a new run of rec, which replaces old; old is nil where the id
// has no record. needed says that a job that has not ended is after old. rec.Blocked is the
// result of ledger.CheckAfter. The Seq is not set. The error is ledger.ErrOthers, ErrExists,
// ErrRemoving or ErrNeeded.
func Create(old *Row, needed bool, rec job.Record, m Moment) (*Row, Change, error) {
	r := &Row{Record: job.Record{
		ID: rec.ID, Model: rec.Model, Sheep: rec.Sheep, Priority: rec.Priority, Trace: rec.Trace, Tenant: rec.Tenant, Limits: rec.Limits.Clone(),
		NotBefore: KeptTime(rec.NotBefore), WaitUntil: KeptTime(rec.WaitUntil), Deadline: KeptTime(rec.Deadline),
		Keep: keptKeep(rec.Keep), Labels: rec.Labels.Clone(), Idempotency: rec.Idempotency, After: slices.Clone(rec.After), Group: rec.Group,
		Blocked: rec.Blocked, State: job.Queued, Run: 1,
	}}
	if old != nil {
		switch {
		case rec.Tenant != "" && rec.Tenant != old.Tenant:
			return nil, Change{}, ledger.ErrOthers
		case !old.State.Final(), rec.Idempotency != "" && rec.Idempotency == old.Idempotency:
			return nil, Change{}, ledger.ErrExists
		case old.Removal != NoRemoval:
			return nil, Change{}, ledger.ErrRemoving
		case needed:
			return nil, Change{}, ledger.ErrNeeded
		}
		r.Run, r.Tenant, r.ChangedAt = old.Run+1, old.Tenant, old.ChangedAt
	}
	r.change(m)
	r.EnqueuedAt = r.ChangedAt
	r.Delayed = r.Blocked || r.NotBefore.After(m.Now)
	return r, Change{Made: true, Event: r.event(job.Event{Kind: job.EventQueued})}, nil
}

// Claimable reports whether a slot may claim the job.
func (r *Row) Claimable() bool { return r.State == job.Queued && r.Token == 0 && !r.Delayed }

// Claim begins an attempt of a claimable job.
func (r *Row) Claim(slot ledger.Slot, token ledger.Token, m Moment) Change {
	r.change(m)
	r.Token, r.Holder, r.Node, r.ClaimedAt = token, slot.Sheep, slot.Node, r.ChangedAt
	r.Attempt++
	if slot.Ahead {
		return Change{Made: true, Event: r.event(r.attemptEvent(job.EventClaimed))}
	}
	return r.start()
}

// start makes a claim a running one, at the time of the change.
func (r *Row) start() Change {
	r.State, r.StartedAt, r.WaitUntil = job.Processing, r.ChangedAt, time.Time{}
	return Change{Made: true, Event: r.event(r.attemptEvent(job.EventStarted))}
}

// Due makes a delayed job claimable whose time has come. It does not change any other job.
func (r *Row) Due(m Moment) Change {
	if !r.Delayed || r.Blocked || r.NotBefore.After(m.Now) {
		return Change{}
	}
	r.change(m)
	r.Delayed = false
	return Change{Made: true, Event: r.event(job.Event{Kind: job.EventDue})}
}

// holds reports whether the claim with the token holds the job, which may be nil.
func (r *Row) holds(token ledger.Token) bool { return r != nil && token != 0 && r.Token == token }

// Start turns a claim made ahead into a running one. The error is ledger.ErrFenced.
func (r *Row) Start(token ledger.Token, m Moment) (Change, error) {
	if !r.holds(token) {
		return Change{}, ledger.ErrFenced
	}
	if r.State == job.Processing {
		return Change{}, nil
	}
	r.change(m)
	return r.start(), nil
}

// CheckOutcome returns an error of class errdefs.ErrInternal if the outcome's state is not
// final, its failure does not fit the state, or it has no cause.
func CheckOutcome(o ledger.Outcome) error {
	if !o.State.Final() || (o.State == job.Failed) != (o.Failure != nil) || o.Cause == "" {
		return fmt.Errorf("state %q with failure %v and cause %q is no outcome: %w", o.State, o.Failure, o.Cause, errdefs.ErrInternal)
	}
	return nil
}

// CheckReturn returns an error of class errdefs.ErrInternal for a return without a cause.
func CheckReturn(why ledger.Return) error {
	if why.Cause == "" {
		return fmt.Errorf("no cause is given: %w", errdefs.ErrInternal)
	}
	return nil
}

// Finish ends the run and the attempt under way. The error is ledger.ErrFenced.
func (r *Row) Finish(token ledger.Token, o ledger.Outcome, keep Retention, m Moment) (Change, error) {
	if !r.holds(token) {
		return Change{}, ledger.ErrFenced
	}
	r.change(m)
	return r.endHeld(o, true, keep, m), nil
}

// Release ends the attempt under way and queues the job again, or ends it as
// cancelled where it is Cancelling. The error is ledger.ErrFenced.
func (r *Row) Release(token ledger.Token, why ledger.Return, keep Retention, m Moment) (Change, error) {
	if !r.holds(token) {
		return Change{}, ledger.ErrFenced
	}
	r.change(m)
	if r.Cancelling {
		return r.endHeld(ledger.Outcome{Cause: why.Cause, Reason: why.Reason, Usage: why.Usage, Phases: why.Phases, Log: why.Log}, why.Spent, keep, m), nil
	}
	event := r.attemptEvent(job.EventReturned)
	event.Cause, event.Reason = why.Cause, job.ClipReason(why.Reason)
	attempt := r.endAttempt(why)
	r.State, r.StartedAt = job.Queued, time.Time{}
	r.NotBefore = latest(r.NotBefore, KeptTime(why.NotBefore))
	r.Delayed = r.NotBefore.After(m.Now)
	return Change{Made: true, Attempt: attempt, Event: r.event(event)}, nil
}

// Cancel ends a job that nobody holds, and marks one that is held as Cancelling.
// The error is ledger.ErrNotFound, for a nil row, or ErrFinal.
func (r *Row) Cancel(keep Retention, m Moment) (Change, error) {
	switch {
	case r == nil:
		return Change{}, ledger.ErrNotFound
	case r.State.Final():
		return Change{}, ledger.ErrFinal
	case r.Cancelling:
		return Change{}, nil
	}
	r.change(m)
	if r.Token == 0 {
		return r.endRun(ledger.Outcome{State: job.Cancelled}, job.Event{Kind: job.EventEnded, Cause: job.CauseCancelled}, keep, m), nil
	}
	r.Cancelling = true
	return Change{Made: true, Event: r.event(r.attemptEvent(job.EventCancelled))}, nil
}

// GiveUp fails a job that nobody holds and whose waiting time is over. It does not change
// any other job.
func (r *Row) GiveUp(keep Retention, m Moment) Change {
	if r == nil {
		return Change{}
	}
	at := r.GiveUpAt()
	if at.IsZero() || at.After(m.Now) {
		return Change{}
	}
	event := job.Event{Kind: job.EventEnded, Cause: job.CauseDeadline}
	if at.Equal(r.WaitUntil) {
		event.Cause = job.CauseWaitTimeout
		event.Reason = fmt.Sprintf("The job waited longer than its wait_timeout of %s allows", r.waitTimeout())
	} else {
		event.Reason = fmt.Sprintf("The job's deadline, %s, passed while it waited for a sheep", r.Deadline.Format(time.RFC3339))
	}
	r.change(m)
	return r.endRun(ledger.Outcome{State: job.Failed, Failure: &job.Failure{Message: event.Reason}}, event, keep, m)
}

// waitTimeout is how long the job was allowed to wait. Where that was a default and not the
// job's own limit, it is rounded to seconds, because WaitUntil was computed from a time a
// little before EnqueuedAt.
func (r *Row) waitTimeout() time.Duration {
	if limit := r.Limits.WaitTimeout; limit != nil && *limit > 0 {
		return *limit
	}
	wait := max(r.WaitUntil.Sub(r.EnqueuedAt), 0)
	if wait < time.Second {
		return wait
	}
	return wait.Round(time.Second)
}

// endHeld ends the run and the attempt under way: with the outcome o, or as cancelled where
// the job is Cancelling.
func (r *Row) endHeld(o ledger.Outcome, spent bool, keep Retention, m Moment) Change {
	if r.Cancelling {
		o.State, o.Failure, o.Cause = job.Cancelled, nil, job.CauseCancelled
	}
	if !o.At.IsZero() {
		o.At = latest(KeptTime(o.At), r.ClaimedAt, r.StartedAt)
		r.ChangedAt = latest(r.ChangedAt, o.At)
	}
	event := r.attemptEvent(job.EventEnded)
	event.Cause, event.Reason = o.Cause, job.ClipReason(o.Reason)
	attempt := r.endAttempt(ledger.Return{Cause: o.Cause, Reason: o.Reason, Spent: spent, Usage: o.Usage, Phases: o.Phases, Log: o.Log})
	r.Usage = attempt.Usage
	change := r.endRun(o, event, keep, m)
	change.Attempt = attempt
	return change
}

// endAttempt ends the claim and returns the attempt to keep.
func (r *Row) endAttempt(why ledger.Return) *job.Attempt {
	a := &job.Attempt{
		Run: r.Run, Number: r.Attempt, Node: r.Node, Sheep: r.Holder, Began: r.ClaimedAt, Started: r.StartedAt, Ended: r.ChangedAt,
		Cause: why.Cause, Reason: job.ClipReason(why.Reason), Spent: why.Spent,
		Usage: keptUsage(why.Usage), Phases: keptPhases(why.Phases), Log: keptLog(why.Log),
	}
	if why.Spent {
		r.Spent++
	}
	r.Holder, r.Node, r.Token, r.Cancelling, r.ClaimedAt = "", "", 0, false, time.Time{}
	return a
}

// endRun gives a row that nobody holds its final state.
func (r *Row) endRun(o ledger.Outcome, event job.Event, keep Retention, m Moment) Change {
	r.State, r.Failure, r.Warnings, r.Delayed, r.Blocked = o.State, o.Failure.Clip(), keptWarnings(o.Warnings), false, false
	if r.FinishedAt = o.At; r.FinishedAt.IsZero() {
		r.FinishedAt = r.ChangedAt
	}
	r.EndedAge = m.Age
	if keep != nil {
		r.keep(keep(r.Record))
	}
	r.ShowRetention()
	return Change{Made: true, Event: r.event(event)}
}
