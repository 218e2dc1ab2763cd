package ledgertest

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// reference is a ledger that is as simple as the contract: a slow list in memory. It keeps
// only the times that it is given, and of those only whether they have passed: no time of
// the test passes while it runs.
type reference struct {
	seq    int64
	jobs   []*referenceJob // by Seq
	events []job.Event     // that the ledger has yet to record
	loose  map[job.ID]bool // jobs whose next events may be recorded in any order
	ended  map[job.ID][]job.Attempt
	policy ledger.Policy
}

type referenceJob struct {
	job.Record
	token   ledger.Token
	started bool // the attempt under way
}

func newReference(policy ledger.Policy) *reference {
	return &reference{ended: map[job.ID][]job.Attempt{}, policy: policy, loose: map[job.ID]bool{}}
}

func (m *reference) find(id job.ID) *referenceJob {
	for _, j := range m.jobs {
		if j.ID == id {
			return j
		}
	}
	return nil
}

// record adds the event of a change.
func (m *reference) record(j *referenceJob, event job.Event) {
	event.Job, event.Run, event.Model, event.Address, event.Tenant, event.State = j.ID, j.Run, j.Model, j.Sheep, j.Tenant, j.State
	event.Delayed = j.delayed()
	m.events = append(m.events, event)
}

func (j *referenceJob) attemptEvent(kind job.EventKind) job.Event {
	return job.Event{Kind: kind, Attempt: j.Attempt, Node: j.Node, Sheep: j.Holder}
}

func (j *referenceJob) delayed() bool {
	return j.State == job.Queued && j.token == 0 && (j.Blocked || j.NotBefore.After(time.Now()))
}

// afterTrouble returns the error of a job that cannot be after those that it names, and
// whether one of them has not ended.
func (m *reference) afterTrouble(rec job.Record) (blocked bool, _ *ledger.AfterError) {
	for _, id := range rec.After {
		other := m.find(id)
		switch {
		case other == nil || id == rec.ID || rec.Tenant != "" && rec.Tenant != other.Tenant:
			return false, &ledger.AfterError{Job: id}
		case other.State == job.Failed || other.State == job.Cancelled:
			return false, &ledger.AfterError{Job: id, State: other.State}
		case other.State != job.Done:
			blocked = true
		}
	}
	return blocked, nil
}

// needed reports whether a job that has not ended is after the given one.
func (m *reference) needed(id job.ID) bool {
	return slices.ContainsFunc(m.jobs, func(j *referenceJob) bool { return !j.State.Final() && slices.Contains(j.After, id) })
}

// next is the index of the expected event that the ledger has recorded: the first, or that
// of a job that was after others, which are recorded in any order.
func (m *reference) next(got job.Event) int {
	for i, want := range m.events {
		if !m.loose[want.Job] {
			break
		}
		if want.Job == got.Job {
			return i
		}
	}
	return 0
}

// unblock unblocks or fails the jobs that are after one that has ended.
func (m *reference) unblock(ended job.ID) {
	for _, j := range slices.Clone(m.jobs) {
		if !j.Blocked || !slices.Contains(j.After, ended) {
			continue
		}
		waits, broken := false, false
		for _, id := range j.After {
			switch state := m.find(id).State; {
			case state == job.Failed || state == job.Cancelled:
				broken = true
			case state != job.Done:
				waits = true
			}
		}
		m.loose[j.ID] = true
		switch {
		case broken:
			m.endRun(j, ledger.Outcome{State: job.Failed, Failure: &job.Failure{}}, job.Event{Kind: job.EventEnded, Cause: job.CauseAfter})
		case !waits:
			if j.Blocked = false; !j.delayed() {
				m.record(j, job.Event{Kind: job.EventDue})
			}
		}
	}
}

