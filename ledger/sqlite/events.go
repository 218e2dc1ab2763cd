package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// eventLog reads events, the recent ones from memory, and keeps how far consumers of them
// have come.
type eventLog struct {
	*database
	recent *recentEvents
}

// Changed implements ledger.Ledger. The channel is closed, too, when the ledger
// is closed.
func (e *eventLog) Changed() <-chan struct{} {
	return e.recent.next()
}

// Now implements ledger.Ledger.
func (e *eventLog) Now(ctx context.Context) (job.Cursor, error) {
	var now job.Cursor
	err := e.call("look up the latest event", func() error {
		now = cursor(e.recent.latest())
		return ctx.Err()
	})
	return now, err
}

// Events implements ledger.Ledger. A cursor that this ledger did not give out is
// answered like one that is too old; asked for no event at all, it answers an
// error of class errdefs.ErrInternal.
func (e *eventLog) Events(ctx context.Context, after job.Cursor, filter ledger.EventFilter, limit int) ([]job.Event, job.Cursor, error) {
	if limit < 1 {
		return nil, "", fmt.Errorf("read events: a page of %d events: %w", limit, errdefs.ErrInternal)
	}
	var events []job.Event
	var next int64
	err := e.call("read the events after "+string(after), func() (err error) {
		if err := ctx.Err(); err != nil {
			return err
		}
		number, last := int64(0), e.recent.latest()
		if after != "" {
			if number, err = strconv.ParseInt(string(after), 10, 64); err != nil || number < 0 || number > last {
				return ledger.ErrEventsGone
			}
		}
		var ok bool
		if events, next, ok = e.recent.after(number, filter, limit); ok {
			return nil
		}
		events, next, err = e.storedEvents(ctx, number, last, filter, limit)
		if err != nil || after == "" {
			return err
		}
		// Where events after the cursor were pruned before they were read, the file
		// says so by now.
		var pruned int64
		if err := e.read.pruned.QueryRowContext(ctx).Scan(&pruned); err != nil {
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

// storedEvents reads events with numbers from after on, up to last, from the file, and
// returns the number to go on from.
func (e *eventLog) storedEvents(ctx context.Context, after, last int64, filter ledger.EventFilter, limit int) ([]job.Event, int64, error) {
	query, args := eventsQuery(after, last, filter, limit)
	events, number, err := e.queryEvents(ctx, query, args)
	if len(events) == limit {
		last = number
	}
	return events, last, err
}

// queryEvents returns the events that a query finds, in its order, and the number of the
// last of them.
func (e *eventLog) queryEvents(ctx context.Context, query string, args []any) (events []job.Event, number int64, err error) {
	rows, err := e.reads.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, 0, err
	}
	defer rows.Close()
	for rows.Next() {
		var event job.Event
		if event, number, err = scanEvent(rows.Scan); err != nil {
			return nil, 0, err
		}
		events = append(events, event)
	}
	return events, number, rows.Err()
}

// NewestEvents implements ledger.Ledger. Asked for no event at all, it answers an error
// of class errdefs.ErrInternal.
func (e *eventLog) NewestEvents(ctx context.Context, filter ledger.EventFilter, most int) (events []job.Event, next job.Cursor, err error) {
	if most < 1 {
		return nil, "", fmt.Errorf("read the newest %d events: %w", most, errdefs.ErrInternal)
	}
	err = e.call("read the newest events", func() error {
		if err := ctx.Err(); err != nil {
			return err
		}
		kept, last, ok := e.recent.newest(filter, most)
		if !ok {
			query, args := newestEventsQuery(last, filter, most)
			var err error
			if kept, _, err = e.queryEvents(ctx, query, args); err != nil {
				return err
			}
			slices.Reverse(kept)
		}
		events, next = kept, cursor(last)
		return nil
	})
	return events, next, err
}

const eventColumns = `id, at, kind, job, run, model_name, model_version, sheep, tenant, attempt, holder, node,
	state, cause, reason, delayed, enqueued_at, started_at, finished_at, failure_type, failure_message, failure_traceback`

func eventsQuery(after, last int64, filter ledger.EventFilter, limit int) (string, []any) {
	condition, args := eventCondition(filter)
	return `SELECT ` + eventColumns + ` FROM events WHERE id > ? AND id <= ?` + condition + ` ORDER BY id LIMIT ?`,
		append(append([]any{after, last}, args...), limit)
}

// newestEventsQuery reads the events up to the last one backwards.
func newestEventsQuery(last int64, filter ledger.EventFilter, most int) (string, []any) {
	condition, args := eventCondition(filter)
	return `SELECT ` + eventColumns + ` FROM events WHERE id <= ?` + condition + ` ORDER BY id DESC LIMIT ?`,
		append(append([]any{last}, args...), most)
}

// eventCondition is the part of a query that goes by the filter.
func eventCondition(filter ledger.EventFilter) (condition string, args []any) {
	if filter.Job != "" {
		condition += ` AND job = ?`
		args = append(args, string(filter.Job))
	}
	if filter.Tenant != "" {
		if filter.Job != "" {
			condition += ` AND +tenant = ?`
		} else {
			condition += ` AND tenant = ? AND tenant > ''` // so that the index is used
		}
		args = append(args, filter.Tenant)
	}
	return condition, args
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
func (e *eventLog) Checkpoint(ctx context.Context, consumer string) (job.Cursor, error) {
	var kept job.Cursor
	err := e.call("look up the checkpoint of "+consumer, func() error {
		err := e.read.checkpoint.QueryRowContext(ctx, consumer).Scan(&kept)
		if errors.Is(err, sql.ErrNoRows) {
			return ledger.ErrNotFound
		}
		return err
	})
	return kept, err
}

// SetCheckpoint implements ledger.Ledger.
func (e *eventLog) SetCheckpoint(ctx context.Context, consumer string, at job.Cursor) error {
	return e.change(ctx, "keep the checkpoint of "+consumer, func(t *tx) error {
		writes := t.writes
		result, err := t.exec(t.stmts.setCheckpoint, consumer, string(at))
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
