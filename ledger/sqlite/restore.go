package sqlite

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

var _ ledger.Restorer = (*Ledger)(nil)

// Restore implements ledger.Restorer.
func (l *Ledger) Restore(ctx context.Context, saved []ledger.Saved) error {
	return l.change(ctx, "restore records", func(t *tx) error {
		for _, s := range saved { // before anything is written: a refusal must leave nothing
			switch _, err := t.byID(s.Record.ID); {
			case err == nil:
				return fmt.Errorf("job %s: %w", s.Record.ID, ledger.ErrExists)
			case !errors.Is(err, ledger.ErrNotFound):
				return err
			}
		}
		for _, s := range saved {
			if err := t.restore(s); err != nil {
				return err
			}
		}
		return nil
	}, nil)
}

func (t *tx) restore(s ledger.Saved) error {
	rec := s.Record
	r := &row{Record: rec}
	r.Holder, r.Node, r.Cancelling = "", "", false
	r.State, r.changedAt = job.Queued, latest(t.now, rec.EnqueuedAt, rec.StartedAt, rec.FinishedAt)
	r.Blocked = r.Blocked && !rec.State.Final()
	r.delayed = !rec.State.Final() && (r.Blocked || r.NotBefore.After(t.now))
	defer func() { t.rows[r.ID] = nil }() // the record's times and limits are as another ledger told them
	if entered, err := t.insert(r); err != nil || !entered {
		return cmp.Or(err, ledger.ErrExists)
	}
	if err := t.addWebhook(r); err != nil {
		return err
	}
	if r.Blocked { // what it waits for may have ended by being restored
		t.unsettled = append(t.unsettled, r.Seq)
	}
	var interrupted *job.Attempt
	for _, a := range s.Attempts {
		if a.Ended.IsZero() {
			a.Ended, a.Cause, a.Reason, a.Spent = r.changedAt, job.CauseInterrupted, "the job was moved to another ledger", true
			r.Spent++
			interrupted = &a
		}
		_, err := t.exec(t.do.insertAttempt, string(r.ID), a.Run, a.Number, a.Node, a.Sheep, fromTime(a.Began), fromTime(a.Started), fromTime(a.Ended),
			string(a.Cause), a.Reason, a.Spent, a.Usage.GPUMemory, a.Usage.GPUTime.Microseconds(),
			a.Phases.Stage.Microseconds(), a.Phases.Load.Microseconds(), a.Phases.Run.Microseconds(), a.Phases.Collect.Microseconds(), keptLog(a.Log))
		if err != nil {
			return err
		}
	}
	switch {
	case rec.State.Final():
		if _, err := t.exec(t.do.webhooks.complete, string(r.ID), r.Run); err != nil {
			return err
		}
		r.State, r.endedAge = rec.State, t.age
		r.restoreRetention(rec, t.now)
		return t.save(r)
	case rec.Cancelling:
		return t.endRun(r, ending{state: job.Cancelled}, interruptedEvent(job.EventEnded, job.CauseCancelled, interrupted))
	case interrupted != nil:
		r.StartedAt = time.Time{}
		if err := t.save(r); err != nil {
			return err
		}
		return t.record(r, interruptedEvent(job.EventReturned, job.CauseInterrupted, interrupted))
	}
	return t.save(r)
}

// interruptedEvent is the event of the end of an attempt that was under way.
func interruptedEvent(kind job.EventKind, cause job.Cause, a *job.Attempt) job.Event {
	e := job.Event{Kind: kind, Cause: cause}
	if a != nil {
		e.Reason, e.Attempt, e.Node, e.Sheep = a.Reason, a.Number, a.Node, a.Sheep
	}
	return e
}

// restoreRetention has the files kept for as long as was left.
func (r *row) restoreRetention(rec job.Record, now time.Time) {
	switch {
	case rec.FilesRemoved:
		r.removedAt = rec.KeptUntil
	case rec.Removing:
		r.removal, r.removeAge = ofFiles, 1
	case !rec.KeptUntil.IsZero():
		r.keptFor = max(rec.KeptUntil.Sub(rec.FinishedAt), time.Microsecond)
		r.removeAge = r.endedAge + max(rec.KeptUntil.Sub(now).Microseconds(), 1)
	}
}
