package sqlite

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/containerd/errdefs"
	driver "modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

var errClosed = fmt.Errorf("the ledger is closed: %w", errdefs.ErrUnavailable)

// newerError says that the file has a schema that this version does not know.
type newerError struct {
	path          string
	schema, known int
}

func (e *newerError) Error() string {
	return fmt.Sprintf("ledger %s was written by a newer shepherd (its schema is version %d, this shepherd knows up to %d): start that shepherd or a later one, or give this one another ledger", e.path, e.schema, e.known)
}

func (e *newerError) Unwrap() error { return errdefs.ErrFailedPrecondition }

// foreignError says that the file is a database, but no ledger.
type foreignError struct{ path string }

func (e *foreignError) Error() string {
	return fmt.Sprintf("%s is a database of another program, not a ledger: give shepherd another path for its ledger", e.path)
}

func (e *foreignError) Unwrap() error { return errdefs.ErrFailedPrecondition }

// lockedError says that another process has the ledger open.
type lockedError struct{ path, owner string }

func (e *lockedError) Error() string {
	return fmt.Sprintf("ledger %s is in use by another process%s: stop that one first, or give this one another ledger", e.path, e.owner)
}

func (e *lockedError) Unwrap() error { return errdefs.ErrUnavailable }

// explain adds the class that an error has for the callers of a ledger, and what to do
// about it. An error that has a class already, which is an answer of the ledger or the
// end of a context, is returned with doing only.
func explain(path, doing string, err error) error {
	if !errors.Is(errdefs.Resolve(err), errdefs.ErrUnknown) {
		return fmt.Errorf("%s: %w", doing, err)
	}
	hint, class := classify(err)
	return fmt.Errorf("%s: ledger %s: %s: %w: %w", doing, path, hint, class, err)
}

func classify(err error) (hint string, class error) {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "no space left on its disk; free some and try again", errdefs.ErrResourceExhausted
	case errors.Is(err, syscall.EROFS):
		return "its file system is read-only; mount it writable", errdefs.ErrUnavailable
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return "no permission; give the user that shepherd runs as write access to its directory", errdefs.ErrUnavailable
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENOTDIR):
		return "its directory does not exist; create it", errdefs.ErrUnavailable
	}
	var failure *driver.Error
	if !errors.As(err, &failure) {
		return "unexpected failure", errdefs.ErrInternal
	}
	switch failure.Code() & 0xff { // the primary code
	case sqlite3.SQLITE_FULL:
		return "no space left on its disk; free some and try again", errdefs.ErrResourceExhausted
	case sqlite3.SQLITE_READONLY:
		return "it cannot be written; make the file and its directory writable", errdefs.ErrUnavailable
	case sqlite3.SQLITE_CANTOPEN:
		return "it cannot be opened; make the file and its directory readable and writable", errdefs.ErrUnavailable
	case sqlite3.SQLITE_IOERR:
		return "its disk failed; look at the system log for the reason", errdefs.ErrUnavailable
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return "another program keeps it locked; end that program and try again", errdefs.ErrUnavailable
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return "the file is damaged; stop shepherd and restore the file from a backup, or move it and its -wal file away and run shepherdd recover, which queues jobs again from storage", errdefs.ErrInternal
	}
	return "unexpected failure", errdefs.ErrInternal
}
