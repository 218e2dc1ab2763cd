package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/iterait/shepherd/internal/durable"
)

// Open opens the ledger at cfg.Path, creating it where there is none. Its
// directory must exist. The caller closes the ledger.
//
// An error names the path and what to do: the file is in use by another
// process, was written by a newer shepherd, is no ledger or damaged, or cannot
// be written.
func Open(ctx context.Context, cfg Config) (_ *Ledger, err error) {
	cfg, err = cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	d := &database{path: cfg.Path}
	defer func() {
		if err != nil {
			d.close()
			err = explain(cfg.Path, "open ledger", err)
		}
	}()
	if d.lock, err = lock(cfg.Path); err != nil {
		return nil, err
	}
	if err := createFile(cfg.Path); err != nil {
		return nil, err
	}
	conn, err := d.openForWrites(ctx)
	if err != nil {
		return nil, err
	}
	if err := prepareFile(ctx, cfg, conn); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	w, err := newWriter(ctx, cfg, conn)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if err := d.openForReads(ctx); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	d.writer = w
	w.start()
	return &Ledger{
		database: d, records: &records{d}, uploads: &uploads{d}, deliveries: &deliveries{d},
		eventLog: &eventLog{database: d, recent: w.events},
	}, nil
}

// prepareFile migrates the file to the present schema, makes its directory entry durable,
// and prepares it for the policy.
func prepareFile(ctx context.Context, cfg Config, conn *sql.Conn) error {
	if err := migrate(ctx, conn, cfg.Path); err != nil {
		return err
	}
	if err := durable.SyncDirs(filepath.Dir(cfg.Path)); err != nil {
		return err
	}
	return preparePolicy(ctx, conn, cfg.Policy)
}

// createFile creates the file where there is none, with mode 0600. SQLite uses an empty
// file as a new database and gives its log the same mode. It opens an existing file for
// writing, so that the error of one that cannot be written is the system's.
func createFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}
