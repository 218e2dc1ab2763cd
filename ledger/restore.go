package ledger

import (
	"context"

	"github.com/iterait/shepherd/job"
)

// Saved is a record with its attempts, oldest first, as Get and Attempts of some
// ledger had them.
type Saved struct {
	Record   job.Record
	Attempts []job.Attempt
}

// Restorer is a ledger that takes in records of another one.
type Restorer interface {
	// Restore enters the records in the given order, all or none of them, behind
	// those that are there. Each keeps what it holds but its Seq, its holder and its
	// claim: an attempt that was under way ends with job.CauseInterrupted, spent, and
	// its job is queued again or, where it was Cancelling, cancelled, of which an
	// event is recorded. No event is recorded of the others. It answers ErrExists,
	// wrapped with the id, where one is there already. A removal of files that had
	// begun goes on.
	Restore(ctx context.Context, saved []Saved) error
}
