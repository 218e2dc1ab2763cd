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

// Read calls do with a Reader. It changes nothing in the database. The errors are those
// of Open and of do, and one of class errdefs.ErrNotFound where no shepherd has
// made its tables yet.
func Read(ctx context.Context, cfg Config, do func(*Reader) error) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return fmt.Errorf("read the ledger: %w", err)
	}
	direct, err := parse(cfg.DirectURL) // one connection, as that of a transaction has to be
	if err != nil {
		return fmt.Errorf("read the ledger: %w", err)
	}
	l := &Ledger{cfg: cfg, server: addressOf(direct)}
	if err := l.readAll(ctx, direct.ConnConfig, do); err != nil {
		return explain(l.server, "read the ledger", err)
	}
	return nil
}

func (l *Ledger) readAll(ctx context.Context, direct *pgx.ConnConfig, do func(*Reader) error) error {
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
	return pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		l.db = tx
		return do(&Reader{l})
	})
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

// Count is that of ledger.Ledger.
func (r *Reader) Count(ctx context.Context) (ledger.Counts, error) { return r.l.Count(ctx) }

// Address is where the ledger is, without a password.
func (r *Reader) Address() string { return r.l.server }
