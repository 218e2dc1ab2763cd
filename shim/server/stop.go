package server

import (
	"sync"
	"time"
)

// stopRequest is a request to stop the runner.
type stopRequest struct {
	grace time.Duration // between TERM and KILL
	why   string        // the cause, if it is not a daemon's request
	fault bool          // the runner is at fault
	lost  bool          // the runner is stopped because the shim ends
}

// stopRequests holds the request that the life has not received yet.
type stopRequests struct{ stops chan stopRequest }

// stop requests the runner's stop. Of requests that have not been received yet, the one
// with the shortest grace is kept.
func (s *stopRequests) stop(r stopRequest) {
	for {
		select {
		case s.stops <- r:
			return
		default:
		}
		select {
		case earlier := <-s.stops:
			if earlier.grace <= r.grace {
				r = earlier
			}
		default:
		}
	}
}

// ending makes the shim end.
type ending struct {
	quit     chan struct{} // closed by end
	quitOnce sync.Once
}

// end makes Run return.
func (s *ending) end() { s.quitOnce.Do(func() { close(s.quit) }) }
