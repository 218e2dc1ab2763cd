package sqlite

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// How many attempts are kept with a job: the last ones of each of its last runs.
const (
	keepAttempts = 50
	keepRuns     = 10
)

// changeRecord makes a change and returns the record as it is then.
func (l *Ledger) changeRecord(ctx context.Context, doing string, apply func(*tx) (*row, error)) (job.Record, error) {
	var changed *row
	err := l.change(ctx, doing, func(t *tx) (err error) {
		changed, err = apply(t)
		return err
	}, nil)
	if err != nil {
		return job.Record{}, err
	}
	return changed.Record, nil
}

// Start implements ledger.Ledger.
func (l *Ledger) Start(ctx context.Context, id job.ID, token ledger.Token) (job.Record, error) {
	return l.changeRecord(ctx, "start job "+string(id), func(t *tx) (*row, error) {
		r, err := t.held(id, token)
		if err != nil || r.State == job.Processing {
			return r, err
		}
		t.change(r)
		r.start()
		if err := t.save(r); err != nil {
			return nil, err
		}
		return r, t.record(r, r.attemptEvent(job.EventStarted))
	})
}

// Finish implements ledger.Ledger. An outcome that is none (its state is not
// final, its failure does not fit the state, or it has no cause) is of class
// errdefs.ErrInternal.
func (l *Ledger) Finish(ctx context.Context, id job.ID, token ledger.Token, outcome ledger.Outcome) (job.Record, error) {
	doing := "finish job " + string(id)
	if !outcome.State.Final() || (outcome.State == job.Failed) != (outcome.Failure != nil) || outcome.Cause == "" {
		return job.Record{}, fmt.Errorf("%s: state %q with failure %v and cause %q is no outcome: %w", doing, outcome.State, outcome.Failure, outcome.Cause, errdefs.ErrInternal)
	}
	end := ending{
		state: outcome.State, failure: outcome.Failure.Clip(), finished: keptTime(outcome.At), warnings: clipWarnings(outcome.Warnings),
		attempt: attemptEnd{outcome.Cause, job.ClipReason(outcome.Reason), true, keptUsage(outcome.Usage), keptPhases(outcome.Phases), keptLog(outcome.Log)},
	}
	return l.changeRecord(ctx, doing, func(t *tx) (*row, error) {
		r, err := t.held(id, token)
		if err != nil {
			return nil, err
		}
		t.change(r)
		end := end // this may run again
		if r.Cancelling {
			end.state, end.failure, end.attempt.cause = job.Cancelled, nil, job.CauseCancelled
		}
		return r, t.endHeld(r, end)
	})
}

// Release implements ledger.Ledger. A return without a cause is of class
// errdefs.ErrInternal.
func (l *Ledger) Release(ctx context.Context, id job.ID, token ledger.Token, why ledger.Return) (job.Record, error) {
	doing := "release job " + string(id)
	if why.Cause == "" {
		return job.Record{}, fmt.Errorf("%s: no cause is given: %w", doing, errdefs.ErrInternal)
	}
	return l.changeRecord(ctx, doing, func(t *tx) (*row, error) { return t.release(id, token, why) })
}

func (t *tx) release(id job.ID, token ledger.Token, why ledger.Return) (*row, error) {
	r, err := t.held(id, token)
	if err != nil {
		return nil, err
	}
	t.change(r)
	end := attemptEnd{why.Cause, job.ClipReason(why.Reason), why.Spent, keptUsage(why.Usage), keptPhases(why.Phases), keptLog(why.Log)}
	if r.Cancelling {
		end.cause = job.CauseCancelled
		return r, t.endHeld(r, ending{state: job.Cancelled, attempt: end})
	}
	event := r.attemptEvent(job.EventReturned)
	event.Cause, event.Reason = end.cause, end.reason
	if err := t.endAttempt(r, end); err != nil {
		return nil, err
	}
	r.State, r.StartedAt = job.Queued, time.Time{}
	r.NotBefore = latest(r.NotBefore, keptTime(why.NotBefore))
	r.delayed = r.NotBefore.After(t.now)
	if err := t.save(r); err != nil {
		return nil, err
	}
	return r, t.record(r, event)
}

// Cancel implements ledger.Ledger.
func (l *Ledger) Cancel(ctx context.Context, id job.ID) (job.Record, error) {
	return l.changeRecord(ctx, "cancel job "+string(id), func(t *tx) (*row, error) {
		r, err := t.byID(id)
		switch {
		case err != nil:
			return nil, err
		case r.State.Final():
			return nil, ledger.ErrFinal
		case r.Cancelling:
			return r, nil
		}
		t.change(r)
		if r.token == 0 {
			return r, t.endRun(r, ending{state: job.Cancelled}, job.Event{Kind: job.EventEnded, Cause: job.CauseCancelled})
		}
		r.Cancelling = true
		if err := t.save(r); err != nil {
			return nil, err
		}
		return r, t.record(r, r.attemptEvent(job.EventCancelled))
	})
}

