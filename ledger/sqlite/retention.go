package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/lifecycle"
)

var _ ledger.Retention = (*Ledger)(nil)

// Keep implements ledger.Retention.
func (l *Ledger) Keep(ctx context.Context, kept []ledger.Kept) error {
	return l.change(ctx, "set how long files of jobs are kept", func(t *tx) error {
		for _, k := range kept {
			_, err := t.apply(k.Job, func(r *lifecycle.Row, _ lifecycle.Moment) (lifecycle.Change, error) { return r.SetKept(k), nil })
			if err != nil {
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
		rows, err := l.reads.QueryContext(ctx, queryToRemove, age, limit+1)
		if err != nil {
			return err
		}
		found, err := scanAll(rows, false)
		if err != nil {
			return err
		}
		for _, r := range found[:min(len(found), limit)] {
			due = append(due, ledger.Removal{Record: r.Record, Begun: r.Removal != lifecycle.NoRemoval})
		}
		if len(found) > limit {
			next = 1
			return nil
		}
		var nextAge sql.NullInt64
		if err := l.reads.QueryRowContext(ctx, queryNextToRemove, age).Scan(&nextAge); err != nil {
			return err
		}
		if nextAge.Valid {
			next = time.Duration(nextAge.Int64-age) * time.Microsecond
		}
		return nil
	})
	return due, next, err
}

// queryToRemove returns the records whose files are due, queryNextToRemove the age at which
// the next one is due.
const (
	queryToRemove = `SELECT ` + listColumns + ` FROM jobs
		WHERE remove_age > 0 AND remove_age <= ? AND NOT EXISTS (SELECT 1 FROM needs WHERE needed = id) ORDER BY remove_age LIMIT ?`
	queryNextToRemove = `SELECT min(remove_age) FROM jobs WHERE remove_age > 0 AND remove_age > ?`
)

// BeginRemoval implements ledger.Retention.
func (l *Ledger) BeginRemoval(ctx context.Context, id job.ID, run int, whole bool) (job.Record, error) {
	return l.changeRecord(ctx, "begin the removal of job "+string(id), func(t *tx) (*row, error) {
		needed, err := t.needed(id)
		if err != nil {
			return nil, err
		}
		return t.apply(id, func(r *lifecycle.Row, _ lifecycle.Moment) (lifecycle.Change, error) {
			return r.BeginRemoval(run, whole, needed)
		})
	})
}

// EndRemoval implements ledger.Retention.
func (l *Ledger) EndRemoval(ctx context.Context, id job.ID) error {
	return l.change(ctx, "end the removal of job "+string(id), func(t *tx) error {
		r, err := t.byID(id)
		if errors.Is(err, ledger.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		change, gone := r.EndRemoval(t.moment())
		if !gone {
			return t.writeChange(r, change)
		}
		if err := t.remove(r); err != nil {
			return err
		}
		_, err = t.exec(t.stmts.removeAttempts, string(id))
		return err
	}, nil)
}
