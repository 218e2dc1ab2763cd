package sqlite

import "time"

// # Age
//
// What is kept for a bounded time is not aged by the wall clock: one that jumps
// forward by a year would delete the history. The ledger has an age of its own,
// in microseconds. It grows by the monotonic clock while the ledger is open, and
// by the time that it was closed as far as the wall clock tells, but by no more
// than maxClosed each time. A new ledger's age is the wall clock's time, so that
// the two ordinarily agree.

// maxClosed is how much the ledger ages at most while it is closed.
const maxClosed = 24 * time.Hour

// clockTolerance is by how much the clock may be behind the last change in the ledger
// without a warning.
const clockTolerance = time.Minute

// How often the age is written to the file: beside other changes, and for its
// own sake. After a crash the time since counts as closed.
const (
	saveAgeBeside = time.Minute
	saveAgeAlone  = time.Hour
)

// ageClock tells the ledger's age.
type ageClock struct {
	base   int64     // the age at opened
	opened time.Time // by the monotonic clock
}

// newAgeClock goes on from the age that was saved at the given time of the wall
// clock, both in microseconds; 0 for a new ledger.
func newAgeClock(saved, wall int64, now time.Time) ageClock {
	c := ageClock{base: now.UnixMicro(), opened: time.Now()}
	if wall != 0 {
		c.base = saved + min(max(now.UnixMicro()-wall, 0), maxClosed.Microseconds())
	}
	return c
}

func (c ageClock) now() int64 { return c.base + time.Since(c.opened).Microseconds() }
