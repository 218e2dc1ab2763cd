package sqlite

import (
	"slices"
	"sort"
	"sync"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// Bounds of the events that are kept in memory, for the readers that have read
// nearly all there are: their number, and the bytes of their failures.
const (
	maxRecentEvents = 1024
	maxRecentBytes  = 4 << 20
)

// recentEvents keeps the latest events in memory. Readers share them and do not change
// them.
type recentEvents struct {
	mu      sync.Mutex
	last    int64       // the number of the latest event
	since   int64       // all events with larger numbers are in events
	events  []job.Event // in order
	numbers []int64     // of the events
	bytes   int         // that the failures of the events take
	changed chan struct{}
	closed  bool
}

func newRecentEvents(last int64) *recentEvents {
	return &recentEvents{last: last, since: last, changed: make(chan struct{})}
}

// publish adds events that are committed; last is the number of the last one.
func (e *recentEvents) publish(events []job.Event, last int64) {
	if len(events) == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for i, event := range events {
		e.events = append(e.events, event)
		e.numbers = append(e.numbers, last-int64(len(events)-1-i))
		e.bytes += failureBytes(event)
	}
	e.last = last
	drop := 0
	for len(e.events)-drop > maxRecentEvents || e.bytes > maxRecentBytes {
		e.since = e.numbers[drop]
		e.bytes -= failureBytes(e.events[drop])
		e.events[drop] = job.Event{} // so that its texts can be freed
		drop++
	}
	e.events, e.numbers = e.events[drop:], e.numbers[drop:]
	close(e.changed)
	e.changed = make(chan struct{})
}

func failureBytes(event job.Event) int {
	if event.Status == nil || event.Status.Failure == nil {
		return 0
	}
	failure := event.Status.Failure
	return len(failure.Message) + len(failure.Type) + len(failure.Traceback)
}

// next is closed with the next event, or when the ledger is closed.
func (e *recentEvents) next() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.changed
}

// latest is the number of the latest event.
func (e *recentEvents) latest() int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.last
}

// after returns up to limit events after the number that match, and the number
// to go on from; ok is false where they are no longer in memory.
func (e *recentEvents) after(number int64, filter ledger.EventFilter, limit int) (events []job.Event, next int64, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if number < e.since {
		return nil, 0, false
	}
	from := sort.Search(len(e.numbers), func(i int) bool { return e.numbers[i] > number })
	for i := from; i < len(e.events); i++ {
		event := e.events[i]
		if !filter.Matches(event) {
			continue
		}
		events = append(events, event)
		if len(events) == limit {
			return events, e.numbers[i], true
		}
	}
	return events, e.last, true
}

// newest returns the last events that match, at most as many as asked for, in order, and
// the number of the latest event; ok is false where more may match that are no longer in
// memory.
func (e *recentEvents) newest(filter ledger.EventFilter, most int) (events []job.Event, last int64, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := len(e.events) - 1; i >= 0 && len(events) < most; i-- {
		if filter.Matches(e.events[i]) {
			events = append(events, e.events[i])
		}
	}
	slices.Reverse(events)
	return events, e.last, len(events) == most || e.since == 0
}

// close wakes the readers that wait for an event.
func (e *recentEvents) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		e.closed = true
		close(e.changed)
	}
}
