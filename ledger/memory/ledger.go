// Package memory keeps a ledger in the memory of the process, for simulations. It fulfils
// the contract of package ledger, except that its records end with the process.
//
// A Ledger has no goroutine but a timer's, and never waits while it holds its lock, so it
// may be used in a bubble of testing/synctest.
package memory

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/lifecycle"
)

// Defaults of the fields of Config.
const (
	DefaultKeepJobs    = 100_000
	DefaultEventNumber = 200_000
)

// Config says what a ledger keeps.
type Config struct {
	// KeepJobs is how many ended records are kept, or an eighth more, and EventNumber how
	// many events. Zero stands for DefaultKeepJobs and DefaultEventNumber.
	KeepJobs    int
	EventNumber int
	// Now is the clock that records' times are taken from; nil stands for
	// time.Now.
	Now func() time.Time
	// Retention is how long the files of a run that ends are kept, 0 for ever; nil
	// keeps all.
	Retention func(job.Record) time.Duration
	// Policy limits which jobs may be held at the same time.
	Policy ledger.Policy
}

// Ledger is a ledger.Ledger in memory: its parts, and the changes of jobs.
type Ledger struct {
	*database
	*records
	*eventLog
	*uploads
	*deliveries

	leases map[string]*lease
}

var _ ledger.Ledger = (*Ledger)(nil)

var errClosed = fmt.Errorf("the ledger is closed: %w", errdefs.ErrUnavailable)

// New makes an empty ledger.
func New(cfg Config) *Ledger {
	cfg.KeepJobs, cfg.EventNumber = cmp.Or(cfg.KeepJobs, DefaultKeepJobs), cmp.Or(cfg.EventNumber, DefaultEventNumber)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return open(&contents{
		cfg: cfg, clock: ageClock{began: time.Now()}, attempts: make(map[job.ID][]job.Attempt),
		events:   newEventBuffer(cfg.EventNumber),
		index:    newIndex(),
		used:     make(map[string]lifecycle.Account),
		webhooks: webhooks{ofRuns: make(map[ledger.JobRun]*runWebhook)},
		uploads:  make(map[job.ID]*upload),
	})
}

// open opens a ledger with the contents.
func open(c *contents) *Ledger {
	d := &database{contents: c}
	l := &Ledger{
		database: d, records: &records{d}, eventLog: &eventLog{d}, uploads: &uploads{d}, deliveries: &deliveries{d},
		leases: make(map[string]*lease),
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.runTimers()
	return l
}

// Close implements ledger.Ledger.
func (l *Ledger) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	for _, held := range l.leases {
		close(held.lost)
	}
	if l.timer != nil {
		l.timer.Stop()
	}
	l.events.wake()
	return nil
}

// lease is a node's. It is lost when the same node joins again or the ledger is closed.
type lease struct {
	ledger *Ledger
	node   string
	lost   chan struct{}
}

// Join implements ledger.Ledger.
func (l *Ledger) Join(ctx context.Context, node string) (ledger.Lease, error) {
	joined := &lease{ledger: l, node: node, lost: make(chan struct{})}
	err := l.call(ctx, "join the ledger as node "+node, func() error {
		if before := l.leases[node]; before != nil {
			close(before.lost)
		}
		l.leases[node] = joined
		return nil
	})
	if err != nil {
		return nil, err
	}
	return joined, nil
}

// Lost implements ledger.Lease.
func (l *lease) Lost() <-chan struct{} { return l.lost }

// Release implements ledger.Lease.
func (l *lease) Release(context.Context) error {
	l.ledger.mu.Lock()
	defer l.ledger.mu.Unlock()
	if l.ledger.leases[l.node] == l {
		delete(l.ledger.leases, l.node)
	}
	return nil
}

// Ping implements ledger.Ledger.
func (l *Ledger) Ping(ctx context.Context) error {
	return l.call(ctx, "write to the ledger", func() error { return nil })
}

// Changed implements ledger.Ledger.
func (l *Ledger) Changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		closed := make(chan struct{})
		close(closed)
		return closed
	}
	return l.events.changed
}
