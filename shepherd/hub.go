package shepherd

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// hub tells the goroutines that wait for a job what became of it. It reads the
// ledger's events once for all of them, so a waiting client costs a map entry
// and no polling.
type hub struct {
	ledger ledger.Ledger
	log    *slog.Logger

	mu   sync.Mutex
	subs map[job.ID]map[*subscription]struct{}
}

// subscription receives the latest record of one job whenever it has changed. A
// receiver that is slow sees the last change only.
type subscription struct {
	hub *hub
	id  job.ID
	C   chan job.Record
}

func newHub(l ledger.Ledger, log *slog.Logger) *hub {
	return &hub{ledger: l, log: log, subs: make(map[job.ID]map[*subscription]struct{})}
}

// subscribe begins to receive changes of a job made from now on.
func (h *hub) subscribe(id job.ID) *subscription {
	s := &subscription{hub: h, id: id, C: make(chan job.Record, 1)}
	h.mu.Lock()
	defer h.mu.Unlock()
	set := h.subs[id]
	if set == nil {
		set = make(map[*subscription]struct{}, 1)
		h.subs[id] = set
	}
	set[s] = struct{}{}
	return s
}

func (s *subscription) close() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	set := s.hub.subs[s.id]
	delete(set, s)
	if len(set) == 0 {
		delete(s.hub.subs, s.id)
	}
}

// put replaces what the receiver has not taken yet. The hub's lock makes it the
// only sender.
func (s *subscription) put(rec job.Record) {
	select {
	case <-s.C:
	default:
	}
	s.C <- rec
}

// run hands out events until ctx ends. Where the ledger cuts the watch off, it
// watches anew and, if events are gone, reads what its subscribers wait for.
func (h *hub) run(ctx context.Context, events <-chan ledger.Event, queued func(job.Record)) {
	var last int64 = -1
	for {
		for e := range events {
			last = e.Seq
			h.publish(e.Record)
			if e.Record.State == job.Queued && e.Record.Holder == "" {
				queued(e.Record)
			}
		}
		for {
			if ctx.Err() != nil {
				return
			}
			var err error
			events, err = h.ledger.Watch(ctx, last)
			if err == nil {
				break
			}
			if errors.Is(err, ledger.ErrEventsGone) {
				last = -1
				if events, err = h.ledger.Watch(ctx, last); err == nil {
					h.refresh(ctx)
					queued(job.Record{}) // any lane: there may be work that no event told of
					break
				}
			}
			h.log.Error("Cannot watch the ledger; trying again", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
}

func (h *hub) publish(rec job.Record) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.subs[rec.ID] {
		s.put(rec)
	}
}

// refresh publishes the present record of every job that is waited for.
func (h *hub) refresh(ctx context.Context) {
	h.mu.Lock()
	ids := make([]job.ID, 0, len(h.subs))
	for id := range h.subs {
		ids = append(ids, id)
	}
	h.mu.Unlock()
	for _, id := range ids {
		if rec, err := h.ledger.Get(ctx, id); err == nil {
			h.publish(rec)
		}
	}
}
