package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/iterait/shepherd/internal/durable"
)

// checkpointAt is how long the log may be, in pages of 4 KiB, before SQLite copies
// it into the file. A job changes the same few pages again and again: each is
// copied once for all changes since the last time.
const checkpointAt = "wal_autocheckpoint(4096)"

// readers is how many reads run at the same time.
const readers = 4

// database is the file: its lock, its connections, the writer that makes all changes,
// and the calls under way.
type database struct {
	path   string
	lock   *durable.FileLock
	db     *sql.DB // with the writer's one connection
	reads  *sql.DB
	read   *readStatements
	writer *writer

	// calls are those running; none begins once closed is set.
	mu     sync.Mutex
	closed bool
	calls  sync.WaitGroup
}

// openForWrites opens the writer's connection.
func (d *database) openForWrites(ctx context.Context) (_ *sql.Conn, err error) {
	if d.db, err = sql.Open("sqlite", dataSource(d.path, "cache_size(-8192)", "temp_store(MEMORY)", checkpointAt)); err != nil {
		return nil, err
	}
	d.db.SetMaxOpenConns(1)
	return d.db.Conn(ctx)
}

// openForReads opens the connections for reads and prepares their statements.
func (d *database) openForReads(ctx context.Context) (err error) {
	if d.reads, err = sql.Open("sqlite", dataSource(d.path, "cache_size(-1024)", "temp_store(MEMORY)", "query_only(1)")); err != nil {
		return err
	}
	d.reads.SetMaxOpenConns(readers)
	d.reads.SetMaxIdleConns(readers)
	d.reads.SetConnMaxIdleTime(time.Minute)
	d.read, err = prepareReads(ctx, d.reads)
	return err
}

// close closes what is open. The writer's connection is closed last: SQLite copies the
// log into the file when the last connection closes.
func (d *database) close() error {
	if d.read != nil {
		d.read.close()
	}
	var errs []error
	for _, db := range []*sql.DB{d.reads, d.db} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	if d.lock != nil {
		errs = append(errs, d.lock.Close())
	}
	return errors.Join(errs...)
}

// begin begins a call, which ends by d.calls.Done.
func (d *database) begin() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return errClosed
	}
	d.calls.Add(1)
	return nil
}

// call runs do as a call of the ledger, and explains its error.
func (d *database) call(doing string, do func() error) error {
	err := d.begin()
	if err == nil {
		defer d.calls.Done()
		err = do()
	}
	if err != nil {
		return explain(d.path, doing, err)
	}
	return nil
}

// endCalls lets no further call begin, and waits for those running.
func (d *database) endCalls() {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.calls.Wait()
}

// change hands an operation to the writer and waits until it is durable or ctx ends. If
// ctx ends first, the change may still be made; it is then undone by revert, unless nil.
func (d *database) change(ctx context.Context, doing string, apply, revert func(*tx) error) error {
	return d.call(doing, func() error {
		return d.await(ctx, &operation{apply: apply, revert: revert, done: make(chan struct{})})
	})
}

func (d *database) await(ctx context.Context, o *operation) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case d.writer.ops <- o:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-o.done:
		return o.err
	case <-ctx.Done():
		if o.abandon() {
			return ctx.Err()
		}
		<-o.done
		return o.err
	}
}

// dataSource is the data source name of the file with the pragmas of every connection
// and those given.
func dataSource(path string, pragmas ...string) string {
	var name strings.Builder
	name.WriteString("file://" + (&url.URL{Path: path}).EscapedPath())
	// Only backups and sqlite3(1) can hold a lock, and only for a short time.
	name.WriteString("?_txlock=immediate&_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)")
	for _, pragma := range pragmas {
		name.WriteString("&_pragma=" + pragma)
	}
	return name.String()
}
