package sqlite

import (
	"context"
	"fmt"
	"sync"

	"github.com/iterait/shepherd/ledger"
)

// maxEventBytes bounds what the failures of the kept events take: many long
// tracebacks are no reason to grow.
const maxEventBytes = 16 << 20

// watchStep is how many events a watcher takes from the feed at a time. It
// keeps what it took until it is sent, so it takes little.
const watchStep = 64

// feed keeps the latest events. Watchers read them from it, each at its own
// pace, so publishing waits for nobody.
type feed struct {
	keep int

	mu     sync.Mutex
	events []ledger.Event // the last is numbered last, without gaps
	last   int64
	bytes  int           // that the failures in events take
	more   chan struct{} // closed at the next event; nil when nobody waits for it

	closed   chan struct{}
	watchers sync.WaitGroup
}

// newFeed keeps up to keep events of those after the one numbered last.
func newFeed(keep int, last int64) *feed {
	return &feed{keep: keep, last: last, closed: make(chan struct{})}
}

func (f *feed) publish(events []ledger.Event) {
	if len(events) == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, event := range events {
		f.events = append(f.events, event)
		f.last = event.Seq
		f.bytes += failureBytes(event)
		for len(f.events) > f.keep || f.bytes > maxEventBytes && len(f.events) > 1 {
			f.bytes -= failureBytes(f.events[0])
			f.events[0] = ledger.Event{} // its texts can go now
			f.events = f.events[1:]
		}
	}
	if f.more != nil {
		close(f.more)
		f.more = nil
	}
}

func failureBytes(event ledger.Event) int {
	failure := event.Record.Failure
	if failure == nil {
		return 0
	}
	return len(failure.Message) + len(failure.Type) + len(failure.Traceback)
}

// after copies up to watchStep events that follow number n into step. Where
// there are none yet, it returns a channel that closes when there are.
func (f *feed) after(n int64, step []ledger.Event) ([]ledger.Event, <-chan struct{}, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone(n) {
		return nil, nil, ledger.ErrEventsGone
	}
	if n == f.last {
		if f.more == nil {
			f.more = make(chan struct{})
		}
		return nil, f.more, nil
	}
	from := len(f.events) - int(f.last-n)
	to := min(from+watchStep, len(f.events))
	return append(step[:0], f.events[from:to]...), nil, nil
}

// gone reports whether the events after number n are not kept. The caller has
// locked the feed.
func (f *feed) gone(n int64) bool { return n < f.last-int64(len(f.events)) || n > f.last }

// close ends all watches and waits for them. No watch begins after it.
func (f *feed) close() {
	close(f.closed)
	f.watchers.Wait()
}

// Watch implements ledger.Ledger. A number larger than that of the latest event
// is none this ledger gave out, and is answered like one too old. Events are
// kept in memory: after the ledger was opened anew, only the number of the
// latest change can be watched from.
func (l *Ledger) Watch(ctx context.Context, after int64) (<-chan ledger.Event, error) {
	if err := l.enter(); err != nil {
		return nil, fmt.Errorf("watch the ledger: %w", err)
	}
	defer l.calls.Done()
	events, err := l.feed.watch(ctx, after)
	if err != nil {
		return nil, fmt.Errorf("watch the ledger after event %d: %w", after, err)
	}
	return events, nil
}

func (f *feed) watch(ctx context.Context, after int64) (<-chan ledger.Event, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f.mu.Lock()
	if after < 0 {
		after = f.last
	}
	gone := f.gone(after)
	f.mu.Unlock()
	if gone {
		return nil, ledger.ErrEventsGone
	}
	events := make(chan ledger.Event)
	f.watchers.Go(func() {
		defer close(events)
		f.send(ctx, after, events)
	})
	return events, nil
}

// send sends the events after number n until ctx ends, the feed closes or the
// next event is no longer kept.
func (f *feed) send(ctx context.Context, n int64, events chan<- ledger.Event) {
	var step []ledger.Event
	for {
		next, more, err := f.after(n, step)
		if err != nil {
			return
		}
		if more != nil {
			select {
			case <-more:
				continue
			case <-ctx.Done():
				return
			case <-f.closed:
				return
			}
		}
		step = next
		for i := range step {
			select {
			case events <- step[i]:
				n = step[i].Seq
				step[i] = ledger.Event{}
			case <-ctx.Done():
				return
			case <-f.closed:
				return
			}
		}
	}
}
