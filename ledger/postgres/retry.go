package postgres

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// statementTime bounds one statement and its answer. A server that does not answer
// for that long is taken for one that is away.
const statementTime = 10 * time.Second

// The pauses between tries.
const (
	firstPause   = 10 * time.Millisecond
	longestPause = 500 * time.Millisecond
)

// newKey names one request, so that it can be found out whether it was made.
func newKey() string { return uuid.NewString() }

// retry runs do again while its error is transient, for up to cfg.RetryFor. Each
// try has a bounded time. do finds out by itself what a try before it may have made.
func (l *Ledger) retry(ctx context.Context, do func(ctx context.Context) error) error {
	return l.retryWithin(ctx, statementTime, do)
}

// retryWithin is retry, with another bound for each try.
func (l *Ledger) retryWithin(ctx context.Context, bound time.Duration, do func(ctx context.Context) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	until := time.Now().Add(l.cfg.RetryFor)
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		err := within(ctx, bound, do)
		if err == nil || ctx.Err() != nil || !transient(err) && !errors.Is(err, errConflict) || time.Now().After(until) {
			return err
		}
		if errors.Is(err, errConflict) {
			pause = firstPause / 2
		}
		select {
		case <-time.After(pause/2 + rand.N(pause)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// errConflict says that another transaction changed the row between the read and
// the write.
var errConflict = fmt.Errorf("the record is changed by others all the time: %w", errdefs.ErrUnavailable)

// once runs do within the time of a statement.
func once(ctx context.Context, do func(ctx context.Context) error) error {
	return within(ctx, statementTime, do)
}

func within(ctx context.Context, bound time.Duration, do func(ctx context.Context) error) error {
	bounded, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	err := do(bounded)
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil && bounded.Err() != nil { // context.DeadlineExceeded would be taken for the caller's
		return fmt.Errorf("no answer within %s: %w", bound, errdefs.ErrUnavailable)
	}
	return err
}

// querier is what statements are sent by: the pool, or one transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	SendBatch(ctx context.Context, batch *pgx.Batch) pgx.BatchResults
}

// query calls each for every row. It is one statement.
func (l *Ledger) query(ctx context.Context, sql string, args pgx.NamedArgs, each func(pgx.Rows) error) error {
	return l.queryBy(ctx, l.db, sql, args, each)
}

func (l *Ledger) queryBy(ctx context.Context, db querier, sql string, args pgx.NamedArgs, each func(pgx.Rows) error) error {
	return l.rows(ctx, db, sql, each, args)
}

// often is query for statements that are sent for every job: they are prepared where the
// connections are to the server itself. One plan of each is good for all arguments.
func (l *Ledger) often(ctx context.Context, db querier, sql string, args pgx.NamedArgs, each func(pgx.Rows) error) error {
	if l.prepares {
		return l.rows(ctx, db, sql, each, pgx.QueryExecModeCacheStatement, l.named.bind(args))
	}
	return l.rows(ctx, db, sql, each, l.named.bind(args))
}

func (l *Ledger) rows(ctx context.Context, db querier, sql string, each func(pgx.Rows) error, args ...any) error {
	l.statements.Add(1)
	rows, err := db.Query(ctx, sql, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := each(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// queryOne reads one row; found is false where there is none.
func (l *Ledger) queryOne(ctx context.Context, sql string, args pgx.NamedArgs, into ...any) (found bool, err error) {
	err = l.query(ctx, sql, args, one(&found, into))
	return found, err
}

// oftenOne is queryOne for statements that are sent for every job.
func (l *Ledger) oftenOne(ctx context.Context, sql string, args pgx.NamedArgs, into ...any) (found bool, err error) {
	err = l.often(ctx, l.db, sql, args, one(&found, into))
	return found, err
}

// one reads a row.
func one(found *bool, into []any) func(pgx.Rows) error {
	return func(rows pgx.Rows) error {
		*found = true
		return rows.Scan(into...)
	}
}

// exec runs a statement and returns how many rows it changed.
func (l *Ledger) exec(ctx context.Context, sql string, args pgx.NamedArgs) (int64, error) {
	l.statements.Add(1)
	tag, err := l.db.Exec(ctx, sql, args)
	return tag.RowsAffected(), err
}

// batch runs statements in one transaction and one round trip.
func (l *Ledger) batch(ctx context.Context, batch *pgx.Batch) error {
	l.statements.Add(int64(batch.Len()))
	return l.db.SendBatch(ctx, batch).Close()
}
