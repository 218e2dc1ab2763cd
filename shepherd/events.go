package shepherd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// eventBatch is how many events are read from the ledger at a time.
const eventBatch = 256

// Events returns up to limit events after the cursor, and the cursor to continue from. An
// empty id stands for all jobs, an empty tenant for all tenants. The error is
// job.ErrEventsGone or has the ledger's class.
func (r *reader) Events(ctx context.Context, after job.Cursor, id job.ID, tenant string, limit int) ([]job.Event, job.Cursor, error) {
	events, next, err := r.cfg.Ledger.Events(ctx, after, ledger.EventFilter{Job: id, Tenant: tenant}, limit)
	switch {
	case errors.Is(err, ledger.ErrEventsGone):
		return nil, "", job.ErrEventsGone
	case err != nil:
		return nil, "", serviceError("ledger", fmt.Errorf("read events: %w", err))
	}
	return events, next, nil
}

// NewestEvents returns the last events, at most as many as asked for, in order, and the
// cursor to continue from. An empty tenant stands for all tenants.
func (r *reader) NewestEvents(ctx context.Context, tenant string, most int) ([]job.Event, job.Cursor, error) {
	events, next, err := r.cfg.Ledger.NewestEvents(ctx, ledger.EventFilter{Tenant: tenant}, most)
	if err != nil {
		return nil, "", serviceError("ledger", fmt.Errorf("read the newest events: %w", err))
	}
	return events, next, nil
}

// EventsNow returns the cursor of the latest event.
func (r *reader) EventsNow(ctx context.Context) (job.Cursor, error) {
	now, err := r.cfg.Ledger.Now(ctx)
	if err != nil {
		return "", serviceError("ledger", fmt.Errorf("look up the latest event: %w", err))
	}
	return now, nil
}

// EventsChanged returns a channel that is closed when there may be events that did not exist
// at the time of the call.
func (r *reader) EventsChanged() <-chan struct{} { return r.cfg.Ledger.Changed() }

// hub reads the ledger's events once for everyone who follows a job: waiting clients,
// attempts that may be cancelled, readers of logs. It adds the runners' own events, which
// the ledger does not keep. A follower costs a map entry and no polling.
type hub struct {
	ledger ledger.Ledger
	log    *slog.Logger

	mu       sync.Mutex
	watchers map[job.ID][]*watcher // by job, oldest first
	records  map[*cancelRecord]bool
}

// cancelRecord has the cancel events of all jobs since it was begun.
type cancelRecord struct{ events []job.Event }

// watcher is called for every event of one job.
type watcher struct{ call func(job.Event) }

func newHub(l ledger.Ledger, log *slog.Logger) *hub {
	return &hub{ledger: l, log: log, watchers: make(map[job.ID][]*watcher), records: make(map[*cancelRecord]bool)}
}

// watch calls f for every event of the job that the hub reads from now on, until stop is
// called. f must return at once.
func (h *hub) watch(id job.ID, f func(job.Event)) (stop func()) {
	w := &watcher{f}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.watchers[id] = append(h.watchers[id], w)
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		left := slices.DeleteFunc(h.watchers[id], func(other *watcher) bool { return other == w })
		if h.watchers[id] = left; len(left) == 0 {
			delete(h.watchers, id)
		}
	}
}

// subscribe is watch for a follower with its own goroutine. The channel holds the last event
// that was not received; an event of kind ended is not replaced by a later one. Runners'
// events are left out.
func (h *hub) subscribe(id job.ID) (_ <-chan job.Event, stop func()) {
	events := make(chan job.Event, 1)
	var sending sync.Mutex
	stop = h.watch(id, func(e job.Event) {
		if e.Kind == job.EventGiven || e.Kind == job.EventProgress {
			return
		}
		sending.Lock()
		defer sending.Unlock()
		select {
		case events <- e:
			return
		default:
		}
		select {
		case last := <-events:
			if last.Kind == job.EventEnded {
				e = last
			}
		default:
		}
		events <- e
	})
	return events, stop
}

// watched reports whether anyone follows the job.
func (h *hub) watched(id job.ID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.watchers[id]) > 0
}

// recordCancels records the cancel events of all jobs that the hub reads from now on, until
// end is called, which returns them. It is for the time in which the job to watch is not known
// yet.
func (h *hub) recordCancels() (end func() []job.Event) {
	r := new(cancelRecord)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.records[r] = true
	return func() []job.Event {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.records, r)
		return r.events
	}
}

// publish passes an event to the followers of its job.
func (h *hub) publish(e job.Event) {
	h.mu.Lock()
	if e.Kind == job.EventCancelled {
		for r := range h.records {
			r.events = append(r.events, e)
		}
	}
	watchers := slices.Clone(h.watchers[e.Job])
	h.mu.Unlock()
	for _, w := range watchers {
		w.call(e)
	}
}

// run passes every event after the cursor to each. It returns when reading has ended, or ctx
// has and the events recorded before are read. before is called before each read of the
// events, and the function it returns after everything that existed at that time was passed
// on. If events after the cursor are no longer kept, run continues from the present and
// calls gone.
func (h *hub) run(ctx, reading context.Context, cursor job.Cursor, each func(job.Event), before func() (caughtUp func()), gone func(context.Context)) {
	pause := time.Second
	for {
		changed := h.ledger.Changed()
		caughtUp := before()
		events, next, err := h.ledger.Events(reading, cursor, ledger.EventFilter{}, eventBatch)
		if errors.Is(err, ledger.ErrEventsGone) {
			h.log.Warn("Events of the ledger were pruned before they were read")
			if next, err = h.ledger.Now(reading); err == nil {
				cursor = next
				gone(ctx)
				continue
			}
		}
		if reading.Err() != nil {
			return
		}
		if err != nil {
			if ctx.Err() == nil {
				h.log.Error("Cannot read the ledger's events; retrying", "error", err)
			}
			if sleep(ctx, pause) != nil {
				return
			}
			pause = min(2*pause, 30*time.Second)
			continue
		}
		pause = time.Second
		for _, e := range events {
			each(e)
		}
		if len(events) < eventBatch {
			caughtUp()
		}
		moved := next != cursor
		cursor = next
		if len(events) > 0 || moved {
			continue
		}
		if ctx.Err() != nil {
			return
		}
		select {
		case <-ctx.Done():
		case <-changed:
		}
	}
}

// refresh publishes the current state of every followed job, after events were missed.
func (h *hub) refresh(ctx context.Context) {
	h.mu.Lock()
	ids := slices.Sorted(maps.Keys(h.watchers))
	h.mu.Unlock()
	for _, id := range ids {
		rec, err := h.ledger.Get(ctx, id)
		if err != nil {
			continue
		}
		h.publish(asEvent(rec))
	}
}

// asEvent returns an event with the current state of a record.
func asEvent(rec job.Record) job.Event {
	e := job.Event{
		At: job.Now(), Job: rec.ID, Run: rec.Run, Model: rec.Model, Address: rec.Sheep, Tenant: rec.Tenant,
		Attempt: rec.Attempt, Node: rec.Node, Sheep: rec.Holder, State: rec.State, Kind: job.EventStarted,
	}
	switch {
	case rec.State.Final():
		status := rec.Status()
		e.Kind, e.Status = job.EventEnded, &status
	case rec.Cancelling:
		e.Kind = job.EventCancelled
	case rec.Holder == "":
		e.Kind = job.EventQueued
	case rec.State == job.Queued:
		e.Kind = job.EventClaimed
	}
	return e
}
