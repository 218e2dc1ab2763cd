package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/lifecycle"
)

// Restore implements ledger.Restorer.
func (l *Ledger) Restore(ctx context.Context, saved []ledger.Saved) error {
	if len(saved) == 0 {
		return nil
	}
	key := newKey()
	return l.call(ctx, "restore records", func(ctx context.Context) error {
		made, m, err := l.restorable(ctx, saved, key)
		if err != nil || made {
			return err
		}
		batch := &pgx.Batch{}
		rows := make([]*lifecycle.Row, len(saved))
		for i, s := range saved {
			r, attempts, event := lifecycle.Restore(s, l.retention, m)
			rows[i] = r
			args := pgx.NamedArgs{"key": key}
			if err := insertArgs(r, args); err != nil {
				return err
			}
			batch.Queue(queryRestore, args)
			if !s.Record.Webhook.IsZero() {
				webhook, err := webhookText(s.Record.Webhook)
				if err != nil {
					return err
				}
				batch.Queue(queryAddWebhook, pgx.NamedArgs{"id": text(r.ID), "run": r.Run, "webhook": webhook})
				if s.Record.State.Final() {
					batch.Queue(queryCompleteWebhook, pgx.NamedArgs{"job": text(r.ID), "run": r.Run})
				}
			}
			for _, a := range attempts {
				args := pgx.NamedArgs{}
				attemptArgs(r.ID, a, args)
				batch.Queue(queryRestoreAttempt, args)
			}
			if event != nil {
				args := pgx.NamedArgs{"id": text(r.ID)}
				eventArgs(event, m.Age, "", args)
				batch.Queue(queryRestoreEvent, args)
			}
		}
		if err := l.batch(ctx, batch); err != nil {
			if uniqueViolation(err) { // others were faster, or an earlier try was
				return errConflict
			}
			return err
		}
		for _, r := range rows {
			l.changed(r)
		}
		return nil
	})
}

// restorable reports whether an earlier try under the key has entered the records.
// The error is ledger.ErrExists, with the id, where another has entered one.
func (l *Ledger) restorable(ctx context.Context, saved []ledger.Saved, key string) (made bool, m lifecycle.Moment, err error) {
	ids := make([]string, len(saved))
	for i, s := range saved {
		ids[i] = text(s.Record.ID)
	}
	if _, err := l.queryOne(ctx, queryMoment, nil, &m.Now, &m.Age); err != nil {
		return false, m, err
	}
	m.Now = m.Now.UTC()
	there := map[job.ID]*row{}
	err = l.query(ctx, queryLoadMany, pgx.NamedArgs{"ids": ids}, func(rows pgx.Rows) error {
		r, err := scanRow(rows, true, nil, nil)
		if r != nil {
			there[r.ID] = r
		}
		return err
	})
	if err != nil {
		return false, m, err
	}
	for _, id := range ids {
		if r := there[job.ID(id)]; r != nil && r.createdBy != key {
			return false, m, fmt.Errorf("job %s: %w", id, ledger.ErrExists)
		}
	}
	return len(there) > 0, m, nil
}
