package postgres

import (
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/lifecycle"
)

// Keep implements ledger.Retention.
func (l *Ledger) Keep(ctx context.Context, kept []ledger.Kept) error {
	ids := make([]string, len(kept))
	for i, k := range kept {
		ids[i] = text(k.Job)
	}
	key := newKey()
	return l.call(ctx, "set how long files of jobs are kept", func(ctx context.Context) error {
		rows := map[string]*row{}
		var m lifecycle.Moment
		err := l.query(ctx, queryLoadMany, pgx.NamedArgs{"ids": ids}, func(found pgx.Rows) error {
			r, err := scanRow(found, true, &m.Now, &m.Age)
			if r != nil {
				rows[string(r.ID)] = r
			}
			return err
		})
		if err != nil {
			return err
		}
		batch := &pgx.Batch{}
		conflict := false
		for i, k := range kept {
			r := rows[ids[i]]
			if r == nil {
				continue
			}
			change := r.SetKept(k)
			if !change.Made {
				continue
			}
			query, args, err := l.saveArgs(r, change, key, m)
			if err != nil {
				return err
			}
			r.version++ // should the list have the job twice
			batch.Queue(query, args).QueryRow(func(row pgx.Row) error {
				var n int
				err := row.Scan(&n)
				conflict = conflict || n == 0
				return err
			})
		}
		if batch.Len() == 0 {
			return nil
		}
		if err := l.batch(ctx, batch); err != nil {
			return err
		}
		if conflict {
			return errConflict
		}
		return nil
	})
}

// due is what is to be removed.
type due struct {
	removals []ledger.Removal
	next     time.Duration
}

// Due implements ledger.Retention.
func (l *Ledger) Due(ctx context.Context, limit int) ([]ledger.Removal, time.Duration, error) {
	d, err := read(ctx, l.database, "look for files of jobs to remove", func(ctx context.Context) (due, error) {
		var d due
		err := l.query(ctx, queryDue, pgx.NamedArgs{"limit": limit + 1, "nodes": l.leases.nodes()}, func(rows pgx.Rows) error {
			var m lifecycle.Moment
			r, err := scanRow(rows, false, &m.Now, &m.Age)
			switch {
			case err != nil:
				return err
			case d.next > 0: // there is more that is due, or the next was read
			case r.RemoveAge > m.Age || len(d.removals) == limit:
				d.next = max(time.Duration(r.RemoveAge-m.Age)*time.Microsecond, 1)
			default:
				d.removals = append(d.removals, ledger.Removal{Record: r.Record, Begun: r.Removal != lifecycle.NoRemoval})
			}
			return nil
		})
		return d, err
	})
	return d.removals, d.next, err
}

// BeginRemoval implements ledger.Retention.
func (l *Ledger) BeginRemoval(ctx context.Context, id job.ID, run int, whole bool) (job.Record, error) {
	var begun job.Record
	key := newKey()
	err := l.call(ctx, "begin the removal of job "+string(id), func(ctx context.Context) (err error) {
		begun, err = l.beginRemoval(ctx, id, key, run, whole)
		return err
	})
	if err != nil {
		return job.Record{}, err
	}
	return begun, nil
}

func (l *Ledger) beginRemoval(ctx context.Context, id job.ID, key string, run int, whole bool) (job.Record, error) {
	r, m, err := l.load(ctx, id)
	if err != nil {
		return job.Record{}, err
	}
	if r == nil {
		return job.Record{}, ledger.ErrNotFound
	}
	if r.changedBy == key { // the answer to an earlier try was lost
		return r.Record, nil
	}
	nodes := l.leases.nodes()
	others := r.Removal != lifecycle.NoRemoval && !slices.Contains(nodes, r.remover)
	needed, err := l.needed(ctx, id)
	if err != nil {
		return job.Record{}, err
	}
	change, err := r.BeginRemoval(run, whole, needed)
	if err != nil {
		return job.Record{}, err
	}
	if others {
		var alive bool
		if _, err := l.queryOne(ctx, queryAlive, pgx.NamedArgs{"node": r.remover}, &alive); err != nil {
			return job.Record{}, err
		}
		if alive {
			return job.Record{}, ledger.ErrRemoving
		}
	} else if !change.Made {
		return r.Record, nil
	}
	r.remover = nodes[0]
	return r.Record, l.save(ctx, r, change, key, m)
}

// EndRemoval implements ledger.Retention.
func (l *Ledger) EndRemoval(ctx context.Context, id job.ID) error {
	key := newKey()
	return l.call(ctx, "end the removal of job "+string(id), func(ctx context.Context) error {
		r, m, err := l.load(ctx, id)
		if err != nil || r == nil || !slices.Contains(l.leases.nodes(), r.remover) {
			return err
		}
		change, gone := r.EndRemoval(m)
		switch {
		case !change.Made:
			return nil
		case !gone:
			r.remover = ""
			return l.save(ctx, r, change, key, m)
		}
		var n int
		if _, err := l.queryOne(ctx, queryRemove, pgx.NamedArgs{"seq": r.Seq, "version": r.version}, &n); err != nil {
			return err
		}
		if n == 0 {
			return errConflict
		}
		return nil
	})
}
