package runtime

import "time"

// Backoff decides how long to wait before a runner that ended by itself is
// started again. It is a value: it reads no clock and starts no timer.
//
// The first start after a runner that stayed up is immediate; each quick failure
// in a row doubles the wait, from First to Longest.
type Backoff struct {
	First   time.Duration // the wait after the second quick failure in a row
	Longest time.Duration
	Steady  time.Duration // a runner that was up this long did not fail quickly

	row int
}

// DefaultBackoff waits 250 ms to 30 s; a runner that was up for a minute is no
// crash loop.
func DefaultBackoff() Backoff {
	return Backoff{First: 250 * time.Millisecond, Longest: 30 * time.Second, Steady: time.Minute}
}

// Failed notes that a runner ended after having been up, and returns how long to
// wait before the next start.
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

// InARow is how many quick failures there were since the last steady runner.
func (b *Backoff) InARow() int { return b.row }

// Reset forgets the failures, as for another model.
func (b *Backoff) Reset() { b.row = 0 }
