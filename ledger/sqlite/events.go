package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// Bounds of the events that are kept in memory, for the readers that have read
// nearly all there are: their number, and the bytes of their failures.
const (
	recentEvents = 1024
	recentBytes  = 4 << 20
)

// eventLog knows the last event and keeps the recent ones. Events are shared
// with whoever reads them.
type eventLog struct {
	mu      sync.Mutex
	last    int64       // the number of the latest event
	since   int64       // all events with larger numbers are in recent
	recent  []job.Event // in order
	numbers []int64     // of the recent events
	bytes   int         // that the failures in recent take
	changed chan struct{}
	closed  bool
}

func newEventLog(last int64) *eventLog {
	return &eventLog{last: last, since: last, changed: make(chan struct{})}
}

// publish adds events that are committed; last is the number of the last one.
func (e *eventLog) publish(events []job.Event, last int64) {
	if len(events) == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for i, event := range events {
		e.recent = append(e.recent, event)
		e.numbers = append(e.numbers, last-int64(len(events)-1-i))
		e.bytes += failureBytes(event)
	}
	e.last = last
	drop := 0
	for len(e.recent)-drop > recentEvents || e.bytes > recentBytes {
		e.since = e.numbers[drop]
		e.bytes -= failureBytes(e.recent[drop])
		e.recent[drop] = job.Event{} // its texts can go now
		drop++
	}
	e.recent, e.numbers = e.recent[drop:], e.numbers[drop:]
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

// latest is the number of the latest event.
func (e *eventLog) latest() int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.last
}

// after returns up to limit events after the number that match, and the number
// to go on from; ok is false where they are no longer in memory.
func (e *eventLog) after(number int64, filter ledger.EventFilter, limit int) (events []job.Event, next int64, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if number < e.since {
		return nil, 0, false
	}
	from := sort.Search(len(e.numbers), func(i int) bool { return e.numbers[i] > number })
	for i := from; i < len(e.recent); i++ {
		event := e.recent[i]
		if filter.Job != "" && event.Job != filter.Job || filter.Tenant != "" && event.Tenant != filter.Tenant {
			continue
		}
		events = append(events, event)
		if len(events) == limit {
			return events, e.numbers[i], true
		}
	}
	return events, e.last, true
}

// close wakes whoever waits for a change.
func (e *eventLog) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		e.closed = true
		close(e.changed)
	}
}

// Changed implements ledger.Ledger. The channel is closed, too, when the ledger
// is closed.
func (l *Ledger) Changed() <-chan struct{} {
	l.events.mu.Lock()
	defer l.events.mu.Unlock()
	return l.events.changed
}

// Now implements ledger.Ledger.
func (l *Ledger) Now(ctx context.Context) (job.Cursor, error) {
	var now job.Cursor
	err := l.call("look up the latest event", func() error {
		now = cursor(l.events.latest())
		return ctx.Err()
	})
	return now, err
}

// Events implements ledger.Ledger. A cursor that this ledger did not give out is
// answered like one that is too old; asked for no event at all, it answers an
// error of class errdefs.ErrInternal.
func (l *Ledger) Events(ctx context.Context, after job.Cursor, filter ledger.EventFilter, limit int) ([]job.Event, job.Cursor, error) {
	if limit < 1 {
		return nil, "", fmt.Errorf("read events: a page of %d events: %w", limit, errdefs.ErrInternal)
	}
	var events []job.Event
	var next int64
	err := l.call("read the events after "+string(after), func() (err error) {
		if err := ctx.Err(); err != nil {
			return err
		}
		number, last := int64(0), l.events.latest()
		if after != "" {
			if number, err = strconv.ParseInt(string(after), 10, 64); err != nil || number < 0 || number > last {
				return ledger.ErrEventsGone
			}
		}
		var ok bool
		if events, next, ok = l.events.after(number, filter, limit); ok {
			return nil
		}
		events, next, err = l.storedEvents(ctx, number, last, filter, limit)
		if err != nil || after == "" {
			return err
		}
		// Where events after the cursor were pruned before they were read, the file
		// says so by now.
		var pruned int64
		if err := l.read.pruned.QueryRowContext(ctx).Scan(&pruned); err != nil {
			return err
		}
		if number < pruned {
			return ledger.ErrEventsGone
		}
		return nil
	})
	if err != nil {
		return nil, "", err
	}
	return events, cursor(next), nil
}

