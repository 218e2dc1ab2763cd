package ledgertest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

func (f *fixture) watch(ctx context.Context, after int64) <-chan ledger.Event {
	f.Helper()
	events, err := f.Watch(ctx, after)
	if err != nil {
		f.Fatalf("Watch(%d): %v", after, err)
	}
	return events
}

// next receives one event.
func (f *fixture) next(events <-chan ledger.Event) ledger.Event {
	f.Helper()
	select {
	case event, ok := <-events:
		if !ok {
			f.Fatalf("the watch ended")
		}
		return event
	case <-time.After(patience):
		f.Fatalf("no event came")
	}
	panic("unreachable")
}

// rest receives what is still sent until the channel closes.
func (f *fixture) rest(events <-chan ledger.Event) []ledger.Event {
	f.Helper()
	var all []ledger.Event
	hung := time.After(patience)
	for {
		select {
		case event, ok := <-events:
			if !ok {
				return all
			}
			all = append(all, event)
		case <-hung:
			f.Fatalf("the watch did not end")
		}
	}
}

// testWatch sees each change once, as the record was after it.
func (s suite) testWatch(t *testing.T) {
	f := s.open(t, Options{})
	f.create("before")
	events := f.watch(f.Context(), -1)
	var want []job.Record
	note := func(r job.Record) { want = append(want, r) }

	note(f.create("x", priority(1)))
	c := f.claim(ledger.Slot{Node: "n", Sheep: "a", Ahead: true}, "x")
	note(c.Record)
	note(f.start(c))
	f.start(c) // changes nothing
	f.release(c, true)
	note(f.get("x"))
	if _, err := f.Create(f.Context(), job.Record{ID: "x"}); !errors.Is(err, ledger.ErrExists) { // nor does a refusal
		t.Fatal(err)
	}
	c = f.claim(slot("b"), "x")
	note(c.Record)
	failed, err := f.Finish(f.Context(), "x", c.Token, ledger.Outcome{State: job.Failed, Failure: &job.Failure{Message: "broken"}})
	if err != nil {
		t.Fatal(err)
	}
	note(failed)
	note(f.create("x"))
	note(f.cancel("x"))
	if err := f.Ping(f.Context()); err != nil {
		t.Fatal(err)
	}
	note(f.create("last"))

	var seq int64
	for i, r := range want {
		event := f.next(events)
		if i > 0 && event.Seq != seq+1 {
			t.Fatalf("event %d follows %d", event.Seq, seq)
		}
		seq = event.Seq
		f.checkSame(fmt.Sprintf("event %d", i+1), event.Record, r)
	}
}

// testWatchFrom watches again from where an earlier watch ended.
func (s suite) testWatchFrom(t *testing.T) {
	f := s.open(t, Options{Events: 1000})
	all := f.watch(f.Context(), 0)
	for i := range 20 {
		f.create(fmt.Sprint("job", i))
	}
	var seen []ledger.Event
	for range 20 {
		seen = append(seen, f.next(all))
	}
	for i, event := range seen {
		if event.Seq != int64(i+1) || event.Record.ID != job.ID(fmt.Sprint("job", i)) {
			t.Fatalf("event %d is number %d of %s", i+1, event.Seq, event.Record.ID)
		}
	}
	for from := range 20 {
		ctx, end := context.WithCancel(f.Context())
		events := f.watch(ctx, int64(from))
		for i := from; i < 20; i++ {
			if event := f.next(events); event.Seq != seen[i].Seq || !same(event.Record, seen[i].Record) {
				t.Fatalf("from %d: event %d, want %d", from, event.Seq, seen[i].Seq)
			}
		}
		end()
		f.rest(events)
	}
	// Numbers go on where they were, and a watcher that had seen all misses
	// nothing.
	for name, again := range map[string]func(){"reopened": f.reopen, "killed": f.crash} {
		last := seen[len(seen)-1].Seq
		again()
		events := f.watch(f.Context(), last)
		f.create(name)
		event := f.next(events)
		if event.Seq != last+1 || event.Record.ID != job.ID(name) {
			t.Fatalf("%s: event %d of %s, want %d", name, event.Seq, event.Record.ID, last+1)
		}
		seen = append(seen, event)
	}
}