// attemptEvent is an event of the attempt under way.
func (r *row) attemptEvent(kind job.EventKind) job.Event {
	return job.Event{Kind: kind, Attempt: r.Attempt, Node: r.Node, Sheep: r.Holder}
}

// attemptEnd is how an attempt ended, as it is kept.
type attemptEnd struct {
	cause  job.Cause
	reason string
	spent  bool
	usage  job.Usage
	phases job.Phases
	log    string
}

// ending is how a run ended, as it is kept, and its last attempt where the job
// was held.
type ending struct {
	state    job.State
	failure  *job.Failure
	finished time.Time // zero for the time of the change
	warnings []string
	attempt  attemptEnd
}

// endAttempt ends the claim, and keeps the attempt in a row of its own.
func (t *tx) endAttempt(r *row, end attemptEnd) error {
	_, err := t.exec(t.do.insertAttempt, string(r.ID), r.Run, r.Attempt, r.Node, r.Holder, fromTime(r.claimedAt), fromTime(r.StartedAt), fromTime(r.changedAt),
		string(end.cause), end.reason, end.spent, end.usage.GPUMemory, end.usage.GPUTime.Microseconds(),
		end.phases.Stage.Microseconds(), end.phases.Load.Microseconds(), end.phases.Run.Microseconds(), end.phases.Collect.Microseconds(), end.log)
	if err != nil {
		return err
	}
	if r.Attempt > keepAttempts {
		if _, err := t.exec(t.do.trimAttempts, string(r.ID), r.Run, r.Attempt-keepAttempts); err != nil {
			return err
		}
	}
	if end.spent {
		r.Spent++
	}
	if err := t.charge(r, end); err != nil {
		return err
	}
	r.drop()
	return nil
}

// endHeld ends the run and the attempt under way.
func (t *tx) endHeld(r *row, end ending) error {
	if !end.finished.IsZero() {
		end.finished = latest(end.finished, r.claimedAt, r.StartedAt)
		r.changedAt = latest(r.changedAt, end.finished)
	}
	event := r.attemptEvent(job.EventEnded)
	event.Cause, event.Reason = end.attempt.cause, end.attempt.reason
	if err := t.endAttempt(r, end.attempt); err != nil {
		return err
	}
	r.Usage = end.attempt.usage
	return t.endRun(r, end, event)
}

// endRun gives a record that nobody holds its final state.
func (t *tx) endRun(r *row, end ending, event job.Event) error {
	r.State, r.Failure, r.Warnings, r.delayed, r.Blocked = end.state, end.failure, end.warnings, false, false
	r.FinishedAt = end.finished
	if r.FinishedAt.IsZero() {
		r.FinishedAt = r.changedAt
	}
	r.endedAge = t.age
	if t.w.cfg.Retention != nil {
		r.keep(t.w.cfg.Retention(r.Record))
	}
	if err := t.save(r); err != nil {
		return err
	}
	return t.record(r, event)
}

func keptUsage(usage job.Usage) job.Usage {
	usage.GPUTime = usage.GPUTime.Truncate(time.Microsecond)
	return usage
}

// keptLog drops what is too long to be the name of a part of a log.
func keptLog(log string) string {
	if len(log) > ledger.MaxLog {
		return ""
	}
	return log
}

func keptPhases(phases job.Phases) job.Phases {
	for _, d := range []*time.Duration{&phases.Stage, &phases.Load, &phases.Run, &phases.Collect} {
		*d = d.Truncate(time.Microsecond)
	}
	return phases
}

// maxWarnings is how many warnings are kept with a record.
const maxWarnings = 50

func clipWarnings(warnings []string) []string {
	var kept []string
	for i, warning := range warnings {
		if i == maxWarnings-1 && len(warnings) > maxWarnings {
			return append(kept, fmt.Sprintf("… and %d more", len(warnings)-i))
		}
		kept = append(kept, job.ClipReason(warning))
	}
	return kept
}

// Ping implements ledger.Ledger: it writes the numbers that are written beside
// other changes, which needs a disk that works and has space.
func (l *Ledger) Ping(ctx context.Context) error {
	return l.change(ctx, "write to the ledger", (*tx).writeNumbers, nil)
}
