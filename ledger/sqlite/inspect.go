package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/internal/durable"
)

// Inspection is what Inspect finds.
type Inspection struct {
	Jobs       int       // how many jobs are recorded
	LastChange time.Time // by the clock of then; zero for a ledger that was never written
}

// Inspect reads the whole ledger at path and returns what it records, or what is
// wrong with it: an error of class NotFound when there is none, and else one of
// those of Open. It may be used while another process has the ledger open, and
// changes nothing.
func Inspect(ctx context.Context, path string) (found Inspection, err error) {
	err = beside(ctx, path, "inspect ledger", []string{"query_only(1)"}, func(db *sql.DB) error {
		// The indexes are compared with the rows, too.
		rows, err := db.QueryContext(ctx, `PRAGMA integrity_check(5)`)
		if err != nil {
			return err
		}
		defer rows.Close()
		var said []string
		for rows.Next() {
			var line string
			if err := rows.Scan(&line); err != nil {
				return err
			}
			if line != "ok" {
				said = append(said, strings.ReplaceAll(line, "\n", " "))
			}
		}
		if err := rows.Err(); err != nil {
			return err
		}
		if len(said) > 0 {
			return fmt.Errorf("ledger %s is damaged: restore a backup (%s): %w", path, strings.Join(said, "; "), errdefs.ErrInternal)
		}
		var wall int64
		err = db.QueryRowContext(ctx, `SELECT wall, (SELECT count(*) FROM jobs) FROM numbers`).Scan(&wall, &found.Jobs)
		if wall != 0 {
			found.LastChange = time.UnixMicro(wall)
		}
		return err
	})
	return found, err
}

// Backup writes a copy of the ledger at path, as it is at one moment, to a new
// file, readable by its owner alone. It may be used while another process has
// the ledger open, and does not hold it up. The copy is a ledger, too: to
// restore it, put it in the place of the ledger of a daemon that is stopped.
// The error is of class AlreadyExists when there is something at to already.
func Backup(ctx context.Context, path, to string) error {
	if _, err := os.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
		if err == nil {
			err = errdefs.ErrAlreadyExists
		}
		return fmt.Errorf("back up the ledger: %s: %w", to, err)
	}
	return beside(ctx, path, "back up ledger", nil, func(db *sql.DB) (err error) {
		// SQLite fills an empty file, so that its mode can be set first.
		making, err := os.CreateTemp(filepath.Dir(to), "."+filepath.Base(to)+"-")
		if err != nil {
			return fmt.Errorf("write the backup: %w: %w", err, errdefs.ErrFailedPrecondition)
		}
		defer func() {
			making.Close()
			if err != nil {
				os.Remove(making.Name())
			}
		}()
		if _, err := db.ExecContext(ctx, `VACUUM INTO ?`, making.Name()); err != nil {
			return err
		}
		if err := making.Sync(); err != nil {
			return err
		}
		if err := os.Link(making.Name(), to); err != nil { // unlike a rename, replaces nothing
			return err
		}
		if err := os.Remove(making.Name()); err != nil {
			return err
		}
		return durable.SyncDirs(filepath.Dir(to))
	})
}

// beside opens the ledger to read, beside a process that may have it open.
func beside(ctx context.Context, path, doing string, pragmas []string, do func(*sql.DB) error) error {
	if _, err := os.Stat(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: there is none at %s: %w", doing, path, errdefs.ErrNotFound)
		}
		return explain(path, doing, err)
	}
	absolute, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	db, err := sql.Open("sqlite", source(absolute, pragmas...)+"&mode=rw")
	if err != nil {
		return explain(path, doing, err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	var version, application int
	err = db.QueryRowContext(ctx, `SELECT user_version, application_id FROM pragma_user_version, pragma_application_id`).Scan(&version, &application)
	switch {
	case err != nil:
	case application != applicationID:
		err = &foreignError{path: path}
	case version > len(migrations):
		err = &newerError{path: path, schema: version, known: len(migrations)}
	default:
		err = do(db)
	}
	if err != nil {
		return explain(path, doing, err)
	}
	return nil
}
