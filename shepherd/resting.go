package shepherd

import (
	"context"
	"sync"
	"time"
)

// How long a sheep rests after its first fault, and at most.
const (
	firstRest   = 250 * time.Millisecond
	longestRest = 30 * time.Second
)

// rests keeps a sheep from claiming after it could not prepare or start a job for
// a reason that is not the job's, for longer after each such fault in a row.
type rests struct {
	mu     sync.Mutex
	row    int // faults in a row
	until  time.Time
	reason string
	ended  chan struct{} // closed when the rest is cut short
}

// fault notes a fault and returns how long the sheep rests.
func (r *rests) fault(reason string, now time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Before(r.until) { // of a job that was claimed before the last fault
		r.reason = reason
		return r.until.Sub(now)
	}
	pause := firstRest
	for range r.row {
		if pause = 2 * pause; pause >= longestRest {
			pause = longestRest
			break
		}
	}
	r.row++
	r.until, r.reason = now.Add(pause), reason
	r.ended = make(chan struct{})
	return pause
}

// well notes that the sheep did a job: the next fault is the first.
func (r *rests) well() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.row = 0
}

// wake ends the rest at once.
func (r *rests) wake() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.row = 0
	if r.ended != nil {
		close(r.ended)
		r.ended = nil
	}
	r.until, r.reason = time.Time{}, ""
}

// left is how long the sheep still rests, and why; 0 where it does not.
func (r *rests) left(now time.Time) (time.Duration, string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !now.Before(r.until) {
		return 0, ""
	}
	return r.until.Sub(now), r.reason
}

// wait returns when the sheep does not rest, or with ctx's error.
func (r *rests) wait(ctx context.Context) error {
	for {
		left, _ := r.left(time.Now())
		if left == 0 {
			return ctx.Err()
		}
		r.mu.Lock()
		ended := r.ended
		r.mu.Unlock()
		timer := time.NewTimer(left)
		select {
		case <-timer.C:
		case <-ended:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}
