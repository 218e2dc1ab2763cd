package postgres

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

// A migration that was released is never edited.
//
//go:embed migrations/*.sql
var files embed.FS

// versions is the table that knows which migrations were made.
const versions = "shepherd.schema_versions"

// newest is the version of the schema that this shepherd knows.
func newest() (int64, error) {
	names, err := fs.Glob(files, "migrations/*.sql")
	if err != nil {
		return 0, err
	}
	return goose.NumericComponent(path.Base(names[len(names)-1]))
}

// migrate brings the schema to the newest version. It does nothing where the schema is
// of that version.
func migrate(ctx context.Context, conn *pgx.Conn, server string, log *slog.Logger) error {
	known, err := newest()
	if err != nil {
		return err
	}
	version, err := schemaVersion(ctx, conn)
	switch {
	case err != nil:
		return err
	case version > known:
		return &newerError{server: server, schema: version, known: known}
	case version == known:
		return nil
	}
	m, err := newMigrator(ctx, conn.Config())
	if err != nil {
		return err
	}
	return errors.Join(m.up(ctx, log), m.close())
}

// schemaVersion is the version of the schema, 0 where there is none.
func schemaVersion(ctx context.Context, conn *pgx.Conn) (version int64, err error) {
	err = conn.QueryRow(ctx, `SELECT coalesce(max(version_id), 0) FROM `+versions).Scan(&version)
	var failure *pgconn.PgError
	if errors.As(err, &failure) && (failure.Code == "42P01" || failure.Code == "3F000") { // no such table, no such schema
		return 0, nil
	}
	return version, err
}

// A migration that waits for a lock has all others wait behind it that want the table, the
// daemons of the fleet included, whose leases would end: a long transaction, such as that of
// an export, has a lock of every table. So it waits for lockTime at most, and tries again
// after lockPause.
const (
	lockTime  = 2 * time.Second
	lockPause = time.Second
)

// migrator makes the migrations, on a connection of its own whose session has a lock
// against others that do.
type migrator struct {
	db       *sql.DB
	provider *goose.Provider
}

func newMigrator(ctx context.Context, direct *pgx.ConnConfig) (*migrator, error) {
	config := direct.Copy()
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	m := &migrator{db: stdlib.OpenDB(*config, stdlib.OptionAfterConnect(func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, fmt.Sprintf("SET lock_timeout = %d", lockTime.Milliseconds()))
		return err
	}))}
	if err := m.open(ctx); err != nil {
		return nil, errors.Join(err, m.db.Close())
	}
	return m, nil
}

func (m *migrator) open(ctx context.Context) error {
	var encoding string
	if err := m.db.QueryRowContext(ctx, `SELECT current_setting('server_encoding')`).Scan(&encoding); err != nil {
		return err
	}
	if encoding != "UTF8" {
		return fmt.Errorf("the database has the encoding %s: create it again with ENCODING 'UTF8'", encoding)
	}
	sub, err := fs.Sub(files, "migrations")
	if err != nil {
		return err
	}
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockID(migrateLock), lock.WithLockTimeout(1, uint64(migrateTime/time.Second)))
	if err != nil {
		return err
	}
	m.provider, err = goose.NewProvider(goose.DialectPostgres, m.db, sub,
		goose.WithTableName(versions), goose.WithSessionLocker(locker), goose.WithLogger(goose.NopLogger()))
	return err
}

// up brings the schema to the newest version, and makes it where there is none.
func (m *migrator) up(ctx context.Context, log *slog.Logger) error {
	if err := m.createSchema(ctx); err != nil {
		return err
	}
	for waits := false; ; waits = true {
		_, err := m.provider.Up(ctx)
		var failure *pgconn.PgError
		if !errors.As(err, &failure) || failure.Code != "55P03" { // lock_not_available
			return err
		}
		if !waits {
			log.Warn("The migration of the ledger waits for long transactions in its database, such as an export, to end", "error", err)
		}
		select {
		case <-time.After(lockPause):
		case <-ctx.Done():
			return err
		}
	}
}

// createSchema makes the schema, which another daemon may do at the same time.
func (m *migrator) createSchema(ctx context.Context) error {
	var there bool
	for range 2 {
		err := m.db.QueryRowContext(ctx, `SELECT to_regnamespace('shepherd') IS NOT NULL`).Scan(&there)
		if err != nil || there {
			return err
		}
		if _, err = m.db.ExecContext(ctx, `CREATE SCHEMA IF NOT EXISTS shepherd`); err == nil || !uniqueViolation(err) {
			return err
		}
	}
	return nil
}

// down takes all migrations back.
func (m *migrator) down(ctx context.Context) error {
	_, err := m.provider.DownTo(ctx, 0)
	return err
}

func (m *migrator) close() error { return m.db.Close() }
