package runtime

import "time"

// Backoff computes how long to wait before a runner that ended by itself is started again.
// It reads no clock and starts no timer.
//
// The first start after a runner that stayed up is immediate; each quick failure
// in a row doubles the wait, from First to Longest.
type Backoff struct {
	First   time.Duration // the wait after the second quick failure in a row
	Longest time.Duration
	Steady  time.Duration // a runner that was up at least this long did not fail quickly

	row int
}

// DefaultBackoff waits 250 ms to 30 s; a runner that was up for a minute did not fail
// quickly.
func DefaultBackoff() Backoff {
	return Backoff{First: 250 * time.Millisecond, Longest: 30 * time.Second, Steady: time.Minute}
}

// Failed records that a runner has ended after it was up for the given time, and returns
// how long to wait before the next start.
func (b *Backoff) Failed(up time.Duration) time.Duration {
	if up >= b.Steady {
		b.row = 0
	}
	b.row++
	if b.row == 1 {
		return 0
	}
	wait := b.First
	for range b.row - 2 {
		if wait >= b.Longest/2 {
			return b.Longest
		}
		wait *= 2
	}
	return min(wait, b.Longest)
}

// InARow returns the number of consecutive failures, counted from the last steady runner's.
func (b *Backoff) InARow() int { return b.row }

// Reset forgets the failures, for example because another model is loaded.
func (b *Backoff) Reset() { b.row = 0 }
