package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/iterait/shepherd/internal/durable"
)

// checkpointAt is how long the log may be, in pages of 4 KiB, before SQLite copies
// it into the file. A job changes the same few pages again and again: each is
// copied once for all changes since the last time.
const checkpointAt = "wal_autocheckpoint(4096)"

// readers is how many reads run at the same time.
const readers = 4

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
	l := &Ledger{path: cfg.Path}
	defer func() {
		if err != nil {
			l.abandon()
			err = explain(cfg.Path, "open ledger", err)
		}
	}()
	if l.lock, err = lock(cfg.Path); err != nil {
		return nil, err
	}
	if err := touch(cfg.Path); err != nil {
		return nil, err
	}
	if l.db, err = sql.Open("sqlite", source(cfg.Path, "cache_size(-8192)", "temp_store(MEMORY)", checkpointAt)); err != nil {
		return nil, err
	}
	l.db.SetMaxOpenConns(1)
	conn, err := l.db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	if err := migrate(ctx, conn, cfg.Path); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if err := durable.SyncDirs(filepath.Dir(cfg.Path)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if err := preparePolicy(ctx, conn, cfg.Policy); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	w, err := newWriter(ctx, cfg, conn)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if err := l.openReads(ctx, cfg.Path); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	l.events, l.tally, l.writer = w.events, w.tally, w
	w.start()
	return l, nil
}

func (l *Ledger) openReads(ctx context.Context, path string) (err error) {
	if l.reads, err = sql.Open("sqlite", source(path, "cache_size(-1024)", "temp_store(MEMORY)", "query_only(1)")); err != nil {
		return err
	}
	l.reads.SetMaxOpenConns(readers)
	l.reads.SetMaxIdleConns(readers)
	l.reads.SetConnMaxIdleTime(time.Minute)
	l.read, err = prepareReads(ctx, l.reads)
	return err
}

// abandon closes what a failed open had opened.
func (l *Ledger) abandon() {
	for _, db := range []*sql.DB{l.reads, l.db} {
		if db != nil {
			db.Close()
		}
	}
	if l.lock != nil {
		l.lock.Close()
	}
}

// touch creates the file, for its owner alone, and finds out by the system's
// own words when it cannot be written. SQLite takes an empty file for a new
// database and gives its log the same mode.
func touch(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// source is the data source name of the file with the pragmas that every
// connection needs and those given.
func source(path string, pragmas ...string) string {
	var name strings.Builder
	name.WriteString("file://" + (&url.URL{Path: path}).EscapedPath())
	// Only backups and sqlite3(1) can hold a lock; they hold it briefly.
	name.WriteString("?_txlock=immediate&_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)")
	for _, pragma := range pragmas {
		name.WriteString("&_pragma=" + pragma)
	}
	return name.String()
}
