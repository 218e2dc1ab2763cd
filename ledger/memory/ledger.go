// Package memory keeps a ledger in this process's memory, for simulations. It
// keeps every promise of package ledger but one: what it keeps ends with the
// process.
//
// A Ledger has no goroutine but a timer's, and holds its lock for no call to
// anyone, so it may be used in a bubble of testing/synctest.
package memory

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/lifecycle"
)

// What a zero field of Config stands for.
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
	// Policy bounds what is held.
	Policy ledger.Policy
}

// Ledger is a ledger.Ledger in memory.
type Ledger struct {
	*records
	closed bool
	leases map[string]*lease
	timer  *time.Timer // nil where no job waits for a time
	armed  time.Time   // when it fires, by the process's clock
}

// records are what a ledger keeps; those that are opened one after another share
// them.
type records struct {
	cfg Config

	mu       sync.Mutex
	began    time.Time // of which the age is counted
	age      int64     // the last that was given out
	seq      int64
	token    ledger.Token
	jobs     []*record // by Seq
	expireAt int       // the number of ended records at which expire runs next
	index    index
	attempts map[job.ID][]job.Attempt
	events   eventLog
	used     map[string]lifecycle.Account // by tenant; see Config.Policy
	webhooks webhooks
	uploads  map[job.ID]*upload
}

var _ ledger.Ledger = (*Ledger)(nil)

var errClosed = fmt.Errorf("the ledger is closed: %w", errdefs.ErrUnavailable)

// New makes an empty ledger.
func New(cfg Config) *Ledger {
	cfg.KeepJobs, cfg.EventNumber = cmp.Or(cfg.KeepJobs, DefaultKeepJobs), cmp.Or(cfg.EventNumber, DefaultEventNumber)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return open(&records{
		cfg: cfg, began: time.Now(), attempts: make(map[job.ID][]job.Attempt),
		events:   newEventLog(cfg.EventNumber),
		index:    newIndex(),
		used:     make(map[string]lifecycle.Account),
		webhooks: webhooks{ofRuns: make(map[ledger.JobRun]*runWebhook)},
		uploads:  make(map[job.ID]*upload),
	})
}

func open(r *records) *Ledger {
	l := &Ledger{records: r, leases: make(map[string]*lease)}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.runTimers()
	return l
}

// call runs do as a call of the ledger: alone, after what has become due by itself.
func (l *Ledger) call(ctx context.Context, doing string, do func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := ctx.Err()
	if err == nil && l.closed {
		err = errClosed
	}
	if err == nil {
		l.runTimers()
		err = do()
		l.runTimers()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	return nil
}

// change is call for a change of one record, which it returns as it is then.
func (l *Ledger) change(ctx context.Context, doing string, do func(m lifecycle.Moment) (*record, error)) (job.Record, error) {
	var changed job.Record
	err := l.call(ctx, doing, func() error {
		r, err := do(l.moment())
		if err == nil {
			changed = r.copy()
		}
		return err
	})
	return changed, err
}

// moment is the time as records keep it, and the ledger's age by the process's clock, in
// which no two moments are the same.
func (l *Ledger) moment() lifecycle.Moment {
	const first = 1_000_000 // after any that stands for never, or at once
	l.age = max(l.age+1, first+time.Since(l.began).Microseconds())
	return lifecycle.Moment{Now: lifecycle.KeptTime(l.cfg.Now()), Age: l.age}
}

// copy is the record as a caller gets it: nothing of it changes any more.
func (r *record) copy() job.Record {
	rec := r.Record
	rec.Limits = rec.Limits.Clone()
	rec.Warnings = slices.Clone(rec.Warnings)
	return rec
}

// find is the record of a job; nil for none.
func (l *Ledger) find(id job.ID) *record { return l.index.byID[id] }

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

// lease is a node's; it is lost to a later one of the same node, or with the
// ledger.
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
