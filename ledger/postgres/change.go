package postgres

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/lifecycle"
)

// load reads a row, nil where there is none, and the moment.
func (l *Ledger) load(ctx context.Context, id job.ID) (r *row, m lifecycle.Moment, err error) {
	err = l.often(ctx, l.db, queryLoad, pgx.NamedArgs{"id": text(id)}, func(rows pgx.Rows) (err error) {
		r, err = scanRow(rows, true, &m.Now, &m.Age)
		return err
	})
	m.Now = m.Now.UTC()
	if err == nil {
		l.clock.set(m)
	}
	return r, m, err
}

// changeRow makes a change of the job's record and returns it as it is then. apply
// gets the record as it was, nil where there is none. It may be called again.
func (l *Ledger) changeRow(ctx context.Context, doing string, id job.ID, apply func(r *lifecycle.Row, m lifecycle.Moment) (lifecycle.Change, error)) (job.Record, error) {
	var changed job.Record
	key := newKey()
	err := l.call(ctx, doing, func(ctx context.Context) (err error) {
		changed, err = l.applyTo(ctx, id, key, apply)
		return err
	})
	if err != nil {
		return job.Record{}, err
	}
	return changed, nil
}

// changeHeld is changeRow for the holder of a claim.
func (l *Ledger) changeHeld(ctx context.Context, doing string, id job.ID, token ledger.Token, apply func(r *lifecycle.Row, m lifecycle.Moment) (lifecycle.Change, error)) (job.Record, error) {
	var changed job.Record
	key := newKey()
	err := l.call(ctx, doing, func(ctx context.Context) (err error) {
		var made bool
		if changed, made, err = l.applyUnread(ctx, id, token, key, apply); made || err != nil {
			return err
		}
		changed, err = l.applyTo(ctx, id, key, apply)
		return err
	})
	if err != nil {
		return job.Record{}, err
	}
	return changed, nil
}

// applyUnread tries to change a held job without reading it, based on the row cached here.
// made is false where the row has to be read first: none is cached, the database has another
// version, or there may be nothing to change.
func (l *Ledger) applyUnread(ctx context.Context, id job.ID, token ledger.Token, key string, apply func(r *lifecycle.Row, m lifecycle.Moment) (lifecycle.Change, error)) (changed job.Record, made bool, err error) {
	m, ok := l.clock.moment()
	r := l.claims.take(id, token)
	if r == nil || !ok {
		return job.Record{}, false, nil
	}
	change, err := apply(&r.Row, m)
	if err != nil || !change.Made {
		return job.Record{}, false, nil
	}
	if err := l.save(ctx, r, change, key, m); errors.Is(err, errConflict) {
		return job.Record{}, false, nil
	} else if err != nil {
		return job.Record{}, false, err
	}
	l.claims.put(r)
	l.changed(&r.Row)
	return r.Record, true, nil
}

// applyTo tries to make a change, under a key that is the same for all tries.
func (l *Ledger) applyTo(ctx context.Context, id job.ID, key string, apply func(r *lifecycle.Row, m lifecycle.Moment) (lifecycle.Change, error)) (job.Record, error) {
	r, m, err := l.load(ctx, id)
	if err != nil {
		return job.Record{}, err
	}
	if r == nil {
		_, err := apply(nil, m)
		return job.Record{}, err
	}
	if r.changedBy == key { // the answer to an earlier try was lost
		l.changed(&r.Row)
		return r.Record, nil
	}
	before := r.Row
	change, err := apply(&r.Row, m)
	if err != nil || !change.Made {
		return before.Record, err
	}
	if err := l.save(ctx, r, change, key, m); err != nil {
		return job.Record{}, err
	}
	l.changed(&r.Row)
	return r.Record, nil
}

// save writes a row that was changed, with what the change adds. The error is
// errConflict where others changed the row since it was read.
func (l *Ledger) save(ctx context.Context, r *row, change lifecycle.Change, key string, m lifecycle.Moment) error {
	query, args, err := l.saveArgs(r, change, key, m)
	if err != nil {
		return err
	}
	var n int
	if _, err := l.oftenOne(ctx, query, args, &n); err != nil {
		return err
	}
	if n == 0 {
		return errConflict
	}
	r.version++
	l.claims.forget(r.ID)
	return nil
}

func (l *Ledger) saveArgs(r *row, change lifecycle.Change, key string, m lifecycle.Moment) (string, pgx.NamedArgs, error) {
	query, args := querySave, pgx.NamedArgs{"key": key, "seq": r.Seq, "version": r.version, "remover": r.remover}
	if change.Attempt != nil {
		query, args["used"] = querySaveAttempt, int64(0)
		if l.cfg.Policy.Shares() {
			query, args["used"] = querySaveUsed, ledger.GPUTime(*change.Attempt).Microseconds()
		}
		if change.Attempt.Number > lifecycle.KeepAttempts {
			query = querySaveAndTrim
		}
		attemptArgs(r.ID, *change.Attempt, args)
	} else if change.Event != nil {
		query = querySaveEvent
	}
	if change.Event != nil {
		eventArgs(change.Event, m.Age, l.leases.origin(), args)
	}
	return query, args, state(&r.Row, args)
}

// changed notifies readers of events and the maintenance of a change that was made.
func (l *Ledger) changed(r *lifecycle.Row) {
	if r.State.Final() {
		l.maintenance.ended()
	}
	if r.Blocked {
		l.maintenance.blocks()
	}
	if r.Delayed && !r.Blocked {
		l.maintenance.setTimer(r.NotBefore)
	}
	if at := r.GiveUpAt(); !at.IsZero() {
		l.maintenance.setTimer(at)
	}
	l.maintenance.recorded()
	l.bell.ringAll()
}

