package memory

import (
	"context"
	"fmt"
	"strconv"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// eventLog are the last events, and how far each consumer of events has come. The first
// event has the number 1.
type eventLog struct {
	most        int // that are kept
	kept        []job.Event
	pruned      int64         // events that are no longer kept; they had the numbers 1 to pruned
	changed     chan struct{} // closed with the next event
	checkpoints map[string]job.Cursor
}

func newEventLog(most int) eventLog {
	return eventLog{most: most, changed: make(chan struct{}), checkpoints: make(map[string]job.Cursor)}
}

// add keeps an event.
func (e *eventLog) add(event job.Event) {
	event.Cursor = cursor(e.latest() + 1)
	e.kept = append(e.kept, event)
	if excess := len(e.kept) - e.most; excess > 0 {
		e.kept = e.kept[excess:]
		e.pruned += int64(excess)
	}
	e.wake()
}

// wake wakes those that wait for a change.
func (e *eventLog) wake() {
	close(e.changed)
	e.changed = make(chan struct{})
}

// latest is the number of the latest event.
func (e *eventLog) latest() int64 { return e.pruned + int64(len(e.kept)) }

func cursor(number int64) job.Cursor { return job.Cursor(strconv.FormatInt(number, 10)) }

// after returns up to limit events after the cursor that match, and the cursor to go on
// with, or ledger.ErrEventsGone.
func (e *eventLog) after(from job.Cursor, filter ledger.EventFilter, limit int) (events []job.Event, next job.Cursor, err error) {
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
		if filter.Job != "" && event.Job != filter.Job || filter.Tenant != "" && event.Tenant != filter.Tenant {
			continue
		}
		if events = append(events, event); len(events) == limit {
			return events, cursor(number + int64(i) + 1), nil
		}
	}
	return events, cursor(e.latest()), nil
}

// Now implements ledger.Ledger.
func (l *Ledger) Now(ctx context.Context) (job.Cursor, error) {
	var now job.Cursor
	err := l.call(ctx, "look up the latest event", func() error {
		now = cursor(l.events.latest())
		return nil
	})
	return now, err
}

// Events implements ledger.Ledger. Asked for no event at all, it answers an error
// of class errdefs.ErrInternal.
func (l *Ledger) Events(ctx context.Context, after job.Cursor, filter ledger.EventFilter, limit int) (events []job.Event, next job.Cursor, err error) {
	if limit < 1 {
		return nil, "", fmt.Errorf("read events: a page of %d events: %w", limit, errdefs.ErrInternal)
	}
	err = l.call(ctx, "read the events after "+string(after), func() (err error) {
		events, next, err = l.events.after(after, filter, limit)
		return err
	})
	return events, next, err
}

// Checkpoint implements ledger.Ledger.
func (l *Ledger) Checkpoint(ctx context.Context, consumer string) (job.Cursor, error) {
	var kept job.Cursor
	err := l.call(ctx, "look up the checkpoint of "+consumer, func() error {
		var ok bool
		if kept, ok = l.events.checkpoints[consumer]; !ok {
			return ledger.ErrNotFound
		}
		return nil
	})
	return kept, err
}

// SetCheckpoint implements ledger.Ledger.
func (l *Ledger) SetCheckpoint(ctx context.Context, consumer string, at job.Cursor) error {
	return l.call(ctx, "keep the checkpoint of "+consumer, func() error {
		l.events.checkpoints[consumer] = at
		return nil
	})
}
