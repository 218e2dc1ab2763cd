package lifecycle

import (
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// keep sets how long the files of a run that has ended are kept.
func (r *Row) keep(d time.Duration) {
	r.KeptFor, r.RemoveAge = min(max(d, 0), job.MaxKeep).Truncate(time.Microsecond), 0
	if r.KeptFor > 0 {
		r.RemoveAge = r.EndedAge + r.KeptFor.Microseconds()
	}
}

// SetKept sets how long the files of a run that has ended are kept, unless they are removed
// or their removal has begun.
func (r *Row) SetKept(k ledger.Kept) Change {
	if r == nil || r.Run != k.Run || !r.State.Final() || r.Removal != NoRemoval || !r.RemovedAt.IsZero() {
		return Change{}
	}
	before := r.KeptFor
	r.keep(k.For)
	r.ShowRetention()
	return Change{Made: r.KeptFor != before}
}

// BeginRemoval begins the removal of the files and, if whole is set, of the record. needed
// says that a job that has not ended is after it. The error is ledger.ErrNotFound, for a nil
// row or another run, ErrNotFinal or ErrNeeded.
func (r *Row) BeginRemoval(run int, whole, needed bool) (Change, error) {
	switch {
	case r == nil, run != 0 && r.Run != run:
		return Change{}, ledger.ErrNotFound
	case !r.State.Final():
		return Change{}, ledger.ErrNotFinal
	case needed:
		return Change{}, ledger.ErrNeeded
	}
	want := OfFiles
	if whole {
		want = OfRecord
	}
	if r.Removal >= want {
		return Change{}, nil
	}
	r.Removal, r.RemoveAge = want, 1 // due before all removals that have not begun
	r.ShowRetention()
	return Change{Made: true}, nil
}

// EndRemoval ends a removal after the files were removed. gone says that the record is to
// be removed, too.
func (r *Row) EndRemoval(m Moment) (change Change, gone bool) {
	if r == nil || r.Removal == NoRemoval {
		return Change{}, false
	}
	if r.Removal == OfRecord {
		return Change{Made: true}, true
	}
	r.change(m)
	r.Removal, r.RemoveAge, r.RemovedAt = NoRemoval, 0, r.ChangedAt
	r.ShowRetention()
	return Change{Made: true}, false
}
