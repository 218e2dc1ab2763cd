package sqlite

import (
	"context"
	"errors"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

var _ ledger.Retention = (*Ledger)(nil)

// keep sets how long the files of a run that has ended, at endedAge, are kept.
func (r *row) keep(d time.Duration) {
	r.keptFor, r.removeAge = min(max(d, 0), job.MaxKeep).Truncate(time.Microsecond), 0
	if r.keptFor > 0 {
		r.removeAge = r.endedAge + r.keptFor.Microseconds()
	}
}

// Keep implements ledger.Retention.
func (l *Ledger) Keep(ctx context.Context, kept []ledger.Kept) error {
	return l.change(ctx, "set how long files of jobs are kept", func(t *tx) error {
		for _, k := range kept {
			r, err := t.byID(k.Job)
			if errors.Is(err, ledger.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			if r.Run != k.Run || !r.State.Final() || r.removal != noRemoval || !r.removedAt.IsZero() {
				continue
			}
			before := *r
			if r.keep(k.For); r.keptFor == before.keptFor {
				continue
			}
			if err := t.save(r); err != nil {
				return err
			}
		}
		return nil
	}, nil)
}

// Due implements ledger.Retention.
func (l *Ledger) Due(ctx context.Context, limit int) (due []ledger.Removal, next time.Duration, err error) {
	err = l.call("look for files of jobs to remove", func() error {
		age := l.writer.clock.now()
		rows, err := l.reads.QueryContext(ctx, queryToRemove, limit+1)
		if err != nil {
			return err
		}
		found, err := scanAll(rows, false)
		for _, r := range found {
			if r.removeAge > age || len(due) == limit {
				next = max(time.Duration(r.removeAge-age)*time.Microsecond, 1)
				break
			}
			due = append(due, ledger.Removal{Record: r.Record, Begun: r.removal != noRemoval})
		}
		return err
	})
	return due, next, err
}

// queryToRemove reads the records whose files are due first.
const queryToRemove = `SELECT ` + listColumns + ` FROM jobs
	WHERE remove_age > 0 AND NOT EXISTS (SELECT 1 FROM needs WHERE needed = id) ORDER BY remove_age LIMIT ?`

// BeginRemoval implements ledger.Retention.
func (l *Ledger) BeginRemoval(ctx context.Context, id job.ID, run int, whole bool) (job.Record, error) {
	return l.changeRecord(ctx, "begin the removal of job "+string(id), func(t *tx) (*row, error) {
		r, err := t.byID(id)
		switch {
		case err != nil:
			return nil, err
		case run != 0 && r.Run != run:
			return nil, ledger.ErrNotFound
		case !r.State.Final():
			return nil, ledger.ErrNotFinal
		}
		if err := t.unneeded(id); err != nil {
			return nil, err
		}
		want := ofFiles
		if whole {
			want = ofRecord
		}
		if r.removal >= want {
			return r, nil
		}
		r.removal, r.removeAge = want, 1 // before all that have not begun
		return r, t.save(r)
	})
}

// EndRemoval implements ledger.Retention.
func (l *Ledger) EndRemoval(ctx context.Context, id job.ID) error {
	return l.change(ctx, "end the removal of job "+string(id), func(t *tx) error {
		r, err := t.byID(id)
		switch {
		case errors.Is(err, ledger.ErrNotFound), err == nil && r.removal == noRemoval:
			return nil
		case err != nil:
			return err
		case r.removal == ofFiles:
			r.removal, r.removeAge, r.removedAt = noRemoval, 0, t.change(r)
			return t.save(r)
		}
		if err := t.remove(r); err != nil {
			return err
		}
		_, err = t.exec(t.do.removeAttempts, string(id))
		return err
	}, nil)
}
