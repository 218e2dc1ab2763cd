package lifecycle

import (
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// Restore returns the row of a record of another ledger, the attempts to keep, and the event
// to record, nil for none; see ledger.Restorer. The Seq is the other ledger's.
func Restore(s ledger.Saved, keep Retention, m Moment) (*Row, []job.Attempt, *job.Event) {
	rec := s.Record
	r := &Row{Record: rec}
	r.Holder, r.Node, r.Cancelling = "", "", false
	r.ChangedAt = latest(m.Now, rec.EnqueuedAt, rec.StartedAt, rec.FinishedAt)
	var attempts []job.Attempt
	var interrupted *job.Attempt
	for _, a := range s.Attempts {
		if a.Ended.IsZero() {
			a.Ended, a.Cause, a.Reason, a.Spent = r.ChangedAt, job.CauseInterrupted, "the job was moved to another ledger", true
			r.Spent++
			interrupted = &a
		}
		a.Log = keptLog(a.Log)
		attempts = append(attempts, a)
	}
	if rec.State.Final() {
		r.Blocked = false
		r.EndedAge = m.Age
		r.restoreRetention(rec, m)
		r.ShowRetention()
		return r, attempts, nil
	}
	r.State = job.Queued
	r.Delayed = r.Blocked || r.NotBefore.After(m.Now)
	switch {
	case rec.Cancelling:
		event := interruptedEvent(job.EventEnded, job.CauseCancelled, interrupted)
		return r, attempts, r.endRun(ledger.Outcome{State: job.Cancelled}, event, keep, m).Event
	case interrupted != nil:
		r.StartedAt = time.Time{}
		return r, attempts, r.event(interruptedEvent(job.EventReturned, job.CauseInterrupted, interrupted))
	}
	return r, attempts, nil
}

// interruptedEvent is the event of the end of an attempt that was under way.
func interruptedEvent(kind job.EventKind, cause job.Cause, a *job.Attempt) job.Event {
	e := job.Event{Kind: kind, Cause: cause}
	if a != nil {
		e.Reason, e.Attempt, e.Node, e.Sheep = a.Reason, a.Number, a.Node, a.Sheep
	}
	return e
}

// restoreRetention keeps the files for the time that was left.
func (r *Row) restoreRetention(rec job.Record, m Moment) {
	switch {
	case rec.FilesRemoved:
		r.RemovedAt = rec.KeptUntil
	case rec.Removing:
		r.Removal, r.RemoveAge = OfFiles, 1
	case !rec.KeptUntil.IsZero():
		r.KeptFor = max(rec.KeptUntil.Sub(rec.FinishedAt), time.Microsecond)
		r.RemoveAge = r.EndedAge + max(rec.KeptUntil.Sub(m.Now).Microseconds(), 1)
	}
}
