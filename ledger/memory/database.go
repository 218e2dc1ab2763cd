package memory

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/lifecycle"
)

// contents are what a ledger keeps. Ledgers that are opened one after another share them.
type contents struct {
	cfg Config

	mu       sync.Mutex
	clock    ageClock
	last     numbers
	jobs     []*record // by Seq
	index    index
	attempts map[job.ID][]job.Attempt
	expireAt int                          // the number of ended records at which expire runs next
	used     map[string]lifecycle.Account // by tenant; see Config.Policy
	events   eventBuffer
	webhooks webhooks
	uploads  map[job.ID]*upload
}

// numbers are the last that were given out.
type numbers struct {
	seq   int64
	token ledger.Token
}

// ageClock tells the ledger's age, in microseconds since it was made by the process's
// clock.
type ageClock struct {
	began time.Time
	age   int64 // the last one that was told
}

// now returns the age, which is larger than the last one.
func (c *ageClock) now() int64 {
	const first = 1_000_000 // larger than the ages with a meaning: 0 for never, 1 for at once
	c.age = max(c.age+1, first+time.Since(c.began).Microseconds())
	return c.age
}

// database is the open contents: calls run one at a time, with the lock held.
type database struct {
	*contents
	closed bool
	timer  *time.Timer // calls runTimers; nil where no job waits for a time
	armed  time.Time   // when it fires, by the process's clock
}

// record is a job's row and its place in the index.
type record struct {
	lifecycle.Row
	at indexed
}

// call runs do as a call of the ledger: with the lock held, and with timers run before and
// after it.
func (d *database) call(ctx context.Context, doing string, do func() error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	err := ctx.Err()
	if err == nil && d.closed {
		err = errClosed
	}
	if err == nil {
		d.runTimers()
		err = do()
		d.runTimers()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	return nil
}

// change is call for a change of one record, of which it returns a copy.
func (d *database) change(ctx context.Context, doing string, do func(m lifecycle.Moment) (*record, error)) (job.Record, error) {
	var changed job.Record
	err := d.call(ctx, doing, func() error {
		r, err := do(d.moment())
		if err == nil {
			changed = r.copy()
		}
		return err
	})
	return changed, err
}

// moment is the time of a change. No two moments have the same age.
func (d *database) moment() lifecycle.Moment {
	return lifecycle.Moment{Now: lifecycle.KeptTime(d.cfg.Now()), Age: d.clock.now()}
}

// copy returns a copy for callers, which no later change affects.
func (r *record) copy() job.Record {
	rec := r.Record
	rec.Limits = rec.Limits.Clone()
	rec.Warnings = slices.Clone(rec.Warnings)
	return rec
}

// find returns the record of a job; nil for none.
func (d *database) find(id job.ID) *record { return d.index.byID[id] }

// applied keeps the attempt and the event of a change, updates the index, and unblocks
// jobs and expires records where the job has ended.
func (d *database) applied(r *record, c lifecycle.Change) {
	if a := c.Attempt; a != nil {
		kept := slices.DeleteFunc(d.attempts[r.ID], func(old job.Attempt) bool {
			return old.Run <= r.Run-lifecycle.KeepRuns || old.Run == r.Run && old.Number <= a.Number-lifecycle.KeepAttempts
		})
		d.attempts[r.ID] = append(kept, *a)
		d.charge(r.Tenant, *a)
	}
	d.update(r)
	if c.Event != nil {
		d.events.add(*c.Event)
	}
	if r.State.Final() {
		d.unblock(r.ID)
		d.expire()
	}
}

// unblock unblocks or fails the jobs that are after one that ended.
func (d *database) unblock(ended job.ID) {
	for _, r := range slices.Clone(d.index.after[ended]) {
		if r.Blocked {
			d.unblockOne(r)
		}
	}
}

// unblockOne unblocks or fails a job if all jobs that it is after have ended, or one has
// failed.
func (d *database) unblockOne(r *record) {
	if change := r.Unblock(d.stateOf, d.cfg.Retention, d.moment()); change.Made {
		d.applied(r, change)
	}
}

// stateOf returns the state of a job, empty for an unknown job.
func (d *database) stateOf(id job.ID) job.State {
	if r := d.find(id); r != nil {
		return r.State
	}
	return ""
}

// needed reports whether a job that has not ended is after this one.
func (d *database) needed(id job.ID) bool {
	if slices.ContainsFunc(d.index.after[id], func(r *record) bool { return !r.State.Final() }) {
		return true
	}
	delete(d.index.after, id)
	return false
}

// apply changes the job's record by do, which gets nil for an unknown job.
func (d *database) apply(ctx context.Context, doing string, id job.ID, do func(r *lifecycle.Row, m lifecycle.Moment) (lifecycle.Change, error)) (job.Record, error) {
	return d.change(ctx, doing, func(m lifecycle.Moment) (*record, error) {
		r := d.find(id)
		if r == nil {
			_, err := do(nil, m)
			return new(record), err
		}
		change, err := do(&r.Row, m)
		switch {
		case err == nil && change.Made:
			d.applied(r, change)
		case err == nil: // fields without an event may have changed
			d.update(r)
		}
		return r, err
	})
}

// drop removes a record; its attempts stay.
func (d *database) drop(old *record) {
	if i, ok := slices.BinarySearchFunc(d.jobs, old.Seq, func(r *record, seq int64) int { return cmp.Compare(r.Seq, seq) }); ok {
		d.jobs = slices.Delete(d.jobs, i, i+1)
	}
	d.forget(old)
}

// forget removes a record from everything but the list of all jobs.
func (d *database) forget(old *record) {
	d.leave(old)
	d.webhooks.removed(old.ID)
}

// expire drops the records that ended first, where there are more than are kept. Records
// whose files are to be removed stay. It reads all records, so it runs only when an eighth
// more have ended.
func (d *database) expire() {
	ended := func() int {
		return d.index.counts[job.Done] + d.index.counts[job.Failed] + d.index.counts[job.Cancelled]
	}
	if n := ended(); n <= d.cfg.KeepJobs || n < d.expireAt {
		return
	}
	defer func() { d.expireAt = ended() + d.cfg.KeepJobs/8 }()
	var expirable []*record
	for _, r := range d.jobs {
		if r.State.Final() && r.RemoveAge == 0 && !d.needed(r.ID) {
			expirable = append(expirable, r)
		}
	}
	slices.SortStableFunc(expirable, func(a, b *record) int { return cmp.Compare(a.EndedAge, b.EndedAge) })
	gone := make(map[*record]bool)
	for _, oldest := range expirable[:max(len(expirable)-d.cfg.KeepJobs, 0)] {
		gone[oldest] = true
		d.forget(oldest)
		delete(d.attempts, oldest.ID)
	}
	if len(gone) > 0 {
		d.jobs = slices.DeleteFunc(d.jobs, func(r *record) bool { return gone[r] })
	}
}
