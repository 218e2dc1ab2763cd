package postgres

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/jackc/pgx/v5"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// eventLog reads events in their order, up to the horizon, and knows how far consumers of
// them have come.
type eventLog struct {
	*database
	horizon horizon
}

// horizon is how far events are settled: no event with a number up to settled will
// appear that is not there. Numbers are given out before their transactions commit,
// so one that is missing may yet appear, or was given to a transaction that failed.
//
// A transaction that has a number of an event holds a lock on the table until it
// ends. Once all transactions are gone that held one when a gap was seen, what is
// then missing in the gap stays so.
type horizon struct {
	mu      sync.Mutex
	settled int64
	gap     int64           // the last number of the gap that was seen; 0 for none
	writers map[string]bool // that may fill it
	filled  int64           // what is missing up to here stays so
}

// number is the number up to which events are settled.
func (h *horizon) number() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.settled
}

// pass reports whether the horizon can go on to the event with the number, which is
// the first that is there behind it.
func (h *horizon) pass(number int64) bool {
	if number-1 > max(h.settled, h.filled) {
		return false
	}
	h.settled = max(h.settled, number)
	return true
}

// look looks at the gap before the event with the number, and reports whether what
// is missing stays so. What was read before may have been read too early.
func (e *eventLog) look(ctx context.Context, number int64) (filled bool, err error) {
	h := &e.horizon
	writers := map[string]bool{}
	err = e.often(ctx, e.db, queryEventWriters, nil, func(rows pgx.Rows) error {
		var id string
		err := rows.Scan(&id)
		writers[id] = true
		return err
	})
	if err != nil {
		return false, err
	}
	if number-1 > h.gap {
		h.gap, h.writers = number-1, writers
	}
	for id := range h.writers {
		if !writers[id] {
			delete(h.writers, id)
		}
	}
	if len(h.writers) > 0 {
		return false, nil
	}
	h.filled = h.gap
	return true, nil
}

// waiting reports whether there is a gap that may be filled.
func (h *horizon) waiting() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.gap > max(h.settled, h.filled)
}

