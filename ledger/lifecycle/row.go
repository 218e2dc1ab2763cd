// Package lifecycle is the state machine of a job's record, as package ledger describes it:
// each operation changes a Row at a given Moment. It does no input or output. A ledger reads
// a Row, calls a method, and writes the Row and the returned Change in one transaction.
package lifecycle

import (
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// How many attempts are kept of a job: of each of the last KeepRuns runs the last
// KeepAttempts.
const (
	KeepAttempts = 50
	KeepRuns     = 10
)

// Row is a record with the ledger's own fields. It is queued, held or ended; see package
// ledger.
type Row struct {
	job.Record
	Token     ledger.Token // of the claim that holds the job, 0 for none
	ClaimedAt time.Time    // when the attempt under way began
	ChangedAt time.Time    // when the row changed last
	Delayed   bool         // queued, and NotBefore has not come, or Blocked
	// EndedAge is the ledger's age when the run ended, 0 before. An age is in
	// microseconds and grows with the time that passes, whatever the clock does.
	EndedAge  int64
	KeptFor   time.Duration // how long the files are kept after the end, 0 for ever
	RemoveAge int64         // the ledger's age when the files are due for removal, 0 for never
	Removal   Removal
	RemovedAt time.Time // when the files were removed
}

// Removal says which removal of a job has begun.
type Removal int

// The removals. A later one includes the earlier ones.
const (
	NoRemoval Removal = iota
	OfFiles
	OfRecord // and files
)

// Moment is when a change is made.
type Moment struct {
	Now time.Time // as records keep it
	Age int64     // of the ledger
}

// Change is what an operation adds to the ledger besides the row. The zero Change says that
// the operation did not change the row.
type Change struct {
	Made    bool
	Attempt *job.Attempt // that ended
	Event   *job.Event   // without its cursor
}

// Retention says how long the files of a job that ended are kept, 0 for ever.
type Retention func(job.Record) time.Duration

// GiveUpAt is when the job fails if nobody holds it then; zero for never.
func (r *Row) GiveUpAt() time.Time {
	if r.State != job.Queued || r.Token != 0 {
		return time.Time{}
	}
	if r.WaitUntil.IsZero() || !r.Deadline.IsZero() && r.Deadline.Before(r.WaitUntil) {
		return r.Deadline
	}
	return r.WaitUntil
}

// ShowRetention sets the fields of the Record about its files.
func (r *Row) ShowRetention() {
	r.Removing, r.FilesRemoved, r.KeptUntil = r.Removal != NoRemoval, !r.RemovedAt.IsZero(), r.RemovedAt
	if r.KeptUntil.IsZero() && r.KeptFor > 0 && r.State.Final() {
		r.KeptUntil = r.FinishedAt.Add(r.KeptFor)
	}
}

// change sets the time of the change: now, or the time of the last change where the clock
// went back since.
func (r *Row) change(m Moment) { r.ChangedAt = latest(m.Now, r.ChangedAt) }

// event returns e as an event of the row as it is now.
func (r *Row) event(e job.Event) *job.Event {
	e.At = r.ChangedAt
	e.Job, e.Run, e.Model, e.Address, e.Tenant = r.ID, r.Run, r.Model, r.Sheep, r.Tenant
	e.State, e.Delayed = r.State, r.Delayed
	if e.Kind == job.EventEnded {
		status := r.Status()
		e.Status = &status
	}
	return &e
}

// attemptEvent is an event of the attempt under way.
func (r *Row) attemptEvent(kind job.EventKind) job.Event {
	return job.Event{Kind: kind, Attempt: r.Attempt, Node: r.Node, Sheep: r.Holder}
}