// storedEvents reads events with numbers from after on, up to last, from the
// file.
func (l *Ledger) storedEvents(ctx context.Context, after, last int64, filter ledger.EventFilter, limit int) ([]job.Event, int64, error) {
	query, args := eventsQuery(after, last, filter, limit)
	rows, err := l.reads.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, 0, err
	}
	defer rows.Close()
	var events []job.Event
	next := last
	for rows.Next() {
		event, number, err := scanEvent(rows.Scan)
		if err != nil {
			return nil, 0, err
		}
		events = append(events, event)
		if len(events) == limit {
			next = number
		}
	}
	return events, next, rows.Err()
}

const eventColumns = `id, at, kind, job, run, model_name, model_version, sheep, tenant, attempt, holder, node,
	state, cause, reason, delayed, enqueued_at, started_at, finished_at, failure_type, failure_message, failure_traceback`

func eventsQuery(after, last int64, filter ledger.EventFilter, limit int) (string, []any) {
	var query strings.Builder
	query.WriteString(`SELECT ` + eventColumns + ` FROM events WHERE id > ? AND id <= ?`)
	args := []any{after, last}
	if filter.Job != "" {
		query.WriteString(` AND job = ?`)
		args = append(args, string(filter.Job))
	}
	if filter.Tenant != "" {
		if filter.Job != "" {
			query.WriteString(` AND +tenant = ?`)
		} else {
			query.WriteString(` AND tenant = ? AND tenant > ''`) // so that the index is used
		}
		args = append(args, filter.Tenant)
	}
	query.WriteString(` ORDER BY id LIMIT ?`)
	return query.String(), append(args, limit)
}

func scanEvent(scan func(...any) error) (event job.Event, number int64, err error) {
	var status job.Status
	var failure job.Failure
	var at, enqueued, started, finished int64
	err = scan(&number, &at, &event.Kind, &event.Job, &event.Run, &event.Model.Name, &event.Model.Version, &event.Address, &event.Tenant, &event.Attempt, &event.Sheep, &event.Node,
		&event.State, &event.Cause, &event.Reason, &event.Delayed, &enqueued, &started, &finished, &failure.Type, &failure.Message, &failure.Traceback)
	if err != nil {
		return event, 0, err
	}
	event.Cursor, event.At = cursor(number), toTime(at)
	if event.Kind == job.EventEnded {
		status = job.Status{State: event.State, Model: event.Model, EnqueuedAt: toTime(enqueued), StartedAt: toTime(started), FinishedAt: toTime(finished)}
		if event.State == job.Failed {
			status.Failure = &failure
		}
		event.Status = &status
	}
	return event, number, nil
}

// Checkpoint implements ledger.Ledger.
func (l *Ledger) Checkpoint(ctx context.Context, consumer string) (job.Cursor, error) {
	var kept job.Cursor
	err := l.call("look up the checkpoint of "+consumer, func() error {
		err := l.read.checkpoint.QueryRowContext(ctx, consumer).Scan(&kept)
		if errors.Is(err, sql.ErrNoRows) {
			return ledger.ErrNotFound
		}
		return err
	})
	return kept, err
}

// SetCheckpoint implements ledger.Ledger.
func (l *Ledger) SetCheckpoint(ctx context.Context, consumer string, at job.Cursor) error {
	return l.change(ctx, "keep the checkpoint of "+consumer, func(t *tx) error {
		writes := t.writes
		result, err := t.exec(t.do.setCheckpoint, consumer, string(at))
		if err != nil {
			return err
		}
		if n, err := result.RowsAffected(); err != nil || n == 0 {
			t.writes = writes // it was there already
			return err
		}
		return nil
	}, nil)
}
