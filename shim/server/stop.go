package server

import (
	"sync"
	"time"
)

// stopRequest asks for the runner's end. Grace is the time between TERM and
// KILL. Why is the cause where the daemon did not ask for it.
type stopRequest struct {
	grace time.Duration
	why   string
	fault bool // of the runner
	lost  bool // it goes down with the shim
}

// stopRequests are what waits for the one that ends the runner.
type stopRequests struct{ stops chan stopRequest }

// stop asks for the runner's end; of several requests that come at once the
// first is enough, but for one that is in more of a hurry.
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

// ending is how a shim is told to end.
type ending struct {
	quit     chan struct{} // closed when the shim is to end
	quitOnce sync.Once
}

// end makes Run return.
func (s *ending) end() { s.quitOnce.Do(func() { close(s.quit) }) }
