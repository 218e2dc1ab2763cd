package postgres

import (
	"context"
	"errors"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/lifecycle"
)

// CreateAll implements ledger.Ledger.
func (l *Ledger) CreateAll(ctx context.Context, recs []job.Record) ([]job.Record, error) {
	if len(recs) == 0 {
		return nil, nil
	}
	c := creation{recs: ownAll(recs), key: newKey()}
	var created []job.Record
	err := l.call(ctx, "queue several jobs", func(ctx context.Context) (err error) {
		created, err = l.createAll(ctx, &c)
		return err
	})
	if err != nil {
		return nil, err
	}
	return created, nil
}

// ownAll copies the records, so that the caller may change what it passed.
func ownAll(recs []job.Record) []job.Record {
	owned := make([]job.Record, len(recs))
	for i, rec := range recs {
		owned[i] = rec
		owned[i].Limits = rec.Limits.Clone()
	}
	return owned
}

// creation is one request to insert records, over all its tries.
type creation struct {
	recs []job.Record
	key  string
	// tried are the rows of the last try whose answer was lost; nil without one.
	tried []*lifecycle.Row
}

// made returns the rows as they are now, if an earlier try has inserted them, which it did
// with all or with none. What others have removed or replaced since is as that try made it.
func (c *creation) made(there map[job.ID]*row) []*lifecycle.Row {
	own := false
	rows := slices.Clone(c.tried)
	for i := range rows {
		if r := there[job.ID(text(rows[i].ID))]; r != nil && r.createdBy == c.key {
			rows[i], own = &r.Row, true
		}
	}
	if !own {
		return nil
	}
	return rows
}

