package memory

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

var _ ledger.Retention = (*Ledger)(nil)

// removal is which removal has begun.
type removal int

const (
	noRemoval removal = iota
	ofFiles
	ofRecord // and files
)

// keptKeep is how long a client wants files kept, as records keep it.
func keptKeep(keep *time.Duration) *time.Duration {
	if keep == nil {
		return nil
	}
	return new(min(max(keep.Truncate(time.Microsecond), 0), job.MaxKeep))
}

// keep sets how long the files of a run that has ended are kept.
func (r *record) keep(d time.Duration) {
	r.keptFor, r.removeAt = min(max(d, 0), job.MaxKeep).Truncate(time.Microsecond), time.Time{}
	if r.keptFor > 0 {
		r.removeAt = time.Now().Add(r.keptFor)
	}
}

// showRetention sets what rec, a copy of the record, tells of its files.
func (r *record) showRetention(rec *job.Record) {
	rec.Removing, rec.FilesRemoved, rec.KeptUntil = r.removal != noRemoval, !r.removedAt.IsZero(), r.removedAt
	if rec.KeptUntil.IsZero() && r.keptFor > 0 && r.State.Final() {
		rec.KeptUntil = r.FinishedAt.Add(r.keptFor)
	}
}

// Keep implements ledger.Retention.
func (l *Ledger) Keep(ctx context.Context, kept []ledger.Kept) error {
	return l.call(ctx, "set how long files of jobs are kept", func() error {
		for _, k := range kept {
			r := l.find(k.Job)
			if r == nil || r.Run != k.Run || !r.State.Final() || r.removal != noRemoval || !r.removedAt.IsZero() || r.keptFor == k.For {
				continue
			}
			r.keep(k.For)
		}
		return nil
	})
}

// Due implements ledger.Retention.
func (l *Ledger) Due(ctx context.Context, limit int) (due []ledger.Removal, next time.Duration, err error) {
	err = l.call(ctx, "look for files of jobs to remove", func() error {
		now := time.Now()
		var found []*record
		for _, r := range l.jobs {
			if r.removal != noRemoval || !r.removeAt.IsZero() {
				found = append(found, r)
			}
		}
		slices.SortStableFunc(found, func(a, b *record) int {
			return cmp.Or(cmp.Compare(min(b.removal, ofFiles), min(a.removal, ofFiles)), a.removeAt.Compare(b.removeAt))
		})
		for _, r := range found {
			if r.removal == noRemoval && r.removeAt.After(now) || len(due) == limit {
				next = max(r.removeAt.Sub(now), 1)
				break
			}
			due = append(due, ledger.Removal{Record: r.copy(), Begun: r.removal != noRemoval})
		}
		return nil
	})
	return due, next, err
}

// BeginRemoval implements ledger.Retention.
func (l *Ledger) BeginRemoval(ctx context.Context, id job.ID, run int, whole bool) (job.Record, error) {
	return l.change(ctx, "begin the removal of job "+string(id), func(time.Time) (*record, error) {
		r := l.find(id)
		switch {
		case r == nil, run != 0 && r.Run != run:
			return nil, ledger.ErrNotFound
		case !r.State.Final():
			return nil, ledger.ErrNotFinal
		}
		r.removal = max(r.removal, ofFiles)
		if whole {
			r.removal = ofRecord
		}
		if r.removeAt.IsZero() {
			r.removeAt = time.Now()
		}
		return r, nil
	})
}

// EndRemoval implements ledger.Retention.
func (l *Ledger) EndRemoval(ctx context.Context, id job.ID) error {
	return l.call(ctx, "end the removal of job "+string(id), func() error {
		r := l.find(id)
		switch {
		case r == nil || r.removal == noRemoval:
		case r.removal == ofFiles:
			r.change(l.now())
			r.removal, r.removeAt, r.removedAt = noRemoval, time.Time{}, r.changedAt
		default:
			l.drop(r)
			delete(l.attempts, id)
		}
		return nil
	})
}
