package sqlite

import "time"

// How long the writer waits before it tries maintenance again after it failed: the first
// time, and at most.
const (
	minRetry = time.Second
	maxRetry = time.Minute
)

// maintenance is what the writer does without a caller, and when: timers, sweeps and
// reverts. Only the writer's goroutine uses it.
type maintenance struct {
	nextTimer time.Time    // no timer is due before; zero for none
	sweeping  bool         // expired records and events may be left
	reverts   []*operation // of abandoned changes
	retryAt   time.Time    // nothing is tried before; zero unless maintenance failed
	retry     time.Duration
}

// pending reports whether there is maintenance that does not wait for a timer.
func (m *maintenance) pending() bool { return m.sweeping || len(m.reverts) > 0 }

// allowed reports whether maintenance has not failed, or it is time to try it again.
func (m *maintenance) allowed() bool { return !time.Now().Before(m.retryAt) }

// idleFor is the time until there is maintenance to do.
func (m *maintenance) idleFor(now time.Time) time.Duration {
	const never = time.Hour
	idle := never
	switch {
	case m.pending():
		idle = 0
	case !m.nextTimer.IsZero():
		idle = min(max(m.nextTimer.Sub(now), 0), never)
	}
	return max(idle, time.Until(m.retryAt))
}

// postpone sets when failed maintenance is tried again, and returns in how long: twice as
// long as the last time.
func (m *maintenance) postpone() time.Duration {
	m.retry = min(max(2*m.retry, minRetry), maxRetry)
	m.retryAt = time.Now().Add(m.retry)
	return m.retry
}

// done says that maintenance succeeded, and whether there is more to sweep.
func (m *maintenance) done(more bool) {
	m.sweeping, m.retryAt, m.retry = more, time.Time{}, 0
}
