package postgres

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"
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

// migrator makes the migrations, on a connection of its own whose session has a lock
// against others that do.
type migrator struct {
	db       *sql.DB
	provider *goose.Provider
}

func newMigrator(ctx context.Context, direct *pgx.ConnConfig) (*migrator, error) {
	config := direct.Copy()
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	m := &migrator{db: stdlib.OpenDB(*config)}
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
		return fmt.Errorf("the database has the encoding %s: create it anew with ENCODING 'UTF8'", encoding)
	}
	sub, err := fs.Sub(files, "migrations")
	if err != nil {
		return err
	}
	locker, err := lock.NewPostgresSessionLocker()
	if err != nil {
		return err
	}
	m.provider, err = goose.NewProvider(goose.DialectPostgres, m.db, sub,
		goose.WithTableName(versions), goose.WithSessionLocker(locker), goose.WithLogger(goose.NopLogger()))
	return err
}

// newest is the version of the schema that this shepherd knows.
func (m *migrator) newest() int64 {
	sources := m.provider.ListSources()
	return sources[len(sources)-1].Version
}

// up brings the schema to the newest version, and makes it where there is none.
func (m *migrator) up(ctx context.Context, server string) error {
	if err := m.createSchema(ctx); err != nil {
		return err
	}
	version, err := m.provider.GetDBVersion(ctx)
	if err != nil {
		return err
	}
	if version > m.newest() {
		return &newerError{server: server, schema: version, known: m.newest()}
	}
	if version == m.newest() {
		return nil
	}
	_, err = m.provider.Up(ctx)
	return err
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

// down takes the newest migration back.
func (m *migrator) down(ctx context.Context) error {
	_, err := m.provider.Down(ctx)
	return err
}

func (m *migrator) close() error { return m.db.Close() }
