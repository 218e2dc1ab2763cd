package memory

import (
	"cmp"
	"context"
	"fmt"
	"slices"
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

// Create implements ledger.Ledger.
func (l *Ledger) Create(ctx context.Context, rec job.Record) (job.Record, error) {
	return l.change(ctx, "queue job "+string(rec.ID), func(now time.Time) (*record, error) {
		l.seq++
		r := &record{Record: job.Record{
			ID: rec.ID, Model: rec.Model, Sheep: rec.Sheep, Priority: rec.Priority, Trace: rec.Trace, Tenant: rec.Tenant, Limits: rec.Limits.Clone(),
			NotBefore: keptTime(rec.NotBefore), WaitUntil: keptTime(rec.WaitUntil), Deadline: keptTime(rec.Deadline),
			Keep: keptKeep(rec.Keep), Labels: rec.Labels.Clone(), Idempotency: rec.Idempotency, State: job.Queued, Run: 1, Seq: l.seq,
		}}
		if old := l.find(rec.ID); old != nil {
			switch {
			case rec.Tenant != "" && rec.Tenant != old.Tenant:
				return nil, ledger.ErrOthers
			case !old.State.Final(), rec.Idempotency != "" && rec.Idempotency == old.Idempotency:
				return nil, ledger.ErrExists
			case old.removal != noRemoval:
				return nil, ledger.ErrRemoving
			}
			r.Run, r.Tenant, r.changedAt = old.Run+1, old.Tenant, old.changedAt
			l.drop(old)
		}
		r.change(now)
		r.EnqueuedAt = r.changedAt
		r.delayed = r.NotBefore.After(now)
		l.jobs = append(l.jobs, r)
		l.note(r, job.Event{Kind: job.EventQueued})
		return r, nil
	})
}

// drop removes a record; its attempts stay.
func (l *Ledger) drop(old *record) {
	l.jobs = slices.DeleteFunc(l.jobs, func(r *record) bool { return r == old })
}

// change notes that the record changes now, or at the time of its last change
// where the clock went back since.
func (r *record) change(now time.Time) { r.changedAt = latest(now, r.changedAt) }

// Claim implements ledger.Ledger.
func (l *Ledger) Claim(ctx context.Context, slot ledger.Slot) (*ledger.Claim, error) {
	var claim *ledger.Claim
	err := l.call(ctx, "claim a job for sheep "+slot.Sheep, func() error {
		r := l.choose(slot)
		if r == nil {
			return nil
		}
		l.token++
		r.token, r.Holder, r.Node = l.token, slot.Sheep, slot.Node
		r.Attempt++
		r.change(l.now())
		r.claimedAt = r.changedAt
		kind := job.EventClaimed
		if !slot.Ahead {
			kind = job.EventStarted
			r.start()
		}
		l.note(r, r.attemptEvent(kind))
		claim = &ledger.Claim{Record: r.copy(), Token: r.token}
		return nil
	})
	return claim, err
}

// choose is the job that the slot gets, nil for none.
func (l *Ledger) choose(slot ledger.Slot) *record {
	var first *record
	for _, r := range l.jobs {
		addressed := r.Sheep == slot.Sheep
		anyone := r.Sheep == "" && !slot.Addressed && (slot.Only != "" || !slices.Contains(slot.Except, r.Model))
		if !r.claimable() || !addressed && !anyone || slot.Only != "" && r.ID != slot.Only {
			continue
		}
		if first == nil || r.Priority > first.Priority ||
			r.Priority == first.Priority && r.Model == slot.Prefer && first.Model != slot.Prefer {
			first = r
		}
	}
	return first
}

// claimable reports whether a slot can claim the job.
func (r *record) claimable() bool { return r.State == job.Queued && r.token == 0 && !r.delayed }

// attemptEvent is an event of the attempt under way.
func (r *record) attemptEvent(kind job.EventKind) job.Event {
	return job.Event{Kind: kind, Attempt: r.Attempt, Node: r.Node, Sheep: r.Holder}
}

// start begins the attempt's turn.
func (r *record) start() {
	r.State, r.StartedAt, r.WaitUntil = job.Processing, r.changedAt, time.Time{}
}

// Start implements ledger.Ledger.
func (l *Ledger) Start(ctx context.Context, id job.ID, token ledger.Token) (job.Record, error) {
	return l.change(ctx, "start job "+string(id), func(now time.Time) (*record, error) {
		r, err := l.held(id, token)
		if err != nil || r.State == job.Processing {
			return r, err
		}
		r.change(now)
		r.start()
		l.note(r, r.attemptEvent(job.EventStarted))
		return r, nil
	})
}

// Finish implements ledger.Ledger. An outcome that is none is of class
// errdefs.ErrInternal.
func (l *Ledger) Finish(ctx context.Context, id job.ID, token ledger.Token, o ledger.Outcome) (job.Record, error) {
	return l.change(ctx, "finish job "+string(id), func(now time.Time) (*record, error) {
		if !o.State.Final() || (o.State == job.Failed) != (o.Failure != nil) || o.Cause == "" {
			return nil, fmt.Errorf("state %q with failure %v and cause %q is no outcome: %w", o.State, o.Failure, o.Cause, errdefs.ErrInternal)
		}
		r, err := l.held(id, token)
		if err != nil {
			return nil, err
		}
		r.change(now)
		l.endHeld(r, o, true)
		return r, nil
	})
}

// Release implements ledger.Ledger. A return without a cause is of class
// errdefs.ErrInternal.
func (l *Ledger) Release(ctx context.Context, id job.ID, token ledger.Token, why ledger.Return) (job.Record, error) {
	return l.change(ctx, "release job "+string(id), func(now time.Time) (*record, error) {
		if why.Cause == "" {
			return nil, fmt.Errorf("no cause is given: %w", errdefs.ErrInternal)
		}
		r, err := l.held(id, token)
		if err != nil {
			return nil, err
		}
		r.change(now)
		if r.Cancelling {
			l.endHeld(r, ledger.Outcome{Cause: why.Cause, Reason: why.Reason, Usage: why.Usage, Phases: why.Phases, Log: why.Log}, why.Spent)
			return r, nil
		}
		event := r.attemptEvent(job.EventReturned)
		event.Cause, event.Reason = why.Cause, job.ClipReason(why.Reason)
		l.endAttempt(r, why)
		r.State, r.StartedAt = job.Queued, time.Time{}
		r.NotBefore = latest(r.NotBefore, keptTime(why.NotBefore))
		r.delayed = r.NotBefore.After(now)
		l.note(r, event)
		return r, nil
	})
}

// Cancel implements ledger.Ledger.
func (l *Ledger) Cancel(ctx context.Context, id job.ID) (job.Record, error) {
	return l.change(ctx, "cancel job "+string(id), func(now time.Time) (*record, error) {
		r := l.find(id)
		switch {
		case r == nil:
			return nil, ledger.ErrNotFound
		case r.State.Final():
			return nil, ledger.ErrFinal
		case r.Cancelling:
			return r, nil
		}
		r.change(now)
		if r.token == 0 {
			l.endRun(r, ledger.Outcome{State: job.Cancelled}, job.Event{Kind: job.EventEnded, Cause: job.CauseCancelled})
			return r, nil
		}
		r.Cancelling = true
		l.note(r, r.attemptEvent(job.EventCancelled))
		return r, nil
	})
}

// endHeld ends the run and the attempt under way: as o says, or as cancelled.
func (l *Ledger) endHeld(r *record, o ledger.Outcome, spent bool) {
	if r.Cancelling {
		o.State, o.Failure, o.Cause = job.Cancelled, nil, job.CauseCancelled
	}
	if !o.At.IsZero() {
		o.At = latest(keptTime(o.At), r.claimedAt, r.StartedAt)
		r.changedAt = latest(r.changedAt, o.At)
	}
	event := r.attemptEvent(job.EventEnded)
	event.Cause, event.Reason = o.Cause, job.ClipReason(o.Reason)
	l.endAttempt(r, ledger.Return{Cause: o.Cause, Reason: o.Reason, Spent: spent, Usage: o.Usage, Phases: o.Phases, Log: o.Log})
	r.Usage = keptUsage(o.Usage)
	l.endRun(r, o, event)
}

// endAttempt ends the claim, and keeps the attempt.
func (l *Ledger) endAttempt(r *record, why ledger.Return) {
	a := r.attempt()
	a.Ended, a.Cause, a.Reason, a.Spent = r.changedAt, why.Cause, job.ClipReason(why.Reason), why.Spent
	a.Usage, a.Phases = keptUsage(why.Usage), keptPhases(why.Phases)
	if len(why.Log) <= ledger.MaxLog {
		a.Log = why.Log
	}
	kept := slices.DeleteFunc(l.attempts[r.ID], func(old job.Attempt) bool {
		return old.Run <= r.Run-keepRuns || old.Run == r.Run && old.Number <= r.Attempt-keepAttempts
	})
	l.attempts[r.ID] = append(kept, a)
	if why.Spent {
		r.Spent++
	}
	r.Holder, r.Node, r.token, r.Cancelling, r.claimedAt = "", "", 0, false, time.Time{}
}

// attempt is the one under way.
func (r *record) attempt() job.Attempt {
	return job.Attempt{Run: r.Run, Number: r.Attempt, Node: r.Node, Sheep: r.Holder, Began: r.claimedAt, Started: r.StartedAt}
}

// endRun gives a record that nobody holds its final state, and lets go of the
// oldest that ended where there are more than are kept.
func (l *Ledger) endRun(r *record, o ledger.Outcome, event job.Event) {
	r.State, r.Failure, r.Warnings, r.delayed = o.State, o.Failure.Clip(), clipWarnings(o.Warnings), false
	if r.FinishedAt = o.At; r.FinishedAt.IsZero() {
		r.FinishedAt = r.changedAt
	}
	l.endings++
	r.ended = l.endings
	if l.cfg.Retention != nil {
		r.keep(l.cfg.Retention(r.Record))
	}
	l.note(r, event)
	l.expire()
}

// expire lets go of the records that ended first, where there are more than are
// kept; those whose files are to be removed stay.
func (l *Ledger) expire() {
	var ended []*record
	for _, r := range l.jobs {
		if r.State.Final() && r.removeAt.IsZero() {
			ended = append(ended, r)
		}
	}
	slices.SortStableFunc(ended, func(a, b *record) int { return cmp.Compare(a.ended, b.ended) })
	for _, oldest := range ended[:max(len(ended)-l.cfg.KeepJobs, 0)] {
		l.drop(oldest)
		delete(l.attempts, oldest.ID)
	}
}

// runTimers makes jobs claimable whose time has come, fails those that waited for
// too long, and has itself called when it is time again.
func (l *Ledger) runTimers() {
	if l.closed {
		return
	}
	now := l.now()
	var next time.Time
	soonest := func(at time.Time) {
		if !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	for _, r := range slices.Clone(l.jobs) {
		if r.delayed && !r.NotBefore.After(now) {
			r.change(now)
			r.delayed = false
			l.note(r, job.Event{Kind: job.EventDue})
		}
		if at := r.giveUpAt(); !at.IsZero() && !at.After(now) {
			r.change(now)
			l.giveUp(r)
		}
		if r.delayed {
			soonest(r.NotBefore)
		}
		soonest(r.giveUpAt())
	}
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
	if !next.IsZero() {
		const clockJumps = time.Hour // the clock is looked at again, should it have jumped
		l.timer = time.AfterFunc(min(next.Sub(now), clockJumps), func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.runTimers()
		})
	}
}

// giveUpAt is when the job fails if nobody holds it then; zero for never.
func (r *record) giveUpAt() time.Time {
	if r.State != job.Queued || r.token != 0 {
		return time.Time{}
	}
	if r.WaitUntil.IsZero() || !r.Deadline.IsZero() && r.Deadline.Before(r.WaitUntil) {
		return r.Deadline
	}
	return r.WaitUntil
}

// giveUp fails a job that nobody holds and whose time to wait is over.
func (l *Ledger) giveUp(r *record) {
	event := job.Event{Kind: job.EventEnded, Cause: job.CauseDeadline}
	if r.giveUpAt().Equal(r.WaitUntil) {
		event.Cause = job.CauseWaitTimeout
		wait := r.WaitUntil.Sub(r.EnqueuedAt)
		if limit := r.Limits.WaitTimeout; limit != nil && *limit > 0 {
			wait = *limit
		}
		event.Reason = fmt.Sprintf("The job waited longer than its wait_timeout of %s allows", wait)
	} else {
		event.Reason = fmt.Sprintf("The job's deadline, %s, passed while it waited for a sheep", r.Deadline.Format(time.RFC3339))
	}
	l.endRun(r, ledger.Outcome{State: job.Failed, Failure: &job.Failure{Message: event.Reason}}, event)
}

// keptTime is t as records keep times. One before 1970 is as long past as a time
// can be.
func keptTime(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return latest(t.UTC().Truncate(time.Microsecond), time.UnixMicro(1).UTC())
}

// latest is the last of the times.
func latest(times ...time.Time) time.Time { return slices.MaxFunc(times, time.Time.Compare) }

func keptUsage(usage job.Usage) job.Usage {
	usage.GPUTime = usage.GPUTime.Truncate(time.Microsecond)
	return usage
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

// inOrder compares groups of waiting jobs: those with most jobs come first.
func inOrder(a, b ledger.Waiting) int {
	return cmp.Or(cmp.Compare(b.Jobs, a.Jobs), cmp.Compare(a.Model.Name, b.Model.Name),
		cmp.Compare(a.Model.Version, b.Model.Version), cmp.Compare(a.Sheep, b.Sheep))
}