// findHorizon sets the horizon to the present.
func (e *eventLog) findHorizon(ctx context.Context) error {
	h := &e.horizon
	h.mu.Lock()
	defer h.mu.Unlock()
	last, _, err := e.lastEvent(ctx)
	if err != nil {
		return err
	}
	for {
		filled, err := e.look(ctx, last+1)
		if err != nil {
			return err
		}
		if filled {
			h.settled = last
			return nil
		}
		select {
		case <-time.After(firstPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// lastEvent is the last number that was given out, and that of the last event
// removed.
func (e *eventLog) lastEvent(ctx context.Context) (last, pruned int64, err error) {
	_, err = e.oftenOne(ctx, queryLastEvent, nil, &last, &pruned)
	return last, pruned, err
}

// advance moves the horizon as far as it goes. h.mu is held.
func (e *eventLog) advance(ctx context.Context) error {
	h := &e.horizon
	const page = 1000
	_, pruned, err := e.lastEvent(ctx)
	if err != nil {
		return err
	}
	h.settled = max(h.settled, pruned)
	for {
		var n int
		var gap int64
		err := e.often(ctx, e.db, queryEventIDs, pgx.NamedArgs{"after": h.settled, "limit": page}, func(rows pgx.Rows) error {
			var number int64
			err := rows.Scan(&number)
			if n++; gap == 0 && !h.pass(number) {
				gap = number
			}
			return err
		})
		if err != nil {
			return err
		}
		if gap != 0 {
			if filled, err := e.look(ctx, gap); err != nil || !filled {
				return err
			}
		} else if n < page {
			return nil
		}
	}
}

// now is the number of the last event that is settled.
func (e *eventLog) now(ctx context.Context) (int64, error) {
	h := &e.horizon
	h.mu.Lock()
	defer h.mu.Unlock()
	err := e.advance(ctx)
	return h.settled, err
}

// Now implements ledger.Ledger.
func (e *eventLog) Now(ctx context.Context) (job.Cursor, error) {
	return read(ctx, e.database, "look up the latest event", func(ctx context.Context) (job.Cursor, error) {
		last, err := e.now(ctx)
		if err != nil {
			return "", err
		}
		return cursor(last), nil
	})
}

func cursor(number int64) job.Cursor { return job.Cursor(strconv.FormatInt(number, 10)) }

// page is a part of the events.
type page struct {
	events []job.Event
	next   int64
}

// Events implements ledger.Ledger. A cursor that this ledger did not give out is
// answered like one that is too old; asked for no event at all, it answers an error
// of class errdefs.ErrInternal.
func (e *eventLog) Events(ctx context.Context, after job.Cursor, filter ledger.EventFilter, limit int) ([]job.Event, job.Cursor, error) {
	doing := "read the events after " + string(after)
	if limit < 1 {
		return nil, "", fmt.Errorf("read events: a page of %d events: %w", limit, errdefs.ErrInternal)
	}
	var number int64
	if after != "" {
		var err error
		if number, err = strconv.ParseInt(string(after), 10, 64); err != nil || number < 0 {
			return nil, "", fmt.Errorf("%s: %w", doing, ledger.ErrEventsGone)
		}
	}
	found, err := read(ctx, e.database, doing, func(ctx context.Context) (page, error) {
		if filter == (ledger.EventFilter{}) {
			return e.nextEvents(ctx, number, after == "", limit)
		}
		return e.matchingEvents(ctx, number, after == "", filter, limit)
	})
	if err != nil {
		return nil, "", err
	}
	return found.events, cursor(found.next), nil
}

// nextEvents reads the events after the number, and moves the horizon with them.
func (e *eventLog) nextEvents(ctx context.Context, number int64, first bool, limit int) (page, error) {
	h := &e.horizon
	h.mu.Lock()
	defer h.mu.Unlock()
	if number > h.settled {
		if known, err := e.known(ctx, number); err != nil || !known {
			return page{next: number}, err
		}
	}
	for {
		events, pruned, err := e.readEvents(ctx, number, math.MaxInt64, ledger.EventFilter{}, limit)
		if err != nil {
			return page{}, err
		}
		if number < pruned && !first {
			return page{}, ledger.ErrEventsGone
		}
		h.settled = max(h.settled, pruned)
		var gap int64
		for i, ev := range events {
			if ev.number > h.settled && !h.pass(ev.number) {
				gap, events = ev.number, events[:i]
				break
			}
		}
		if gap != 0 {
			filled, err := e.look(ctx, gap)
			if err != nil {
				return page{}, err
			}
			if filled {
				continue
			}
		}
		return pageOf(events, max(number, h.settled), limit), nil
	}
}

// matchingEvents reads the events after the number that match.
func (e *eventLog) matchingEvents(ctx context.Context, number int64, first bool, filter ledger.EventFilter, limit int) (page, error) {
	h := &e.horizon
	h.mu.Lock()
	err := e.advance(ctx)
	last := h.settled
	if err == nil && number > last {
		var known bool
		if known, err = e.known(ctx, number); err == nil && !known {
			last = number
		}
	}
	h.mu.Unlock()
	if err != nil {
		return page{}, err
	}
	events, pruned, err := e.readEvents(ctx, number, last, filter, limit)
	if err == nil && number < pruned && !first {
		err = ledger.ErrEventsGone
	}
	return pageOf(events, last, limit), err
}

// NewestEvents implements ledger.Ledger. Asked for no event at all, it answers an error
// of class errdefs.ErrInternal.
func (e *eventLog) NewestEvents(ctx context.Context, filter ledger.EventFilter, most int) ([]job.Event, job.Cursor, error) {
	if most < 1 {
		return nil, "", fmt.Errorf("read the newest %d events: %w", most, errdefs.ErrInternal)
	}
	found, err := read(ctx, e.database, "read the newest events", func(ctx context.Context) (page, error) {
		last, err := e.now(ctx)
		if err != nil {
			return page{}, err
		}
		newest := page{next: last}
		args := pgx.NamedArgs{"last": last, "limit": most, "job": text(filter.Job), "tenant": text(filter.Tenant)}
		err = e.queryBy(ctx, e.db, newestEventsQuery(filter), args, func(rows pgx.Rows) error {
			var pruned int64
			event, err := scanEvent(rows, &pruned)
			newest.events = append(newest.events, event.Event)
			return err
		})
		slices.Reverse(newest.events)
		return newest, err
	})
	if err != nil {
		return nil, "", err
	}
	return found.events, cursor(found.next), nil
}

// known moves the horizon towards a number behind it, which another node may have
// given out, and reports whether it got there. A number that nobody has given out is
// ledger.ErrEventsGone. h.mu is held.
func (e *eventLog) known(ctx context.Context, number int64) (bool, error) {
	h := &e.horizon
	last, _, err := e.lastEvent(ctx)
	if err != nil {
		return false, err
	}
	if number > last {
		return false, ledger.ErrEventsGone
	}
	if err := e.advance(ctx); err != nil {
		return false, err
	}
	return number <= h.settled, nil
}

// pageOf ends with the last event where it is full, else at the given number.
func pageOf(events []numbered, end int64, limit int) page {
	p := page{next: end}
	for _, e := range events {
		p.events = append(p.events, e.Event)
	}
	if len(events) == limit {
		p.next = events[limit-1].number
	}
	return p
}

// numbered is an event with its number.
type numbered struct {
	job.Event
	number int64
}

// readEvents reads events after a number, up to another, and the number of the last
// one that was removed.
func (e *eventLog) readEvents(ctx context.Context, after, last int64, filter ledger.EventFilter, limit int) (events []numbered, pruned int64, err error) {
	args := pgx.NamedArgs{"after": after, "last": last, "limit": limit, "job": text(filter.Job), "tenant": text(filter.Tenant)}
	send := e.often
	if filter != (ledger.EventFilter{}) {
		send = e.queryBy
	}
	err = send(ctx, e.db, eventsQuery(filter), args, func(rows pgx.Rows) error {
		if rows.RawValues()[1] == nil {
			return rows.Scan(append([]any{&pruned}, make([]any, len(rows.RawValues())-1)...)...)
		}
		event, err := scanEvent(rows, &pruned)
		events = append(events, event)
		return err
	})
	return events, pruned, err
}

func scanEvent(rows pgx.Rows, pruned *int64) (numbered, error) {
	var e numbered
	var failure job.Failure
	var enqueued, started, finished *time.Time
	err := rows.Scan(pruned, &e.number, &e.At, &e.Kind, &e.Job, &e.Run, &e.Model.Name, &e.Model.Version, &e.Address, &e.Tenant, &e.Attempt, &e.Sheep, &e.Node,
		&e.State, &e.Cause, &e.Reason, &e.Delayed, &enqueued, &started, &finished, &failure.Type, &failure.Message, &failure.Traceback)
	if err != nil {
		return e, err
	}
	e.Cursor, e.At = cursor(e.number), e.At.UTC()
	if e.Sheep == "" { // see eventArgs
		e.Origin, e.Node = e.Node, ""
	}
	if e.Kind == job.EventEnded {
		e.Status = &job.Status{State: e.State, Model: e.Model, EnqueuedAt: toTime(enqueued), StartedAt: toTime(started), FinishedAt: toTime(finished)}
		if e.State == job.Failed {
			e.Status.Failure = &failure
		}
	}
	return e, nil
}

// Checkpoint implements ledger.Ledger.
func (e *eventLog) Checkpoint(ctx context.Context, consumer string) (job.Cursor, error) {
	return read(ctx, e.database, "look up the checkpoint of "+consumer, func(ctx context.Context) (kept job.Cursor, err error) {
		found, err := e.queryOne(ctx, queryCheckpoint, pgx.NamedArgs{"consumer": text(consumer)}, &kept)
		if err == nil && !found {
			err = ledger.ErrNotFound
		}
		return kept, err
	})
}

// SetCheckpoint implements ledger.Ledger.
func (e *eventLog) SetCheckpoint(ctx context.Context, consumer string, at job.Cursor) error {
	return e.call(ctx, "keep the checkpoint of "+consumer, func(ctx context.Context) error {
		_, err := e.exec(ctx, querySetCheckpoint, pgx.NamedArgs{"consumer": text(consumer), "cursor": text(at)})
		return err
	})
}