func (m *reference) create(rec job.Record) error {
	run := 1
	if old := m.find(rec.ID); old != nil {
		if rec.Tenant != "" && rec.Tenant != old.Tenant {
			return ledger.ErrOthers
		}
		switch {
		case !old.State.Final():
			return ledger.ErrExists
		case m.needed(rec.ID):
			return ledger.ErrNeeded
		}
	}
	blocked, trouble := m.afterTrouble(rec)
	if trouble != nil {
		return trouble
	}
	if old := m.find(rec.ID); old != nil {
		run, rec.Tenant = old.Run+1, old.Tenant
		m.jobs = slices.DeleteFunc(m.jobs, func(j *referenceJob) bool { return j == old })
	}
	m.seq++
	rec.State, rec.Run, rec.Seq, rec.Blocked = job.Queued, run, m.seq, blocked
	j := &referenceJob{Record: rec}
	m.jobs = append(m.jobs, j)
	m.record(j, job.Event{Kind: job.EventQueued})
	m.giveUp(j)
	return nil
}

// giveUp fails a job that nobody holds when its waiting time is over.
func (m *reference) giveUp(j *referenceJob) {
	past := func(t time.Time) bool { return !t.IsZero() && t.Before(time.Now()) }
	if j.State != job.Queued || j.token != 0 || !past(j.WaitUntil) && !past(j.Deadline) {
		return
	}
	event := job.Event{Kind: job.EventEnded, Cause: job.CauseDeadline}
	if past(j.WaitUntil) && (!past(j.Deadline) || !j.Deadline.Before(j.WaitUntil)) {
		event.Cause = job.CauseWaitTimeout
	}
	m.endRun(j, ledger.Outcome{State: job.Failed, Failure: &job.Failure{}}, event)
}

// choose returns the slot's next job by the scheduling order.
func (m *reference) choose(slot ledger.Slot) *referenceJob {
	var candidates []*referenceJob
	for _, j := range m.jobs {
		claimable := j.State == job.Queued && j.token == 0 && !j.delayed()
		own := j.Sheep == slot.Sheep || slices.Contains(slot.Own, j.Sheep)
		open := (j.Sheep == "" || slices.Contains(slot.Open, j.Sheep)) && !slot.Addressed
		able := own || open && (slot.Only != "" || !slices.Contains(slot.Except, j.Model))
		if claimable && able && (slot.Only == "" || slot.Only == j.ID) && !m.atLimit(j) {
			candidates = append(candidates, j)
		}
	}
	if len(candidates) == 0 {
		return nil
	}
	preferred := func(j *referenceJob) int {
		if j.Model == slot.Prefer {
			return 0
		}
		return 1
	}
	return slices.MinFunc(candidates, func(a, b *referenceJob) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), cmp.Compare(preferred(a), preferred(b)), cmp.Compare(a.Seq, b.Seq))
	})
}

// claim gives the slot its next job, with the token that the ledger gave.
func (m *reference) claim(slot ledger.Slot, token ledger.Token) *referenceJob {
	j := m.choose(slot)
	if j == nil {
		return nil
	}
	j.token = token
	j.Holder, j.Node = slot.Sheep, slot.Node
	j.Attempt++
	kind := job.EventClaimed
	if !slot.Ahead {
		kind = job.EventStarted
		j.start()
	}
	m.record(j, j.attemptEvent(kind))
	return j
}

func (j *referenceJob) start() { j.State, j.started, j.WaitUntil = job.Processing, true, time.Time{} }

// held returns the job that the token holds.
func (m *reference) held(id job.ID, token ledger.Token) (*referenceJob, error) {
	if j := m.find(id); j != nil && token != 0 && j.token == token {
		return j, nil
	}
	return nil, ledger.ErrFenced
}

func (m *reference) start(id job.ID, token ledger.Token) error {
	j, err := m.held(id, token)
	if err == nil && j.State != job.Processing {
		j.start()
		m.record(j, j.attemptEvent(job.EventStarted))
	}
	return err
}

