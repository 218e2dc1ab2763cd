package lifecycle

import (
	"fmt"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// Waits reports whether a job that is after others still has to wait for one of them, and
// returns the failure with which it ends, nil for none. state returns the state of a job,
// empty for one that has no record any more, which was done.
func Waits(after []job.ID, state func(job.ID) job.State) (waits bool, failure *job.Failure) {
	for _, id := range after {
		switch s := state(id); s {
		case job.Done, "":
		case job.Failed, job.Cancelled:
			was := "failed"
			if s == job.Cancelled {
				was = "was cancelled"
			}
			return false, &job.Failure{Message: fmt.Sprintf("Job `%s`, whose outputs this one needs, %s; run that again, and then this one", id, was)}
		default:
			waits = true
		}
	}
	return waits, nil
}

// Unblock makes a blocked job claimable where the jobs that it is after are done, and
// fails it where one of them ended otherwise. It does not change any other job. state is as
// for Waits.
func (r *Row) Unblock(state func(job.ID) job.State, keep Retention, m Moment) Change {
	if r == nil || !r.Blocked {
		return Change{}
	}
	waits, failure := Waits(r.After, state)
	switch {
	case failure != nil:
		r.change(m)
		return r.endRun(ledger.Outcome{State: job.Failed, Failure: failure}, job.Event{Kind: job.EventEnded, Cause: job.CauseAfter, Reason: failure.Message}, keep, m)
	case waits:
		return Change{}
	}
	r.change(m)
	r.Blocked, r.Delayed = false, r.NotBefore.After(m.Now)
	if r.Delayed {
		return Change{Made: true} // an event follows when it is due
	}
	return Change{Made: true, Event: r.event(job.Event{Kind: job.EventDue})}
}
