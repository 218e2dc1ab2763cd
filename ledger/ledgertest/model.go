package ledgertest

import (
	"fmt"
	"slices"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// reference is a ledger as simple as the contract's words: a list in memory, a
// counter per job, and no care for speed. It does not keep times.
type reference struct {
	maxOvertakes int
	seq          int64
	jobs         []*referenceJob // by Seq
}

type referenceJob struct {
	job.Record
	token     ledger.Token
	overtaken int
}

func (m *reference) find(id job.ID) *referenceJob {
	for _, j := range m.jobs {
		if j.ID == id {
			return j
		}
	}
	return nil
}

func (m *reference) create(rec job.Record) error {
	run := 1
	if old := m.find(rec.ID); old != nil {
		if rec.Tenant != "" && rec.Tenant != old.Tenant {
			return ledger.ErrOthers
		}
		if !old.State.Final() {
			return ledger.ErrExists
		}
		run, rec.Tenant = old.Run+1, old.Tenant
		m.jobs = slices.DeleteFunc(m.jobs, func(j *referenceJob) bool { return j == old })
	}
	m.seq++
	rec.State, rec.Run, rec.Seq = job.Queued, run, m.seq
	m.jobs = append(m.jobs, &referenceJob{Record: rec})
	return nil
}

// choose picks the slot's next job by the scheduling order, and notes whom it
// overtakes.
func (m *reference) choose(slot ledger.Slot) *referenceJob {
	var candidates []*referenceJob // of the highest priority, oldest first
	for _, j := range m.jobs {
		waits := j.State == job.Queued && j.token == 0
		mayRun := j.Sheep == slot.Sheep || j.Sheep == "" && !slot.Addressed
		if !waits || !mayRun || slot.Only != "" && slot.Only != j.ID {
			continue
		}
		if len(candidates) > 0 && j.Priority > candidates[0].Priority {
			candidates = nil
		}
		if len(candidates) == 0 || j.Priority == candidates[0].Priority {
			candidates = append(candidates, j)
		}
	}
	if len(candidates) == 0 {
		return nil
	}
	chosen := candidates[0]
	atBound := func(j *referenceJob) bool { return j.overtaken >= m.maxOvertakes }
	isLoaded := func(j *referenceJob) bool { return !slot.Loaded.IsZero() && j.Model == slot.Loaded }
	for _, first := range []func(*referenceJob) bool{atBound, isLoaded} {
		if i := slices.IndexFunc(candidates, first); i >= 0 {
			chosen = candidates[i]
			break
		}
	}
	for _, j := range candidates {
		if j.Seq < chosen.Seq {
			j.overtaken++
		}
	}
	return chosen
}

// claim lets the slot have its next job under the token that the ledger gave.
func (m *reference) claim(slot ledger.Slot, token ledger.Token) *referenceJob {
	j := m.choose(slot)
	if j == nil {
		return nil
	}
	j.token = token
	j.Holder, j.Node = slot.Sheep, slot.Node
	j.Attempt++
	if !slot.Ahead {
		j.State = job.Processing
	}
	return j
}

// held returns the job that the token holds.
func (m *reference) held(id job.ID, token ledger.Token) (*referenceJob, error) {
	if j := m.find(id); j != nil && token != 0 && j.token == token {
		return j, nil
	}
	return nil, ledger.ErrFenced
}

func (m *reference) start(id job.ID, token ledger.Token) error {
	j, err := m.held(id, token)
	if err == nil {
		j.State = job.Processing
	}
	return err
}

func (m *reference) finish(id job.ID, token ledger.Token, outcome ledger.Outcome) error {
	j, err := m.held(id, token)
	if err == nil {
		j.end(outcome)
	}
	return err
}

func (m *reference) release(id job.ID, token ledger.Token, unspent bool) error {
	j, err := m.held(id, token)
	if err != nil {
		return err
	}
	j.State, j.Holder, j.Node, j.token = job.Queued, "", "", 0
	if unspent {
		j.Attempt--
	}
	return nil
}

func (m *reference) cancel(id job.ID) error {
	j := m.find(id)
	if j == nil {
		return ledger.ErrNotFound
	}
	if j.State.Final() {
		return ledger.ErrFinal
	}
	j.end(ledger.Outcome{State: job.Cancelled})
	return nil
}

func (j *referenceJob) end(outcome ledger.Outcome) {
	j.State, j.Failure = outcome.State, outcome.Failure
	j.Holder, j.Node, j.token = "", "", 0
}

func (m *reference) counts() ledger.Counts {
	counts := ledger.Counts{}
	for _, j := range m.jobs {
		counts[j.State]++
	}
	return counts
}

// String lists the jobs, for a failing test to show.
func (m *reference) String() string {
	text := ""
	for _, j := range m.jobs {
		text += fmt.Sprintf("\n%d %s %s prio %d for %q: %s, token %d, overtaken %d times", j.Seq, j.ID, j.Model, j.Priority, j.Sheep, j.State, j.token, j.overtaken)
	}
	return text
}
