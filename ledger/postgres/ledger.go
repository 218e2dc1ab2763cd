package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// What a zero field of Config stands for.
const (
	DefaultKeep        = 30 * 24 * time.Hour
	DefaultKeepJobs    = 100_000
	DefaultEventKeep   = 7 * 24 * time.Hour
	DefaultEventNumber = 200_000
	DefaultLease       = 12 * time.Second
	DefaultPoll        = 2 * time.Second
	DefaultRetryFor    = 5 * time.Second
)

// Config says where a ledger is and what it keeps.
type Config struct {
	// URL is that of the database, as pgx reads it: postgres://USER@HOST/DATABASE,
	// with sslmode, sslrootcert, passfile, several hosts, or host=/DIRECTORY for a
	// socket. Beside pgx's own settings it takes those of pgxpool (pool_max_conns).
	URL string
	// DirectURL is that of the server itself, where URL is a pooler's. LISTEN and
	// the migrations use it. Empty stands for URL.
	DirectURL string
	// Password is asked for the password of each new connection; nil takes what the URL,
	// its passfile or the environment say.
	Password func() (string, error)
	// Alone refuses to join while another node's lease has not ended.
	Alone bool
	// Lease is how long a node's lease lasts after it was renewed last. The node
	// takes it for lost a quarter of that before others do. Zero stands for
	// DefaultLease.
	Lease time.Duration
	// Poll is how often the database is asked for what no doorbell told, and leases are
	// renewed at most. Zero stands for DefaultPoll, or an eighth of Lease where that is
	// less.
	Poll time.Duration
	// RetryFor is for how long a call tries again while the database is away. Zero
	// stands for DefaultRetryFor.
	RetryFor time.Duration

	// Keep and KeepJobs bound the history: a record expires when it ended longer
	// ago than Keep, or when more than KeepJobs ended after it. Zero stands for
	// DefaultKeep and DefaultKeepJobs. Of each job the last 50 attempts of each of
	// its last 10 runs are kept. EventKeep and EventNumber bound the events in the
	// same way.
	Keep        time.Duration
	KeepJobs    int
	EventKeep   time.Duration
	EventNumber int
	// Retention says how long the files of a job that ended are kept; 0 is for
	// ever, as is nil. It may be called from any goroutine, and again for a change
	// that is tried again.
	Retention func(job.Record) time.Duration
	// Policy bounds what is held.
	Policy ledger.Policy
	// Log gets what no caller can be told; nil discards it.
	Log *slog.Logger
}

func (c Config) withDefaults() (Config, error) {
	if c.URL == "" {
		return c, errors.New("no URL is given")
	}
	if c.Keep < 0 || c.KeepJobs < 0 || c.EventKeep < 0 || c.EventNumber < 0 || c.Lease < 0 || c.Poll < 0 || c.RetryFor < 0 {
		return c, errors.New("a negative bound is given")
	}
	c.DirectURL = cmp.Or(c.DirectURL, c.URL)
	c.Lease, c.RetryFor = cmp.Or(c.Lease, DefaultLease), cmp.Or(c.RetryFor, DefaultRetryFor)
	c.Poll = cmp.Or(c.Poll, min(DefaultPoll, c.renewEvery()))
	c.Keep, c.KeepJobs = cmp.Or(c.Keep, DefaultKeep), cmp.Or(c.KeepJobs, DefaultKeepJobs)
	c.EventKeep, c.EventNumber = cmp.Or(c.EventKeep, DefaultEventKeep), cmp.Or(c.EventNumber, DefaultEventNumber)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// Ledger is a ledger.Ledger in a PostgreSQL database: its parts, and the changes of jobs.
type Ledger struct {
	cfg Config
	*database
	*records
	*eventLog
	*uploads
	*deliveries

	bell        *bell
	leases      leases
	maintenance *maintenance
	claims      claims
	clock       clock

	// claiming holds a value while this ledger makes a claim under limits: those of one
	// node wait for one another here, and not on their connections.
	claiming chan struct{}

	closing sync.Once
}

var (
	_ ledger.Ledger    = (*Ledger)(nil)
	_ ledger.Retention = (*Ledger)(nil)
	_ ledger.Restorer  = (*Ledger)(nil)
)

// Close waits for running calls, ends leases and closes the connections. A call that
// comes later answers an error of class errdefs.ErrUnavailable. Closing twice is
// closing once.
func (l *Ledger) Close() error {
	l.closing.Do(func() {
		l.endCalls()
		l.maintenance.stop()
		l.leases.close()
		l.bell.close()
		l.closePools()
	})
	return nil
}

// Ping implements ledger.Ledger: it changes a row, which needs a server that can
// make changes durable.
func (l *Ledger) Ping(ctx context.Context) error {
	return l.call(ctx, "write to the ledger", func(ctx context.Context) error {
		_, err := l.exec(ctx, queryPing, nil)
		return err
	})
}

// retention is Config.Retention, which may be nil.
func (l *Ledger) retention(rec job.Record) time.Duration {
	if l.cfg.Retention == nil {
		return 0
	}
	return l.cfg.Retention(rec)
}

// addressOf is where the URL's server is, for messages.
func addressOf(cfg *pgxpool.Config) string {
	c := cfg.ConnConfig
	if len(c.Host) > 0 && c.Host[0] == '/' {
		return fmt.Sprintf("%s (socket in %s)", c.Database, c.Host)
	}
	return fmt.Sprintf("%s:%d/%s", c.Host, c.Port, c.Database)
}