// createAll inserts records, some of which may be after others, in one transaction that
// locks the records it depends on. Those that the new ones are after get another version, so
// that a concurrent change that found them unneeded (a removal, a new run) conflicts.
func (l *Ledger) createAll(ctx context.Context, c *creation) (created []job.Record, err error) {
	var rows []*lifecycle.Row
	err = l.transact(ctx, func(tx pgx.Tx) error {
		there, needed, m, err := l.lockFor(ctx, tx, c.recs)
		if err != nil {
			return err
		}
		if rows = c.made(there); rows != nil {
			return nil
		}
		if rows, err = l.insertAll(ctx, tx, c.recs, c.key, there, needed, m); err == nil {
			c.tried = rows
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, r := range rows {
		l.changed(r)
		created = append(created, r.Record)
	}
	return created, nil
}

// lockFor locks the records of the same ids, and those that the new ones are after, and
// says which of them are needed.
func (l *Ledger) lockFor(ctx context.Context, tx pgx.Tx, recs []job.Record) (there map[job.ID]*row, needed map[string]bool, m lifecycle.Moment, err error) {
	var ids, after []string
	for _, rec := range recs {
		ids = append(ids, text(rec.ID))
		for _, id := range rec.After {
			after = append(after, text(id))
		}
	}
	there, needed = map[job.ID]*row{}, map[string]bool{}
	args := pgx.NamedArgs{"ids": append(ids, after...)}
	if _, err = tx.Exec(ctx, queryLockMany, args); err != nil {
		return nil, nil, m, err
	}
	l.statements.Add(2)
	if _, err = tx.Exec(ctx, queryBump, pgx.NamedArgs{"ids": after, "besides": ids}); err != nil {
		return nil, nil, m, err
	}
	if err = l.queryBy(ctx, tx, queryMoment, nil, func(rows pgx.Rows) error { return rows.Scan(&m.Now, &m.Age) }); err != nil {
		return nil, nil, m, err
	}
	m.Now = m.Now.UTC()
	err = l.queryBy(ctx, tx, queryLoadMany, args, func(rows pgx.Rows) error {
		r, err := scanRow(rows, true, nil, nil)
		if r != nil {
			there[r.ID] = r
		}
		return err
	})
	if err != nil {
		return nil, nil, m, err
	}
	err = l.queryBy(ctx, tx, queryNeeded, pgx.NamedArgs{"ids": ids}, func(rows pgx.Rows) error {
		var id string
		err := rows.Scan(&id)
		needed[id] = true
		return err
	})
	return there, needed, m, err
}

// insertAll checks the records, all of them before the first is entered, and enters them.
func (l *Ledger) insertAll(ctx context.Context, tx pgx.Tx, recs []job.Record, key string, there map[job.ID]*row, needed map[string]bool, m lifecycle.Moment) ([]*lifecycle.Row, error) {
	known := map[job.ID]*job.Record{}
	for id, r := range there {
		known[id] = &r.Record
	}
	refused := func(rec job.Record, err error) error {
		if len(recs) > 1 {
			return &ledger.RecordError{ID: rec.ID, Err: err}
		}
		return err
	}
	entered := map[job.ID]bool{}
	rows := make([]*lifecycle.Row, len(recs))
	batch := &pgx.Batch{}
	conflict := false
	for i, rec := range recs {
		if entered[rec.ID] {
			return nil, refused(rec, ledger.ErrExists)
		}
		args := pgx.NamedArgs{"key": key, "old": 0, "version": 0, "keep_runs": lifecycle.KeepRuns}
		var before *lifecycle.Row
		if old := there[job.ID(text(rec.ID))]; old != nil {
			before, args["old"], args["version"] = &old.Row, old.Seq, old.version
		}
		blocked, afterErr := ledger.CheckAfter(rec, func(id job.ID) *job.Record { return known[job.ID(text(id))] })
		rec.Blocked = blocked
		r, change, err := lifecycle.Create(before, needed[text(rec.ID)], rec, m)
		if err == nil {
			err = afterErr
		}
		if err != nil {
			return nil, refused(rec, err)
		}
		if err := l.createArgs(r, change, rec.Webhook, m, args); err != nil {
			return nil, err
		}
		rows[i], entered[rec.ID], known[r.ID] = r, true, &r.Record
		batch.Queue(queryReplace, args).QueryRow(func(row pgx.Row) error {
			err := row.Scan(&r.Seq)
			if errors.Is(err, pgx.ErrNoRows) {
				conflict, err = true, nil
			}
			return err
		})
	}
	l.statements.Add(int64(batch.Len()))
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return nil, refusedForUpload(err, len(recs) > 1)
	}
	if conflict {
		return nil, errConflict
	}
	return rows, nil
}

// createArgs are the arguments of queryReplace beside those of what it replaces.
func (l *Ledger) createArgs(r *lifecycle.Row, change lifecycle.Change, webhook job.Webhook, m lifecycle.Moment, args pgx.NamedArgs) error {
	if err := insertArgs(r, args); err != nil {
		return err
	}
	encoded, err := webhookText(webhook)
	if err != nil {
		return err
	}
	args["webhook"] = encoded
	eventArgs(change.Event, m.Age, l.leases.origin(), args)
	return nil
}

// needed reports whether a job that has not ended is after the given one.
func (l *Ledger) needed(ctx context.Context, id job.ID) (bool, error) {
	return l.queryOne(ctx, queryNeeded, pgx.NamedArgs{"ids": []string{text(id)}}, new(string))
}

// settle makes blocked jobs claimable, or fails them, where jobs that they are after have
// ended.
func (m *maintenance) settle(ctx context.Context) error {
	for {
		var ids []job.ID
		err := m.l.query(ctx, queryUnsettled, pgx.NamedArgs{"limit": timerBatch}, func(rows pgx.Rows) error {
			var id job.ID
			err := rows.Scan(&id)
			ids = append(ids, id)
			return err
		})
		if err != nil {
			return err
		}
		for _, id := range ids {
			switch err := m.l.settle(ctx, id); {
			case errors.Is(err, errConflict): // another node is at it; else the next pulse sees it
				return nil
			case err != nil:
				return err
			}
		}
		if len(ids) < timerBatch {
			return nil
		}
	}
}

// settle re-evaluates one job that is after others.
func (l *Ledger) settle(ctx context.Context, id job.ID) error {
	var seq int64
	var ended []string
	rec, err := l.applyTo(ctx, id, newKey(), func(r *lifecycle.Row, m lifecycle.Moment) (lifecycle.Change, error) {
		if r == nil {
			return lifecycle.Change{}, nil
		}
		seq, ended = r.Seq, nil
		after := make([]string, len(r.After))
		for i, id := range r.After {
			after[i] = text(id)
		}
		states := map[job.ID]job.State{}
		err := l.query(ctx, queryStates, pgx.NamedArgs{"ids": after}, func(rows pgx.Rows) error {
			var id string
			var state job.State
			err := rows.Scan(&id, &state)
			states[job.ID(id)] = state
			return err
		})
		if err != nil {
			return lifecycle.Change{}, err
		}
		for _, id := range after {
			if state := states[job.ID(id)]; state == "" || state.Final() {
				ended = append(ended, id)
			}
		}
		return r.Unblock(func(id job.ID) job.State { return states[job.ID(text(id))] }, l.retention, m), nil
	})
	if err != nil || rec.State.Final() { // what it needed is forgotten
		return err
	}
	_, err = l.exec(ctx, querySettled, pgx.NamedArgs{"seq": seq, "ended": ended})
	return err
}