func (m *reference) finish(id job.ID, token ledger.Token, outcome ledger.Outcome) error {
	j, err := m.held(id, token)
	if err != nil {
		return err
	}
	if j.Cancelling {
		outcome.State, outcome.Failure, outcome.Cause = job.Cancelled, nil, job.CauseCancelled
	}
	event := j.attemptEvent(job.EventEnded)
	event.Cause, event.Reason = outcome.Cause, outcome.Reason
	m.endAttempt(j, ledger.Return{Cause: outcome.Cause, Reason: outcome.Reason, Spent: true, Usage: outcome.Usage, Phases: outcome.Phases, Log: outcome.Log})
	m.endRun(j, outcome, event)
	return nil
}

func (m *reference) release(id job.ID, token ledger.Token, why ledger.Return) error {
	j, err := m.held(id, token)
	if err != nil {
		return err
	}
	event := j.attemptEvent(job.EventReturned)
	if j.Cancelling {
		event.Kind, why.Cause = job.EventEnded, job.CauseCancelled
	}
	event.Cause, event.Reason = why.Cause, why.Reason
	cancelling := j.Cancelling
	m.endAttempt(j, why)
	if cancelling {
		m.endRun(j, ledger.Outcome{State: job.Cancelled, Usage: why.Usage}, event)
		return nil
	}
	j.State = job.Queued
	if why.NotBefore.After(j.NotBefore) {
		j.NotBefore = why.NotBefore
	}
	m.record(j, event)
	m.giveUp(j)
	return nil
}

func (m *reference) cancel(id job.ID) error {
	j := m.find(id)
	switch {
	case j == nil:
		return ledger.ErrNotFound
	case j.State.Final():
		return ledger.ErrFinal
	case j.token == 0:
		m.endRun(j, ledger.Outcome{State: job.Cancelled}, job.Event{Kind: job.EventEnded, Cause: job.CauseCancelled})
	case !j.Cancelling:
		j.Cancelling = true
		m.record(j, j.attemptEvent(job.EventCancelled))
	}
	return nil
}

// endAttempt ends the attempt under way.
func (m *reference) endAttempt(j *referenceJob, why ledger.Return) {
	attempt := j.attempt()
	attempt.Cause, attempt.Reason, attempt.Spent, attempt.Usage, attempt.Phases, attempt.Log = why.Cause, why.Reason, why.Spent, why.Usage, why.Phases, why.Log
	m.ended[j.ID] = append(m.ended[j.ID], attempt)
	if why.Spent {
		j.Spent++
	}
	j.Holder, j.Node, j.token, j.Cancelling, j.started = "", "", 0, false, false
}

func (j *referenceJob) attempt() job.Attempt {
	return job.Attempt{Run: j.Run, Number: j.Attempt, Node: j.Node, Sheep: j.Holder}
}

func (m *reference) endRun(j *referenceJob, outcome ledger.Outcome, event job.Event) {
	j.State, j.Failure, j.Usage, j.Warnings, j.Blocked = outcome.State, outcome.Failure, outcome.Usage, outcome.Warnings, false
	m.record(j, event)
	m.unblock(j.ID)
}

// attempts returns the attempts of a job without their times, the one under way included.
func (m *reference) attempts(j *referenceJob) []job.Attempt {
	attempts := slices.Clone(m.ended[j.ID])
	if j.token != 0 {
		attempts = append(attempts, j.attempt())
	}
	return attempts
}

func (m *reference) counts() ledger.Counts {
	counts := ledger.Counts{}
	for _, j := range m.jobs {
		counts[j.State]++
	}
	return counts
}

// String lists the jobs, for messages of failing tests.
func (m *reference) String() string {
	text := ""
	for _, j := range m.jobs {
		text += fmt.Sprintf("\n%d %s %s prio %d for %q: %s, token %d, attempt %d, %d spent, delayed %v", j.Seq, j.ID, j.Model, j.Priority, j.Sheep, j.State, j.token, j.Attempt, j.Spent, j.delayed())
	}
	return text
}
