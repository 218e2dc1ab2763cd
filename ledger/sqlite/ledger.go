// Package sqlite keeps a ledger in one SQLite file, for one daemon.
//
// The file is in WAL mode with synchronous=FULL: a commit is one write and one
// fsync of the log. All changes go through one goroutine, the writer, which
// takes whatever calls are waiting and makes them durable in a single commit,
// so that many callers share one fsync and a lone caller waits for nobody.
// Reads have connections of their own and never wait for the writer; since a
// call returns only after its commit, a caller always reads what it wrote.
//
// What is known without looking stays in memory: how many records are in each
// state, and the latest events for watchers. Everything else is in the file,
// so memory does not grow with the number of jobs.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// What a zero field of Config stands for.
const (
	DefaultKeep     = 30 * 24 * time.Hour
	DefaultKeepJobs = 100_000
	DefaultEvents   = 8192
)

// Config says where a ledger is and what it keeps.
type Config struct {
	// Path is the file. SQLite keeps its log in Path-wal and Path-shm, and
	// Path.lock keeps other processes out.
	Path string
	// Keep and KeepJobs bound the history: a record expires when it ended longer
	// ago than Keep, or when more than KeepJobs ended after it. Zero stands for
	// DefaultKeep and DefaultKeepJobs.
	Keep     time.Duration
	KeepJobs int
	// MaxOvertakes is how often a job may be overtaken by younger ones of its
	// priority. Zero keeps strictly to age.
	MaxOvertakes int
	// Events is how many of the latest events are kept for watchers that are
	// behind; zero stands for DefaultEvents.
	Events int
	// Log gets what no caller can be told; nil discards it.
	Log *slog.Logger
}

func (c Config) withDefaults() (Config, error) {
	if c.Path == "" {
		return c, errors.New("no path is given")
	}
	if c.Keep < 0 || c.KeepJobs < 0 || c.MaxOvertakes < 0 || c.Events < 0 {
		return c, errors.New("a negative bound is given")
	}
	path, err := filepath.Abs(c.Path)
	if err != nil {
		return c, err
	}
	c.Path = path
	if c.Keep == 0 {
		c.Keep = DefaultKeep
	}
	if c.KeepJobs == 0 {
		c.KeepJobs = DefaultKeepJobs
	}
	if c.Events == 0 {
		c.Events = DefaultEvents
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// Ledger is a ledger.Ledger in a file.
type Ledger struct {
	path   string
	lock   *os.File
	db     *sql.DB // the writer's one connection
	reads  *sql.DB
	read   *readStatements
	feed   *feed
	tally  *tally
	writer *writer

	// calls are those running; none begins once closed is set.
	mu     sync.Mutex
	closed bool
	calls  sync.WaitGroup

	closing  sync.Once
	closeErr error
}

var _ ledger.Ledger = (*Ledger)(nil)

// enter begins a call, which ends by l.calls.Done.
func (l *Ledger) enter() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errClosed
	}
	l.calls.Add(1)
	return nil
}

// Close waits for running calls, ends watches and closes the file. A call that
// comes later answers an error of class errdefs.ErrUnavailable. Closing twice
// is closing once.
func (l *Ledger) Close() error {
	l.closing.Do(func() {
		l.mu.Lock()
		l.closed = true
		l.mu.Unlock()
		l.calls.Wait()
		l.writer.stop()
		l.feed.close()
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

// tally is how many records are in each state, and how many of each kind wait.
type tally struct {
	mu      sync.Mutex
	counts  ledger.Counts
	waiting map[kind]int
}

func (t *tally) add(changes ledger.Counts, waiting map[kind]int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for state, n := range changes {
		t.counts[state] += n
	}
	for k, n := range waiting {
		if t.waiting[k] += n; t.waiting[k] == 0 {
			delete(t.waiting, k)
		}
	}
}

func (t *tally) snapshot() ledger.Counts {
	t.mu.Lock()
	defer t.mu.Unlock()
	counts := make(ledger.Counts, len(t.counts))
	for state, n := range t.counts {
		counts[state] = n
	}
	return counts
}

// ended is how many records are in a final state.
func (t *tally) ended() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for state, count := range t.counts {
		if state.Final() {
			n += count
		}
	}
	return n
}

// Count implements ledger.Ledger. It has every state, also those of no record.
func (l *Ledger) Count(ctx context.Context) (ledger.Counts, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("count jobs: %w", err)
	}
	if err := l.enter(); err != nil {
		return nil, fmt.Errorf("count jobs: %w", err)
	}
	defer l.calls.Done()
	return l.tally.snapshot(), nil
}

// states are all a record can be in.
func states() []job.State {
	return []job.State{job.Queued, job.Processing, job.Done, job.Failed, job.Cancelled}
}
