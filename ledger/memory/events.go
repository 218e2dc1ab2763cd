package memory

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// eventLog reads events and keeps how far consumers of them have come.
type eventLog struct{ *database }

// eventBuffer has the last events and the checkpoints of consumers. The first event has the
// number 1.
type eventBuffer struct {
	most        int // that are kept
	kept        []job.Event
	pruned      int64         // events that are no longer kept; they had the numbers 1 to pruned
	changed     chan struct{} // closed with the next event
	checkpoints map[string]job.Cursor
}

func newEventBuffer(most int) eventBuffer {
	return eventBuffer{most: most, changed: make(chan struct{}), checkpoints: make(map[string]job.Cursor)}
}

// add keeps an event.
func (e *eventBuffer) add(event job.Event) {
	event.Cursor = cursor(e.latest() + 1)
	e.kept = append(e.kept, event)
	if excess := len(e.kept) - e.most; excess > 0 {
		e.kept = e.kept[excess:]
		e.pruned += int64(excess)
	}
	e.wake()
}

// wake wakes the readers that wait for an event.
func (e *eventBuffer) wake() {
	close(e.changed)
	e.changed = make(chan struct{})
}

// latest is the number of the latest event.
func (e *eventBuffer) latest() int64 { return e.pruned + int64(len(e.kept)) }

func cursor(number int64) job.Cursor { return job.Cursor(strconv.FormatInt(number, 10)) }

// after returns up to limit events after the cursor that match, and the cursor to go on
// with, or ledger.ErrEventsGone.
func (e *eventBuffer) after(from job.Cursor, filter ledger.EventFilter, limit int) (events []job.Event, next job.Cursor, err error) {
	number := e.pruned
	if from != "" {
		if number, err = strconv.ParseInt(string(from), 10, 64); err != nil || number < e.pruned || number > e.latest() {
			return nil, "", ledger.ErrEventsGone
		}
	}
	if filter == (ledger.EventFilter{}) {
		events = make([]job.Event, 0, min(e.latest()-number, int64(limit)))
	}
	for i, event := range e.kept[number-e.pruned:] {
		if !filter.Matches(event) {
			continue
		}
		if events = append(events, event); len(events) == limit {
			return events, cursor(number + int64(i) + 1), nil
		}
	}
	return events, cursor(e.latest()), nil
}

// newest returns the last events that match, at most as many as asked for, in order.
func (e *eventBuffer) newest(filter ledger.EventFilter, most int) []job.Event {
	var events []job.Event
	for i := len(e.kept) - 1; i >= 0 && len(events) < most; i-- {
		if filter.Matches(e.kept[i]) {
			events = append(events, e.kept[i])
		}
	}
	slices.Reverse(events)
	return events
}

// Now implements ledger.Ledger.
func (e *eventLog) Now(ctx context.Context) (job.Cursor, error) {
	var now job.Cursor
	err := e.call(ctx, "look up the latest event", func() error {
		now = cursor(e.events.latest())
		return nil
	})
	return now, err
}

// Events implements ledger.Ledger. Asked for no event at all, it answers an error
// of class errdefs.ErrInternal.
func (e *eventLog) Events(ctx context.Context, after job.Cursor, filter ledger.EventFilter, limit int) (events []job.Event, next job.Cursor, err error) {
	if limit < 1 {
		return nil, "", fmt.Errorf("read events: a page of %d events: %w", limit, errdefs.ErrInternal)
	}
	err = e.call(ctx, "read the events after "+string(after), func() (err error) {
		events, next, err = e.events.after(after, filter, limit)
		return err
	})
	return events, next, err
}

// NewestEvents implements ledger.Ledger. Asked for no event at all, it answers an error
// of class errdefs.ErrInternal.
func (e *eventLog) NewestEvents(ctx context.Context, filter ledger.EventFilter, most int) (events []job.Event, next job.Cursor, err error) {
	if most < 1 {
		return nil, "", fmt.Errorf("read the newest %d events: %w", most, errdefs.ErrInternal)
	}
	err = e.call(ctx, "read the newest events", func() error {
		events, next = e.events.newest(filter, most), cursor(e.events.latest())
		return nil
	})
	return events, next, err
}

// Checkpoint implements ledger.Ledger.
func (e *eventLog) Checkpoint(ctx context.Context, consumer string) (job.Cursor, error) {
	var kept job.Cursor
	err := e.call(ctx, "look up the checkpoint of "+consumer, func() error {
		var ok bool
		if kept, ok = e.events.checkpoints[consumer]; !ok {
			return ledger.ErrNotFound
		}
		return nil
	})
	return kept, err
}

// SetCheckpoint implements ledger.Ledger.
func (e *eventLog) SetCheckpoint(ctx context.Context, consumer string, at job.Cursor) error {
	return e.call(ctx, "keep the checkpoint of "+consumer, func() error {
		e.events.checkpoints[consumer] = at
		return nil
	})
}
