package sqlite

import (
	"math"
	"time"

	"github.com/iterait/shepherd/job"
)

// How many records one transaction expires at most: few beside callers'
// changes, more when there are none. Either way the writer is free again
// within milliseconds, however long the history is.
const (
	expireBeside = 8
	expireAlone  = 64
)

// sweepEvery is how often the writer looks for records that ended too long ago.
func (w *writer) sweepEvery() time.Duration {
	return min(max(w.cfg.Keep/16, time.Second), time.Minute)
}

// expire removes some of the records that ended too long ago or that are too
// many. The number is kept to by every transaction that ends jobs, the age by
// sweeps.
func (t *tx) expire(alone bool) error {
	if t.ended == 0 && !t.w.sweeping {
		return nil
	}
	budget := 2*t.ended + expireBeside
	if alone {
		budget = expireAlone
	}
	excess := t.w.tally.ended() - t.w.cfg.KeepJobs
	for state, n := range t.changes {
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
	if t.w.sweeping && budget > 0 {
		n, err := t.expireOldest(fromTime(t.now.Add(-t.w.cfg.Keep)), budget)
		if err != nil {
			return err
		}
		budget -= n
	}
	t.sweepOn = budget == 0
	return nil
}

// expireOldest removes up to limit records that ended before the given time
// and says how many there were.
func (t *tx) expireOldest(before int64, limit int) (n int, err error) {
	rows, err := t.query(t.do.expire, before, limit)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	for rows.Next() {
		var state job.State
		if err := rows.Scan(&state); err != nil {
			return n, err
		}
		t.changes[state]--
		t.wrote = true
		n++
	}
	return n, rows.Err()
}
