package sqlite

import (
	"math"
	"time"

	"github.com/iterait/shepherd/job"
)

// How much of the history one transaction removes at most: little together with callers'
// changes, more when there are none. Either way the transaction takes milliseconds,
// however long the history is.
const (
	expireWithChanges = 8  // records
	expireIdle        = 64 // records
	pruneWithChanges  = 64 // events
	pruneIdle         = 256
)

// sweepEvery is how often the writer looks for records and events that are too old.
func (w *writer) sweepEvery() time.Duration {
	return min(max(min(w.cfg.Keep, w.cfg.EventKeep)/64, time.Second), 10*time.Minute)
}

// expire removes some of the records that ended too long ago or exceed the number that
// is kept, and their attempts. Every transaction that ends jobs enforces the number;
// sweeps enforce the age.
func (t *tx) expire(idle bool) error {
	if t.ended == 0 && !t.w.maintenance.sweeping {
		return nil
	}
	budget := 2*t.ended + expireWithChanges
	if idle {
		budget = expireIdle
	}
	excess := t.w.tally.expirable() - t.retained - t.w.cfg.KeepJobs
	for state, n := range t.states {
		if state.Final() {
			excess += n
		}
	}
	if excess > 0 {
		n, err := t.expireOldest(math.MaxInt64, min(excess, budget))
		if err != nil {
			return err
		}
		budget -= n
	}
	if t.w.maintenance.sweeping && budget > 0 {
		n, err := t.expireOldest(t.age-t.w.cfg.Keep.Microseconds(), budget)
		if err != nil {
			return err
		}
		budget -= n
	}
	t.sweepMore = t.sweepMore || budget == 0
	return nil
}

// expireOldest removes up to limit records that ended before the ledger had the given
// age, and returns their number.
func (t *tx) expireOldest(before int64, limit int) (int, error) {
	var ids []string
	err := t.query(func(scan func(...any) error) error {
		var id string
		var state job.State
		if err := scan(&id, &state); err != nil {
			return err
		}
		t.states[state]--
		t.rows[job.ID(id)] = nil
		ids = append(ids, id)
		return nil
	}, t.stmts.expire, before, limit)
	if err != nil {
		return 0, err
	}
	for _, id := range ids {
		if _, err := t.exec(t.stmts.removeAttempts, id); err != nil {
			return 0, err
		}
	}
	return len(ids), nil
}

// pruneEvents removes some of the events that exceed the number that is kept, once there
// are enough of them for one statement, and in sweeps those that are too old.
func (t *tx) pruneEvents(idle bool) error {
	excess := t.w.storedEvents + len(t.events) - t.w.cfg.EventNumber
	if excess < min(pruneWithChanges, 1+t.w.cfg.EventNumber/8) && !t.w.maintenance.sweeping {
		return nil
	}
	budget := 2*len(t.events) + pruneWithChanges
	if idle {
		budget = pruneIdle
	}
	tooOld := t.age - t.w.cfg.EventKeep.Microseconds()
	var n int
	var last int64
	stopped := false
	err := t.query(func(scan func(...any) error) error {
		var id, age int64
		if err := scan(&id, &age); err != nil {
			return err
		}
		if stopped = stopped || n >= excess && age >= tooOld; !stopped {
			n++
			last = id
		}
		return nil
	}, t.stmts.oldEvents, budget)
	if err != nil || n == 0 {
		return err
	}
	if _, err := t.exec(t.stmts.pruneEvents, last); err != nil {
		return err
	}
	t.removed, t.numbers.pruned = n, last
	t.sweepMore = t.sweepMore || n == budget
	return nil
}
