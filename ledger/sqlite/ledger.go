// Package sqlite keeps a ledger in one SQLite file, for one daemon.
//
// The file is in WAL mode with synchronous=FULL: a commit is one write and one
// fsync of the log. All changes go through one goroutine, the writer, which
// takes the calls that are waiting and makes them durable in one commit: many
// callers share one fsync, and a single caller waits for no other. Reads have
// connections of their own and never wait for the writer. A call returns after its
// commit, so a caller always reads its own writes.
//
// In memory are the number of records in each state, the number of claimable
// jobs of each model and address, the number of queued jobs of each tenant, the jobs
// that are held, and the latest rows and events, bounded in number. Everything else is
// in the file, so memory does not grow with the number of jobs.
//
// The writer also does the maintenance: it makes delayed jobs claimable when their
// time has come, fails jobs that waited too long, and removes expired records and
// events.
package sqlite

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// Defaults of the fields of Config.
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
	// Policy limits which jobs may be held at the same time.
	Policy ledger.Policy
	// Now is the clock that records' times are taken from; nil stands for
	// time.Now.
	Now func() time.Time
	// Log gets the errors that no caller is answered; nil discards them.
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

// Ledger is a ledger.Ledger in a file: its parts, and the changes of jobs.
type Ledger struct {
	*database
	*records
	*eventLog
	*uploads
	*deliveries

	leases leases

	closing  sync.Once
	closeErr error
}

var _ ledger.Ledger = (*Ledger)(nil)

// Close waits for running calls, ends leases and closes the file. A call that
// comes later answers an error of class errdefs.ErrUnavailable. Closing twice is
// closing once.
func (l *Ledger) Close() error {
	l.closing.Do(func() {
		l.endCalls()
		l.leases.close()
		l.writer.stop()
		l.recent.close()
		if err := l.database.close(); err != nil {
			l.closeErr = fmt.Errorf("close ledger %s: %w", l.path, err)
		}
	})
	return l.closeErr
}