// Create implements ledger.Ledger.
func (l *Ledger) Create(ctx context.Context, rec job.Record) (job.Record, error) {
	rec.Limits = rec.Limits.Clone()
	var created job.Record
	key := newKey()
	if len(rec.After) > 0 {
		c := creation{recs: []job.Record{rec}, key: key}
		err := l.call(ctx, "queue job "+string(rec.ID), func(ctx context.Context) error {
			all, err := l.createAll(ctx, &c)
			if err == nil {
				created = all[0]
			}
			return err
		})
		if err != nil {
			return job.Record{}, err
		}
		return created, nil
	}
	unread := rec.Webhook.IsZero()
	err := l.call(ctx, "queue job "+string(rec.ID), func(ctx context.Context) error {
		if unread {
			unread = false // a further try finds what this one made
			var made bool
			var err error
			if created, made, err = l.createUnread(ctx, rec, key); made || err != nil {
				return err
			}
		}
		old, m, err := l.load(ctx, rec.ID)
		if err != nil {
			return err
		}
		if old != nil && old.createdBy == key { // the answer to an earlier try was lost
			l.changed(&old.Row)
			created = old.Record
			return nil
		}
		var before *lifecycle.Row
		needed := false
		args := pgx.NamedArgs{"key": key, "old": 0, "version": 0, "keep_runs": lifecycle.KeepRuns}
		if old != nil {
			before, args["old"], args["version"] = &old.Row, old.Seq, old.version
			if needed, err = l.needed(ctx, rec.ID); err != nil {
				return err
			}
		}
		r, change, err := lifecycle.Create(before, needed, rec, m)
		if err != nil {
			return err
		}
		if err := l.createArgs(r, change, rec.Webhook, m, args); err != nil {
			return err
		}
		query := queryCreate
		if old != nil || !rec.Webhook.IsZero() {
			query = queryReplace
		}
		made, err := l.oftenOne(ctx, query, args, &r.Seq)
		if err != nil {
			return refusedForUpload(err, false)
		}
		if !made {
			return errConflict
		}
		l.changed(r)
		created = r.Record
		return nil
	})
	if err != nil {
		return job.Record{}, err
	}
	return created, nil
}

// createUnread tries to insert a record without reading first, which succeeds where the id
// has neither a record nor a reservation, the usual case. made is false where it has one.
func (l *Ledger) createUnread(ctx context.Context, rec job.Record, key string) (created job.Record, made bool, err error) {
	m, ok := l.clock.moment()
	if !ok {
		return job.Record{}, false, nil
	}
	r, change, err := lifecycle.Create(nil, false, rec, m)
	if err != nil {
		return job.Record{}, false, err
	}
	args := pgx.NamedArgs{"key": key}
	if err := l.createArgs(r, change, rec.Webhook, m, args); err != nil {
		return job.Record{}, false, err
	}
	made, err = l.oftenOne(ctx, queryCreateFirst, args, &r.Seq)
	if err != nil || !made {
		return job.Record{}, false, refusedForUpload(err, false)
	}
	l.changed(r)
	return r.Record, true, nil
}

// insertArgs are the arguments of insertJob.
func insertArgs(r *lifecycle.Row, into pgx.NamedArgs) error {
	if err := identity(r, into); err != nil {
		return err
	}
	return state(r, into)
}

// Start implements ledger.Ledger.
func (l *Ledger) Start(ctx context.Context, id job.ID, token ledger.Token) (job.Record, error) {
	return l.changeHeld(ctx, "start job "+string(id), id, token, func(r *lifecycle.Row, m lifecycle.Moment) (lifecycle.Change, error) {
		return r.Start(token, m)
	})
}

// Finish implements ledger.Ledger. An outcome that is none is of class
// errdefs.ErrInternal.
func (l *Ledger) Finish(ctx context.Context, id job.ID, token ledger.Token, outcome ledger.Outcome) (job.Record, error) {
	return l.changeHeld(ctx, "finish job "+string(id), id, token, func(r *lifecycle.Row, m lifecycle.Moment) (lifecycle.Change, error) {
		if err := lifecycle.CheckOutcome(outcome); err != nil {
			return lifecycle.Change{}, err
		}
		return r.Finish(token, outcome, l.retention, m)
	})
}

// Release implements ledger.Ledger. A return without a cause is of class
// errdefs.ErrInternal.
func (l *Ledger) Release(ctx context.Context, id job.ID, token ledger.Token, why ledger.Return) (job.Record, error) {
	return l.changeHeld(ctx, "release job "+string(id), id, token, l.release(token, why))
}

func (l *Ledger) release(token ledger.Token, why ledger.Return) func(r *lifecycle.Row, m lifecycle.Moment) (lifecycle.Change, error) {
	return func(r *lifecycle.Row, m lifecycle.Moment) (lifecycle.Change, error) {
		if err := lifecycle.CheckReturn(why); err != nil {
			return lifecycle.Change{}, err
		}
		return r.Release(token, why, l.retention, m)
	}
}

// Cancel implements ledger.Ledger.
func (l *Ledger) Cancel(ctx context.Context, id job.ID) (job.Record, error) {
	return l.changeRow(ctx, "cancel job "+string(id), id, func(r *lifecycle.Row, m lifecycle.Moment) (lifecycle.Change, error) {
		return r.Cancel(l.retention, m)
	})
}
