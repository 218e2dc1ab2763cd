package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// Reader reads the records of a ledger as they are at one moment, whoever has it open.
// It is for one goroutine.
type Reader struct{ l *Ledger }

// Read calls do with a Reader. It changes nothing in the database. The error is of class errdefs.ErrNotFound where
// no shepherd has made its tables yet.
func Read(ctx context.Context, cfg Config, do func(*Reader) error) error {
	return connect(ctx, cfg, "read the ledger", func(l *Ledger, conn *pgx.Conn) error {
		return pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
			l.db = tx
			return do(&Reader{l})
		})
	})
}

// connect calls do with a ledger of one connection, which joins as no node and looks
// after nothing. The error is of class errdefs.ErrNotFound where no shepherd has made the
// tables yet, and of class errdefs.ErrFailedPrecondition where they are another version's.
func connect(ctx context.Context, cfg Config, doing string, do func(l *Ledger, conn *pgx.Conn) error) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	direct, err := parse(cfg.DirectURL)
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	l := newLedger(cfg, addressOf(direct))
	if err := l.connected(ctx, direct.ConnConfig, do); err != nil {
		return explain(l.server, doing, err)
	}
	return nil
}

func (l *Ledger) connected(ctx context.Context, direct *pgx.ConnConfig, do func(l *Ledger, conn *pgx.Conn) error) error {
	var conn *pgx.Conn
	err := l.retry(ctx, func(ctx context.Context) (err error) {
		conn, err = l.connectDirect(direct)(ctx)
		return err
	})
	if err != nil {
		return err
	}
	defer closeConn(conn)
	known, err := newest()
	if err != nil {
		return err
	}
	version, err := schemaVersion(ctx, conn)
	switch {
	case err != nil:
		return err
	case version > known:
		return &newerError{server: l.server, schema: version, known: known}
	case version < known:
		return &olderError{server: l.server, schema: version, known: known}
	}
	l.db = conn
	return do(l, conn)
}

// List is that of ledger.Ledger.
func (r *Reader) List(ctx context.Context, filter ledger.Filter, cursor int64, limit int) ([]job.Record, int64, error) {
	return r.l.List(ctx, filter, cursor, limit)
}

// Get is that of ledger.Ledger.
func (r *Reader) Get(ctx context.Context, id job.ID) (job.Record, error) { return r.l.Get(ctx, id) }

// Attempts is that of ledger.Ledger.
func (r *Reader) Attempts(ctx context.Context, id job.ID) ([]job.Attempt, error) {
	return r.l.Attempts(ctx, id)
}

// JobWebhooks is that of ledger.Webhooks.
func (r *Reader) JobWebhooks(ctx context.Context, runs []ledger.JobRun) (map[ledger.JobRun]job.Webhook, error) {
	return r.l.JobWebhooks(ctx, runs)
}

// Count is that of ledger.Ledger.
func (r *Reader) Count(ctx context.Context) (ledger.Counts, error) { return r.l.Count(ctx) }
