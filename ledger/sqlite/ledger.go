// Package sqlite keeps a ledger in one SQLite file, for one daemon.
//
// The file is in WAL mode with synchronous=FULL: a commit is one write and one
// fsync of the log. All changes go through one goroutine, the writer, which
// takes whatever calls are waiting and makes them durable in a single commit,
// so that many callers share one fsync and a lone caller waits for nobody.
// Reads have connections of their own and never wait for the writer; since a
// call returns only after its commit, a caller always reads what it wrote.
//
// In memory are the number of records in each state, the number of claimable
// jobs of each model and address and of queued ones of each tenant, what is held,
// and the latest events. Everything else is in the file, so memory does not grow
// with the number of jobs.
//
// The writer also does what becomes due by itself: it makes delayed jobs
// claimable, fails those that waited too long, and removes what is no longer
// kept.
package sqlite

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/iterait/shepherd/internal/durable"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// What a zero field of Config stands for.
const (
	DefaultKeep        = 30 * 24 * time.Hour
	DefaultKeepJobs    = 100_000
	DefaultEventKeep   = 7 * 24 * time.Hour
	DefaultEventNumber = 200_000
)

// Config says where a ledger is and what it keeps.
type Config struct {
	// Path is the file. SQLite keeps its log in Path-wal and Path-shm, and
	// Path.lock keeps other processes out.
	Path string
	// Keep and KeepJobs bound the history: a record expires when it ended longer
	// ago than Keep, or when more than KeepJobs ended after it. Zero stands for
	// DefaultKeep and DefaultKeepJobs. Of each job the last 50 attempts of each of
	// its last 10 runs are kept.
	Keep     time.Duration
	KeepJobs int
	// EventKeep and EventNumber bound the events in the same way. Zero stands for
	// DefaultEventKeep and DefaultEventNumber.
	EventKeep   time.Duration
	EventNumber int
	// Retention says how long the files of a job that ended are kept; 0 is for
	// ever, as is nil. It is called by the goroutine that makes all changes, and
	// returns at once.
	Retention func(job.Record) time.Duration
	// Policy bounds what is held.
	Policy ledger.Policy
	// Now is the clock that records' times are taken from; nil stands for
	// time.Now.
	Now func() time.Time
	// Log gets what no caller can be told; nil discards it.
	Log *slog.Logger
}

func (c Config) withDefaults() (Config, error) {
	if c.Path == "" {
		return c, errors.New("no path is given")
	}
	if c.Keep < 0 || c.KeepJobs < 0 || c.EventKeep < 0 || c.EventNumber < 0 {
		return c, errors.New("a negative bound is given")
	}
	path, err := filepath.Abs(c.Path)
	if err != nil {
		return c, err
	}
	c.Path = path
	c.Keep, c.KeepJobs = cmp.Or(c.Keep, DefaultKeep), cmp.Or(c.KeepJobs, DefaultKeepJobs)
	c.EventKeep, c.EventNumber = cmp.Or(c.EventKeep, DefaultEventKeep), cmp.Or(c.EventNumber, DefaultEventNumber)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// Ledger is a ledger.Ledger in a file.
type Ledger struct {
	path   string
	lock   *durable.FileLock
	db     *sql.DB // the writer's one connection
	reads  *sql.DB
	read   *readStatements
	events *eventLog
	tally  *tally
	leases leases
	writer *writer

	// calls are those running; none begins once closed is set.
	mu     sync.Mutex
	closed bool
	calls  sync.WaitGroup

	closing  sync.Once
	closeErr error
}

var _ ledger.Ledger = (*Ledger)(nil)

// begin begins a call, which ends by l.calls.Done.
func (l *Ledger) begin() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errClosed
	}
	l.calls.Add(1)
	return nil
}

// call runs do as a call of the ledger, and explains its error.
func (l *Ledger) call(doing string, do func() error) error {
	err := l.begin()
	if err == nil {
		defer l.calls.Done()
		err = do()
	}
	if err != nil {
		return explain(l.path, doing, err)
	}
	return nil
}

// Close waits for running calls, ends leases and closes the file. A call that
// comes later answers an error of class errdefs.ErrUnavailable. Closing twice is
// closing once.
func (l *Ledger) Close() error {
	l.closing.Do(func() {
		l.mu.Lock()
		l.closed = true
		l.mu.Unlock()
		l.calls.Wait()
		l.leases.close()
		l.writer.stop()
		l.events.close()
		// The writer's connection goes last: SQLite folds the log into the file
		// when the last connection closes.
		l.read.close()
		err := errors.Join(l.reads.Close(), l.db.Close(), l.lock.Close())
		if err != nil {
			l.closeErr = fmt.Errorf("close ledger %s: %w", l.path, err)
		}
	})
	return l.closeErr
}

// Count implements ledger.Ledger. It has every state, also those of no record.
func (l *Ledger) Count(ctx context.Context) (ledger.Counts, error) {
	var counts ledger.Counts
	err := l.call("count jobs", func() error {
		counts = l.tally.counts()
		return ctx.Err()
	})
	if err != nil {
		return nil, err
	}
	return counts, nil
}