func (s suite) testWatchGone(t *testing.T) {
	f := s.open(t, Options{Events: 8})
	const n = 500
	for i := range n {
		f.create(fmt.Sprint("job", i))
	}
	if _, err := f.Watch(f.Context(), 1); !errors.Is(err, ledger.ErrEventsGone) {
		t.Fatalf("Watch from long ago answered %v", err)
	}
	events := f.watch(f.Context(), n-8)
	for i := n - 8; i < n; i++ {
		if event := f.next(events); event.Seq != int64(i+1) {
			t.Fatalf("event %d, want %d", event.Seq, i+1)
		}
	}
	if _, err := f.Watch(f.Context(), n+1); !errors.Is(err, ledger.ErrEventsGone) {
		t.Fatalf("Watch from a number that was never given out answered %v", err)
	}
}

// testWatchSlow lets a watcher fall behind: what it gets is without gaps, and
// then it is cut off. Nobody else notices.
func (s suite) testWatchSlow(t *testing.T) {
	f := s.open(t, Options{Events: 8})
	slow, prompt := f.watch(f.Context(), -1), f.watch(f.Context(), -1)
	const n = 500
	for i := range n {
		f.create(fmt.Sprint("job", i))
		if event := f.next(prompt); event.Seq != int64(i+1) {
			t.Fatalf("event %d, want %d", event.Seq, i+1)
		}
	}
	got := f.rest(slow)
	if len(got) == n {
		t.Fatalf("the watcher was not cut off: all %d events were kept for it", n)
	}
	for i, event := range got {
		if event.Seq != int64(i+1) {
			t.Fatalf("event %d, want %d", event.Seq, i+1)
		}
	}
}

func (s suite) testWatchEnds(t *testing.T) {
	f := s.open(t, Options{})
	ctx, end := context.WithCancel(f.Context())
	idle, unread := f.watch(ctx, -1), f.watch(ctx, -1)
	f.create("x")
	f.next(idle)
	end()
	if got := f.rest(idle); len(got) != 0 {
		t.Fatalf("%d more events", len(got))
	}
	f.rest(unread)
	if _, err := f.Watch(ctx, -1); !errors.Is(err, context.Canceled) {
		t.Fatalf("Watch by an ended context answered %v", err)
	}

	open := f.watch(f.Context(), -1)
	f.reopen()
	f.rest(open)
}

// testWatchConcurrent watches many goroutines' changes: the events of each
// watcher are all there are, in the same order.
func (s suite) testWatchConcurrent(t *testing.T) {
	f := s.open(t, Options{Events: 1 << 16})
	const workers, each, watchers = 8, 25, 3
	var channels []<-chan ledger.Event
	for range watchers {
		channels = append(channels, f.watch(f.Context(), -1))
	}
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			for i := range each {
				id := job.ID(fmt.Sprintf("job-%d-%d", w, i))
				if _, err := f.Create(t.Context(), job.Record{ID: id, Model: red}); err != nil {
					t.Errorf("Create: %v", err)
				}
				if _, err := f.Cancel(t.Context(), id); err != nil {
					t.Errorf("Cancel: %v", err)
				}
			}
		})
	}
	group.Wait()
	var first []ledger.Event
	for w, events := range channels {
		states := map[job.ID]job.State{}
		for i := range 2 * workers * each {
			event := f.next(events)
			if event.Seq != int64(i+1) {
				t.Fatalf("event %d, want %d", event.Seq, i+1)
			}
			before, there := states[event.Record.ID]
			if there && (before != job.Queued || event.Record.State != job.Cancelled) || !there && event.Record.State != job.Queued {
				t.Fatalf("%s went from %q to %q", event.Record.ID, before, event.Record.State)
			}
			states[event.Record.ID] = event.Record.State
			if w == 0 {
				first = append(first, event)
			} else if !same(event.Record, first[i].Record) {
				t.Fatalf("watchers disagree on event %d", event.Seq)
			}
		}
	}
}
