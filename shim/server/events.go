package server

import (
	"slices"
	"sync"
	"time"

	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/shim"
)

// maxEvents is how many events wait for a daemon that does not read.
const maxEvents = 256

// mailbox holds events for a daemon. It is bounded: of progress it keeps the
// latest, and beyond maxEvents it drops the oldest and counts them.
type mailbox struct {
	ready chan struct{} // has an element when there is something to take

	mu    sync.Mutex
	queue []shim.Event
	lost  int
}

func newMailbox() *mailbox { return &mailbox{ready: make(chan struct{}, 1)} }

func (b *mailbox) put(e shim.Event) {
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

// take returns all that is there, oldest first.
func (b *mailbox) take() []shim.Event {
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

// A runner's log lines are passed on at this rate; others are dropped.
const (
	logBurst = 200
	logRate  = 100 // a second
)

// rate is a token bucket.
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
