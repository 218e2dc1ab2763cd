package postgres

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// database sends statements to the server, over the connections of the pool or, where a
// ledger is only looked at, over one.
type database struct {
	server   string // where it is, without a password
	retryFor time.Duration

	pool *pgxpool.Pool
	db   querier // the pool

	idle       time.Duration // idleInTransaction
	prepares   bool          // statements that are sent often
	named      named
	statements atomic.Int64 // that were sent

	// calls of the ledger are those running; none begins once closed is set.
	mu     sync.Mutex
	closed bool
	calls  sync.WaitGroup
}

// begin begins a call, which ends by d.calls.Done.
func (d *database) begin() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return errClosed
	}
	d.calls.Add(1)
	return nil
}

// call runs do as a call of the ledger, again where that may help, and explains its
// error.
func (d *database) call(ctx context.Context, doing string, do func(ctx context.Context) error) error {
	err := d.begin()
	if err == nil {
		defer d.calls.Done()
		err = d.retry(ctx, do)
	}
	if err != nil {
		return explain(d.server, doing, err)
	}
	return nil
}

// read is call for reads, whose result do makes again each time.
func read[T any](ctx context.Context, d *database, doing string, do func(ctx context.Context) (T, error)) (T, error) {
	var result T
	err := d.call(ctx, doing, func(ctx context.Context) (err error) {
		result, err = do(ctx)
		return err
	})
	if err != nil {
		var none T
		return none, err
	}
	return result, nil
}

// endCalls lets no further call begin, and waits for those running.
func (d *database) endCalls() {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.calls.Wait()
}

// idleInTransaction is how long the server waits for the next statement of a transaction. A
// node that loses its power or its network in the middle of one would otherwise keep the
// locks of it from all others until the server notices, which can take hours.
const idleInTransaction = 5 * time.Second

// transact runs do in a transaction of several statements.
func (d *database) transact(ctx context.Context, do func(tx pgx.Tx) error) error {
	begin := fmt.Sprintf("BEGIN; SET LOCAL idle_in_transaction_session_timeout = %d", d.idle.Milliseconds())
	return pgx.BeginTxFunc(ctx, d.pool, pgx.TxOptions{BeginQuery: begin}, do)
}

// querier is what statements are sent by: the pool, or one transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	SendBatch(ctx context.Context, batch *pgx.Batch) pgx.BatchResults
}

// query calls each for every row. It is one statement.
func (d *database) query(ctx context.Context, sql string, args pgx.NamedArgs, each func(pgx.Rows) error) error {
	return d.queryBy(ctx, d.db, sql, args, each)
}

// queryBy is query, sent by db.
func (d *database) queryBy(ctx context.Context, db querier, sql string, args pgx.NamedArgs, each func(pgx.Rows) error) error {
	return d.rows(ctx, db, sql, each, args)
}

// often is query for statements that are sent for every job: they are prepared where the
// connections are to the server itself. One plan of each is good for all arguments.
func (d *database) often(ctx context.Context, db querier, sql string, args pgx.NamedArgs, each func(pgx.Rows) error) error {
	if d.prepares {
		return d.rows(ctx, db, sql, each, pgx.QueryExecModeCacheStatement, d.named.bind(args))
	}
	return d.rows(ctx, db, sql, each, d.named.bind(args))
}

func (d *database) rows(ctx context.Context, db querier, sql string, each func(pgx.Rows) error, args ...any) error {
	d.statements.Add(1)
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
func (d *database) queryOne(ctx context.Context, sql string, args pgx.NamedArgs, into ...any) (found bool, err error) {
	err = d.query(ctx, sql, args, one(&found, into))
	return found, err
}

// oftenOne is queryOne for statements that are sent for every job.
func (d *database) oftenOne(ctx context.Context, sql string, args pgx.NamedArgs, into ...any) (found bool, err error) {
	err = d.often(ctx, d.db, sql, args, one(&found, into))
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
func (d *database) exec(ctx context.Context, sql string, args pgx.NamedArgs) (int64, error) {
	d.statements.Add(1)
	tag, err := d.db.Exec(ctx, sql, args)
	return tag.RowsAffected(), err
}

// batch runs statements in one transaction and one round trip.
func (d *database) batch(ctx context.Context, batch *pgx.Batch) error {
	d.statements.Add(int64(batch.Len()))
	return d.db.SendBatch(ctx, batch).Close()
}
