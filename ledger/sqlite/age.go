package sqlite

import "time"

// # Age
//
// Records and events do not expire by the wall clock: a clock that jumps forward by a
// year would delete the history. The ledger has an age of its own, in microseconds. It
// grows by the monotonic clock while the ledger is open. When the ledger is opened, it
// grows by the wall clock's time since it was closed, but by no more than maxClosed. A
// new ledger's age is the wall clock's time, so that the two normally agree.

// maxClosed is how much the ledger ages at most while it is closed.
const maxClosed = 24 * time.Hour

// clockTolerance is how far the clock may be behind the last change in the ledger without
// a warning.
const clockTolerance = time.Minute

// How often the age is written to the file: together with other changes, and where there
// are none. After a crash the time since the last write counts as closed.
const (
	saveAgeWithChanges = time.Minute
	saveAgeIdle        = time.Hour
)

// ageClock tells the ledger's age.
type ageClock struct {
	base   int64     // the age at opened
	opened time.Time // by the monotonic clock
}

// newAgeClock continues from the age that was saved at the given time of the wall clock,
// both in microseconds; 0 for a new ledger.
func newAgeClock(saved, wall int64, now time.Time) ageClock {
	c := ageClock{base: now.UnixMicro(), opened: time.Now()}
	if wall != 0 {
		c.base = saved + min(max(now.UnixMicro()-wall, 0), maxClosed.Microseconds())
	}
	return c
}

func (c ageClock) now() int64 { return c.base + time.Since(c.opened).Microseconds() }
