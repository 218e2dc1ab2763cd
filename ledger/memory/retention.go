package memory

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/lifecycle"
)

var _ ledger.Retention = (*Ledger)(nil)

// Keep implements ledger.Retention.
func (l *Ledger) Keep(ctx context.Context, kept []ledger.Kept) error {
	return l.call(ctx, "set how long files of jobs are kept", func() error {
		for _, k := range kept {
			if r := l.find(k.Job); r != nil {
				r.SetKept(k)
				l.update(r)
			}
		}
		return nil
	})
}

// Due implements ledger.Retention.
func (l *Ledger) Due(ctx context.Context, limit int) (due []ledger.Removal, next time.Duration, err error) {
	err = l.call(ctx, "look for files of jobs to remove", func() error {
		age := l.moment().Age
		var found []*record
		for r := range l.index.removable {
			if !l.needed(r.ID) {
				found = append(found, r)
			}
		}
		slices.SortFunc(found, func(a, b *record) int {
			return cmp.Or(cmp.Compare(a.RemoveAge, b.RemoveAge), cmp.Compare(a.Seq, b.Seq))
		})
		for _, r := range found {
			if r.RemoveAge > age || len(due) == limit {
				next = max(time.Duration(r.RemoveAge-age)*time.Microsecond, 1)
				break
			}
			due = append(due, ledger.Removal{Record: r.copy(), Begun: r.Removal != lifecycle.NoRemoval})
		}
		return nil
	})
	return due, next, err
}

// BeginRemoval implements ledger.Retention.
func (l *Ledger) BeginRemoval(ctx context.Context, id job.ID, run int, whole bool) (job.Record, error) {
	return l.apply(ctx, "begin the removal of job "+string(id), id, func(r *lifecycle.Row, _ lifecycle.Moment) (lifecycle.Change, error) {
		return r.BeginRemoval(run, whole, l.needed(id))
	})
}

// EndRemoval implements ledger.Retention.
func (l *Ledger) EndRemoval(ctx context.Context, id job.ID) error {
	return l.call(ctx, "end the removal of job "+string(id), func() error {
		r := l.find(id)
		if r == nil {
			return nil
		}
		if _, gone := r.EndRemoval(l.moment()); gone {
			l.drop(r)
			delete(l.attempts, id)
			return nil
		}
		l.update(r)
		return nil
	})
}
