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

// Inspect reads the whole ledger at path and returns what it records. Its error is of
// class NotFound when there is none, and else one of those of Open. It may be used while
// another process has the ledger open, and changes nothing.
func Inspect(ctx context.Context, path string) (found Inspection, err error) {
	err = withDatabase(ctx, path, "inspect ledger", []string{"query_only(1)"}, func(db *sql.DB) error {
		// integrity_check, unlike quick_check, compares the indexes with the rows.
		rows, err := db.QueryContext(ctx, `PRAGMA integrity_check(5)`)
		if err != nil {
			return err
		}
		defer rows.Close()
		var problems []string
		for rows.Next() {
			var line string
			if err := rows.Scan(&line); err != nil {
				return err
			}
			if line != "ok" {
				problems = append(problems, strings.ReplaceAll(line, "\n", " "))
			}
		}
		if err := rows.Err(); err != nil {
			return err
		}
		if len(problems) > 0 {
			return fmt.Errorf("ledger %s is damaged: restore a backup (%s): %w", path, strings.Join(problems, "; "), errdefs.ErrInternal)
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
// file with mode 0600. It may be used while another process has the ledger open, and
// does not block it. The copy is a ledger: to restore it, stop the daemon and replace its
// ledger by the copy. The error is of class AlreadyExists when to exists.
func Backup(ctx context.Context, path, to string) error {
	if _, err := os.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
		if err == nil {
			err = errdefs.ErrAlreadyExists
		}
		return fmt.Errorf("back up the ledger: %s: %w", to, err)
	}
	return withDatabase(ctx, path, "back up ledger", nil, func(db *sql.DB) (err error) {
		// SQLite fills an empty file, so that its mode can be set first.
		temporary, err := os.CreateTemp(filepath.Dir(to), "."+filepath.Base(to)+"-")
		if err != nil {
			return fmt.Errorf("write the backup: %w: %w", err, errdefs.ErrFailedPrecondition)
		}
		defer func() {
			temporary.Close()
			if err != nil {
				os.Remove(temporary.Name())
			}
		}()
		if _, err := db.ExecContext(ctx, `VACUUM INTO ?`, temporary.Name()); err != nil {
			return err
		}
		if err := temporary.Sync(); err != nil {
			return err
		}
		if err := os.Link(temporary.Name(), to); err != nil { // unlike a rename, replaces nothing
			return err
		}
		if err := os.Remove(temporary.Name()); err != nil {
			return err
		}
		return durable.SyncDirs(filepath.Dir(to))
	})
}

// withDatabase opens the ledger at path and calls do with it. Another process may have the
// ledger open.
func withDatabase(ctx context.Context, path, doing string, pragmas []string, do func(*sql.DB) error) error {
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
	db, err := sql.Open("sqlite", dataSource(absolute, pragmas...)+"&mode=rw")
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
