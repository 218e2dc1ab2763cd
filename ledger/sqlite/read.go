package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// readStatements are the reads whose text is always the same.
type readStatements struct{ get, held, oldest *sql.Stmt }

const (
	queryGet  = `SELECT ` + columns + ` FROM jobs WHERE id = ?`
	queryHeld = `SELECT ` + columns + ` FROM jobs WHERE node = ? AND token > 0 ORDER BY token`
)

func prepareReads(ctx context.Context, db *sql.DB) (*readStatements, error) {
	s := new(readStatements)
	var err error
	if s.get, err = db.PrepareContext(ctx, queryGet); err != nil {
		return nil, err
	}
	if s.held, err = db.PrepareContext(ctx, queryHeld); err != nil {
		s.get.Close()
		return nil, err
	}
	if s.oldest, err = db.PrepareContext(ctx, queryOldest); err != nil {
		s.get.Close()
		s.held.Close()
		return nil, err
	}
	return s, nil
}

func (s *readStatements) close() {
	s.get.Close()
	s.held.Close()
	s.oldest.Close()
}

// look runs a read as a call of the ledger.
func (l *Ledger) look(doing string, read func() error) error {
	err := l.enter()
	if err == nil {
		defer l.calls.Done()
		err = read()
	}
	if err != nil {
		return explain(l.path, doing, err)
	}
	return nil
}

// Get implements ledger.Ledger.
func (l *Ledger) Get(ctx context.Context, id job.ID) (job.Record, error) {
	var rec job.Record
	err := l.look("look up job "+string(id), func() error {
		if err := ctx.Err(); err != nil {
			return err
		}
		// A look-up ends by itself within microseconds; to watch a context
		// meanwhile would cost two goroutines more than it does.
		r, err := scanOne(l.read.get.QueryRowContext(context.WithoutCancel(ctx), string(id)))
		if err == nil {
			rec = r.Record
		}
		return err
	})
	return rec, err
}

// Held implements ledger.Ledger; the oldest claim is the one made first.
func (l *Ledger) Held(ctx context.Context, node string) ([]ledger.Claim, error) {
	var claims []ledger.Claim
	err := l.look("list the jobs held by node "+node, func() error {
		rows, err := l.read.held.QueryContext(ctx, node)
		if err != nil {
			return err
		}
		found, err := scanAll(rows)
		for _, r := range found {
			claims = append(claims, ledger.Claim{Record: r.Record, Token: r.token})
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return claims, nil
}

// List implements ledger.Ledger. Asked for no record at all, it answers an
// error of class errdefs.ErrInternal.
func (l *Ledger) List(ctx context.Context, filter ledger.Filter, cursor int64, limit int) ([]job.Record, int64, error) {
	if limit < 1 {
		return nil, 0, fmt.Errorf("list jobs: a page of %d records: %w", limit, errdefs.ErrInternal)
	}
	var page []job.Record
	var next int64
	query, args := listQuery(filter, cursor, limit)
	err := l.look("list jobs", func() error {
		rows, err := l.reads.QueryContext(ctx, query, args...)
		if err != nil {
			return err
		}
		found, err := scanAll(rows)
		for i, r := range found {
			if i == limit { // one more was asked for to know whether there is one
				next = r.Seq
				break
			}
			page = append(page, r.Record)
		}
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	return page, next, nil
}

// listQuery asks for a page and the record after it. A single state is found
// by its index. Several are not: SQLite would sort all their records to find
// the first few by place.
func listQuery(filter ledger.Filter, cursor int64, limit int) (string, []any) {
	var query strings.Builder
	query.WriteString(`SELECT ` + columns + ` FROM jobs WHERE seq >= ?`)
	args := []any{cursor}
	switch len(filter.States) {
	case 0:
	case 1:
		query.WriteString(` AND state = ?`)
		args = append(args, string(filter.States[0]))
	default:
		query.WriteString(` AND +state IN (?` + strings.Repeat(`, ?`, len(filter.States)-1) + `)`)
		for _, state := range filter.States {
			args = append(args, string(state))
		}
	}
	if filter.Sheep != "" {
		query.WriteString(` AND +sheep = ?`)
		args = append(args, filter.Sheep)
	}
	if !filter.Model.IsZero() {
		query.WriteString(` AND model_name = ? AND model_version = ?`)
		args = append(args, filter.Model.Name, filter.Model.Version)
	}
	if filter.Tenant != "" {
		query.WriteString(` AND tenant = ? AND tenant > ''`) // so that the index is found
		args = append(args, filter.Tenant)
	}
	query.WriteString(` ORDER BY seq LIMIT ?`)
	return query.String(), append(args, limit+1)
}

func scanAll(rows *sql.Rows) ([]row, error) {
	defer rows.Close()
	var found []row
	for rows.Next() {
		var r row
		if err := r.scan(rows.Scan); err != nil {
			return nil, err
		}
		found = append(found, r)
	}
	return found, rows.Err()
}
