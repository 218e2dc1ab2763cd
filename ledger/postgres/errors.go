package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/jackc/pgx/v5/pgconn"
)

var errClosed = fmt.Errorf("the ledger is closed: %w", errdefs.ErrUnavailable)

// newerError says that the schema is not known here.
type newerError struct {
	server        string
	schema, known int64
}

func (e *newerError) Error() string {
	return fmt.Sprintf("the ledger at %s was written by a newer shepherd (its schema is version %d, this shepherd knows up to %d): start that shepherd or a later one, or give this one another database", e.server, e.schema, e.known)
}

func (e *newerError) Unwrap() error { return errdefs.ErrFailedPrecondition }

// olderError says that the tables are not there, or not as this shepherd has them.
type olderError struct {
	server        string
	schema, known int64
}

func (e *olderError) Error() string {
	if e.schema == 0 {
		return fmt.Sprintf("there is no ledger at %s yet: shepherdd creates it when it first starts", e.server)
	}
	return fmt.Sprintf("the ledger at %s was written by an older shepherd (its schema is version %d, this shepherd has %d): start shepherdd, which migrates it", e.server, e.schema, e.known)
}

// Unwrap is of class NotFound where there is nothing.
func (e *olderError) Unwrap() error {
	if e.schema == 0 {
		return errdefs.ErrNotFound
	}
	return errdefs.ErrFailedPrecondition
}

// TakenError says that another node has the ledger, which this one wants for itself.
type TakenError struct {
	Server, Node string
	Until        string // when its lease ends, by the server's clock
}

func (e *TakenError) Error() string {
	return fmt.Sprintf("the ledger at %s is in use by node %s (its lease ends at %s unless it is renewed): stop the daemon of that node first, or give this one another database", e.Server, e.Node, e.Until)
}

func (e *TakenError) Unwrap() error { return errdefs.ErrFailedPrecondition }

// explain gives an error the class it has for the callers of a ledger and says
// what to do about it. What has a class already is the ledger's answer, or the end
// of a context, and passes through. Neither pgx's errors nor ours have the password.
func explain(server, doing string, err error) error {
	if !errors.Is(errdefs.Resolve(err), errdefs.ErrUnknown) {
		return fmt.Errorf("%s: %w", doing, err)
	}
	hint, class := classify(err)
	return fmt.Errorf("%s: ledger at %s: %s: %w: %w", doing, server, hint, class, lineError{err})
}

// lineError shows an error in one line, each part of it once: a failed connection attempt
// has a line for each address, and for each way of encryption.
type lineError struct{ err error }

func (e lineError) Error() string {
	var parts []string
	for line := range strings.Lines(e.err.Error()) {
		if part := strings.TrimSuffix(strings.TrimSpace(line), ":"); part != "" && !slices.Contains(parts, part) {
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, ": ")
}

func (e lineError) Unwrap() error { return e.err }

func classify(err error) (hint string, class error) {
	var failure *pgconn.PgError
	if !errors.As(err, &failure) {
		var network net.Error
		var connect *pgconn.ConnectError
		if errors.As(err, &network) || errors.As(err, &connect) || pgconn.SafeToRetry(err) || broken(err) {
			return "the database cannot be reached; check that it runs and that ledger.url names it", errdefs.ErrUnavailable
		}
		return "unexpected failure", errdefs.ErrInternal
	}
	switch failure.Code {
	case "53100":
		return "no space left on its disk; free some and try again", errdefs.ErrResourceExhausted
	case "53300":
		return "it has no connection left; raise its max_connections, or lower pool_max_conns in ledger.url", errdefs.ErrUnavailable
	case "25006":
		return "it is a standby, which cannot be changed; name the primary in ledger.url, or both with target_session_attrs=read-write", errdefs.ErrUnavailable
	case "3D000":
		return "there is no such database; create it (createdb), owned by the user that ledger.url names", errdefs.ErrFailedPrecondition
	case "42501":
		return "no permission; have the database owned by the user that ledger.url names", errdefs.ErrFailedPrecondition
	case "42P01", "3F000", "42703":
		return "its tables are not those of this shepherd; start shepherdd, which creates them", errdefs.ErrFailedPrecondition
	}
	switch failure.Code[:min(2, len(failure.Code))] {
	case "28":
		return "it does not let this user in; check user and password (ledger.url, the password file, pg_hba.conf)", errdefs.ErrUnavailable
	case "08", "40", "53", "55", "57", "58":
		return "the database cannot answer now; try again", errdefs.ErrUnavailable
	}
	return "unexpected failure", errdefs.ErrInternal
}

// transient reports whether the same statement may succeed soon: it was undone for
// the sake of another, or the connection or the server was lost. Whether a change
// was made then is not known.
func transient(err error) bool {
	var failure *pgconn.PgError
	if errors.As(err, &failure) {
		switch failure.Code {
		case "40001", "40P01", // serialization failure, deadlock
			"57P01", "57P02", "57P03", "57P05", // shut down, crashed, starting, idle for too long
			"25006", // the primary became a standby
			"25P03", // the transaction was idle for too long, for example while this machine was suspended
			"26000", // the prepared statement was dropped
			"53300": // too many connections
			return true
		case "0A000": // not supported
			return failure.Routine == "RevalidateCachedQuery" // a prepared statement's result has other types now
		}
		return strings.HasPrefix(failure.Code, "08")
	}
	var connect *pgconn.ConnectError
	return errors.As(err, &connect) || pgconn.SafeToRetry(err) || broken(err)
}

// broken reports whether the connection was lost.
func broken(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	var network net.Error
	return errors.As(err, &network) || strings.Contains(err.Error(), "unexpected EOF") || strings.Contains(err.Error(), "conn closed") ||
		strings.Contains(err.Error(), "closed the connection") || errors.Is(err, net.ErrClosed)
}

// uniqueViolation reports whether a row with the same id was there.
func uniqueViolation(err error) bool {
	var failure *pgconn.PgError
	return errors.As(err, &failure) && failure.Code == "23505"
}
