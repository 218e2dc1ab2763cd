package ledger

import (
	"context"
	"time"

	"github.com/iterait/shepherd/job"
)

// Kept says how long the files of one run of a job are kept after its end; 0 is
// for ever.
type Kept struct {
	Job job.ID
	Run int
	For time.Duration
}

// Retention is the part of a ledger that knows how long jobs' files are kept and
// sees their removal through.
//
// Each implementation is given, in its Config, what decides for a job that ends
// how long its files are kept; the time is set in the same transaction that ends
// the job. The time that passes is measured so that a clock that jumps forward
// removes nothing early.
//
// A removal begins with BeginRemoval, which keeps the id from being submitted
// again, and ends with EndRemoval when the files are gone. What has begun and not
// ended is among Due: whoever removes files finishes it after a crash. A record
// with files to remove does not expire. In a ledger that nodes share a removal is that
// of the node that began it: it is among no other's Due, and no other begins or ends it,
// until that node's lease has ended.
//
// None of these changes records an event: the state of the job stays as it is.
type Retention interface {
	// Keep sets how long files are kept, in one commit. Jobs that are unknown, have
	// another run, are not final, whose files are gone, or whose removal has begun
	// are left as they are.
	Keep(ctx context.Context, kept []Kept) error

	// Due returns up to limit jobs whose files are to be removed now: first those
	// whose removal has begun. Those that are needed (BeginRemoval answers ErrNeeded)
	// are left out. next is how long until the time of another one comes, which may be
	// needed then; 0 for none.
	Due(ctx context.Context, limit int) (due []Removal, next time.Duration, err error)

	// BeginRemoval begins the removal of the files of a job that has ended, and of
	// its record where whole says so. The run must be the given one; 0 is any. It
	// answers ErrNotFound, also for another run, ErrNotFinal, or ErrNeeded while a job
	// that has not ended is after it, and ErrRemoving where another node has begun it.
	// Beginning again is allowed, and whole once is whole for good.
	BeginRemoval(ctx context.Context, id job.ID, run int, whole bool) (job.Record, error)

	// EndRemoval says that the files are gone. It removes the record, with its
	// attempts, where the removal was begun whole. Where none has begun, or another
	// node has, it changes nothing.
	EndRemoval(ctx context.Context, id job.ID) error
}

// Removal is a job whose files are to be removed.
type Removal struct {
	job.Record
	// Begun says that BeginRemoval was called.
	Begun bool
}
