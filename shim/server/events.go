package server

import (
	"slices"
	"sync"
	"time"

	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/shim"
)

// maxEvents is how many events are queued for a daemon that does not read.
const maxEvents = 256

// eventQueue holds events for a daemon. It is bounded: it keeps a job's latest progress
// only, and beyond maxEvents it drops the oldest events and counts them.
type eventQueue struct {
	ready chan struct{} // has an element when the queue is not empty

	mu    sync.Mutex
	queue []shim.Event
	lost  int
}

func newEventQueue() *eventQueue { return &eventQueue{ready: make(chan struct{}, 1)} }

func (b *eventQueue) put(e shim.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e.Kind == messenger.EventProgress {
		b.queue = slices.DeleteFunc(b.queue, func(old shim.Event) bool { return old.Kind == e.Kind && old.Job == e.Job })
	}
	if len(b.queue) == maxEvents {
		b.queue = slices.Delete(b.queue, 0, 1)
		b.lost++
	}
	b.queue = append(b.queue, e)
	select {
	case b.ready <- struct{}{}:
	default:
	}
}

// take removes and returns all events, oldest first.
func (b *eventQueue) take() []shim.Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := b.queue
	if len(all) > 0 {
		all[0].Lost += b.lost
		b.lost = 0
	}
	b.queue = nil
	return all
}

// The rate limit of a runner's log events; those beyond it are dropped and counted.
const (
	logBurst = 200
	logRate  = 100 // a second
)

// rate is the token bucket of that limit.
type rate struct {
	tokens float64
	at     time.Time
}

func (r *rate) admit(now time.Time) bool {
	if r.at.IsZero() {
		r.tokens = logBurst
	} else {
		r.tokens = min(logBurst, r.tokens+now.Sub(r.at).Seconds()*logRate)
	}
	r.at = now
	if r.tokens < 1 {
		return false
	}
	r.tokens--
	return true
}
