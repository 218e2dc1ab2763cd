package ledgertest

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// testEvents compares the events of each change with what they have to say.
func (s suite) testEvents(t *testing.T) {
	f := s.open(t, Options{})
	f.create("before")
	f.now()
	model, tenantOf := model(blue), tenant("wool")

	queued := f.create("x", priority(1), model, tenantOf, sheep("a"))
	c := f.claim(ahead("a"), "x")
	started := f.start(c)
	f.start(c) // changes nothing
	f.release(c, ledger.Return{Cause: job.CauseDevice, Reason: "GPU 0 fell off"})
	if _, err := f.Create(f.Context(), job.Record{ID: "x"}); !errors.Is(err, ledger.ErrExists) { // nor does a refusal
		t.Fatal(err)
	}
	second := f.claim(slot("a"), "x")
	f.cancel("x")
	f.cancel("x")
	ended := f.finishAs(second, ledger.Outcome{State: job.Failed, Failure: &job.Failure{Message: "broken", Type: "T", Traceback: "t"}, Cause: job.CauseError, Reason: "it said no"})
	f.create("x")
	cancelled := f.cancel("x")
	if err := f.Ping(f.Context()); err != nil {
		t.Fatal(err)
	}
	f.create("last")

	base := job.Event{Job: "x", Run: 1, Model: blue, Address: "a", Tenant: "wool", State: job.Queued}
	with := func(kind job.EventKind, set func(*job.Event)) job.Event {
		event := base
		event.Kind = kind
		set(&event)
		return event
	}
	holder := func(e *job.Event) { e.Attempt, e.Node, e.Sheep = 1, "node", "a" }
	status, status2 := ended.Status(), cancelled.Status()
	want := []job.Event{
		with(job.EventQueued, func(*job.Event) {}),
		with(job.EventClaimed, holder),
		with(job.EventStarted, func(e *job.Event) { holder(e); e.State = job.Processing }),
		with(job.EventReturned, func(e *job.Event) { holder(e); e.Cause, e.Reason = job.CauseDevice, "GPU 0 fell off" }),
		with(job.EventStarted, func(e *job.Event) { holder(e); e.Attempt, e.State = 2, job.Processing }),
		with(job.EventCancelled, func(e *job.Event) { holder(e); e.Attempt, e.State = 2, job.Processing }),
		with(job.EventEnded, func(e *job.Event) {
			holder(e)
			e.Attempt, e.State, e.Cause, e.Reason, e.Status = 2, job.Cancelled, job.CauseCancelled, "it said no", &status
		}),
		with(job.EventQueued, func(e *job.Event) { e.Run, e.Model, e.Address = 2, red, "" }),
		with(job.EventEnded, func(e *job.Event) {
			e.Run, e.Model, e.Address = 2, red, ""
			e.State, e.Cause, e.Status = job.Cancelled, job.CauseCancelled, &status2
		}),
		{Kind: job.EventQueued, Job: "last", Run: 1, Model: red, State: job.Queued},
	}
	got := f.read()
	if len(got) != len(want) {
		t.Fatalf("%d events, want %d: %+v", len(got), len(want), got)
	}
	var last time.Time
	for i := range want {
		if got[i].Cursor == "" || got[i].At.Before(last) || got[i].At.Location() != time.UTC {
			t.Fatalf("event %d, after %v: %+v", i+1, last, got[i])
		}
		last = got[i].At
		checkEvent(f, got[i], want[i])
	}
	if !got[0].At.Equal(queued.EnqueuedAt) || !got[2].At.Equal(started.StartedAt) {
		t.Fatalf("queued at %v, event at %v; started at %v, event at %v", queued.EnqueuedAt, got[0].At, started.StartedAt, got[2].At)
	}
}

// checkEvent compares an event, except for its cursor and time.
func checkEvent(t tb, got, want job.Event) {
	t.Helper()
	gotStatus, wantStatus := "none", "none"
	for _, one := range []struct {
		event job.Event
		text  *string
	}{{got, &gotStatus}, {want, &wantStatus}} {
		if one.event.Status != nil {
			text, err := one.event.Status.MarshalJSON()
			if err != nil {
				t.Fatalf("status of %+v: %v", one.event, err)
			}
			*one.text = string(text)
		}
	}
	got.Cursor, want.Cursor = "", ""
	got.At, want.At = time.Time{}, time.Time{}
	got.Status, want.Status = nil, nil
	if got != want || gotStatus != wantStatus {
		t.Fatalf("event:\n got %+v, status %s\nwant %+v, status %s", got, gotStatus, want, wantStatus)
	}
}

// testEventsFilter reads the events of a job, of a tenant and of both, a few at a time:
// all that match, in order.
func (s suite) testEventsFilter(t *testing.T) {
	f := s.open(t, Options{})
	for i := range 30 {
		id := fmt.Sprint("job", i%5)
		f.create(id, tenant([]string{"", "wool", "meat", "wool", ""}[i%5]))
		f.finish(f.claim(slot("a"), id))
	}
	all := f.read()
	for _, again := range []func(){func() {}, f.reopen} { // from memory, then from the file
		again()
		for _, filter := range []ledger.EventFilter{{}, {Job: "job1"}, {Tenant: "wool"}, {Job: "job3", Tenant: "wool"}, {Job: "job1", Tenant: "meat"}, {Tenant: "milk"}, {Job: "job9"}} {
			for _, limit := range []int{1, 4, 1000} {
				for _, from := range []int{-1, 0, 13, len(all) - 1} {
					var want []job.Event
					cursor := job.Cursor("")
					if from >= 0 {
						cursor = all[from].Cursor
					}
					for _, event := range all[from+1:] {
						if filter.Matches(event) {
							want = append(want, event)
						}
					}
					var got []job.Event
					for {
						events, next, err := f.Events(f.Context(), cursor, filter, limit)
						if err != nil || len(events) > limit {
							t.Fatalf("Events gave %d, %v; the limit is %d", len(events), err, limit)
						}
						cursor = next
						got = append(got, events...)
						if len(events) == 0 {
							break
						}
					}
					if !slices.EqualFunc(got, want, func(a, b job.Event) bool { return a.Cursor == b.Cursor && a.Kind == b.Kind }) {
						t.Fatalf("%+v from %d by %d: %d events, want %d", filter, from, limit, len(got), len(want))
					}
					if now, err := f.Now(f.Context()); err != nil || cursor == "" {
						t.Fatalf("the cursor is %q, now is %q, %v", cursor, now, err)
					}
				}
			}
		}
	}
	if _, _, err := f.Events(f.Context(), "", ledger.EventFilter{}, 0); !errdefs.IsInternal(err) {
		t.Fatalf("Events with a limit of 0 answered %v", err)
	}
}

// testNewestEvents reads the newest events of a job, of a tenant and of both, and goes on
// from there: no event is missing and none comes twice. Of those that are no longer kept
// none comes.
func (s suite) testNewestEvents(t *testing.T) {
	f := s.open(t, Options{})
	newest := func(filter ledger.EventFilter, most int) ([]job.Event, job.Cursor) {
		t.Helper()
		events, next, err := f.NewestEvents(f.Context(), filter, most)
		if err != nil || next == "" {
			t.Fatalf("NewestEvents of %+v by %d: the cursor %q, %v", filter, most, next, err)
		}
		return events, next
	}
	same := func(a, b job.Event) bool {
		return a.Cursor == b.Cursor && a.Job == b.Job && a.Kind == b.Kind && (a.Status == nil) == (b.Status == nil)
	}
	none, next := newest(ledger.EventFilter{}, 10)
	if len(none) != 0 {
		t.Fatalf("of an empty ledger: %+v", none)
	}
	f.at = next
	run := func(from, to int) {
		for i := from; i < to; i++ {
			id := fmt.Sprint("job", i%5)
			f.create(id, tenant([]string{"", "wool", "meat", "wool", ""}[i%5]))
			f.finish(f.claim(slot("a"), id))
		}
	}
	run(0, 30)
	all := f.read()
	if len(all) != 90 {
		t.Fatalf("%d events after the cursor of an empty ledger, want 90", len(all))
	}
	filters := []ledger.EventFilter{{}, {Job: "job1"}, {Tenant: "wool"}, {Job: "job3", Tenant: "wool"}, {Job: "job1", Tenant: "meat"}, {Tenant: "milk"}, {Job: "job9"}}
	for i, again := range []func(){func() {}, f.reopen} { // from memory, then from the file
		again()
		next := make([]job.Cursor, len(filters))
		for k, filter := range filters {
			var matching []job.Event
			for _, event := range all {
				if filter.Matches(event) {
					matching = append(matching, event)
				}
			}
			for _, most := range []int{1, 4, 1000} {
				var got []job.Event
				got, next[k] = newest(filter, most)
				if want := matching[max(0, len(matching)-most):]; !slices.EqualFunc(got, want, same) {
					t.Fatalf("the newest %d of %+v: %d events, want %d: %+v", most, filter, len(got), len(want), got)
				}
			}
		}
		run(5*i, 5*i+5)
		all = append(all, f.read()...)
		for k, filter := range filters {
			var want []job.Event
			for _, event := range all[len(all)-15:] {
				if filter.Matches(event) {
					want = append(want, event)
				}
			}
			if got, _, err := f.Events(f.Context(), next[k], filter, 1000); err != nil || !slices.EqualFunc(got, want, same) {
				t.Fatalf("after the newest of %+v: %d events, want %d, %v", filter, len(got), len(want), err)
			}
		}
	}
	if _, _, err := f.NewestEvents(f.Context(), ledger.EventFilter{}, 0); !errdefs.IsInternal(err) {
		t.Fatalf("NewestEvents of none answered %v", err)
	}
}

// testEventsDurable reads all events again, and continues from a cursor, after the ledger
// was closed or its process killed.
func (s suite) testEventsDurable(t *testing.T) {
	f := s.open(t, Options{})
	var seen []job.Event
	for i, again := range []func(){f.reopen, f.crash, f.crash, f.reopen} {
		id := fmt.Sprint("job", i)
		f.create(id, tenant("wool"))
		f.finishAs(f.claim(slot("a"), id), failed)
		if i > 0 {
			f.cancel(fmt.Sprint("more", i-1))
		}
		seen = append(seen, f.read()...)
		f.create(fmt.Sprint("more", i), priority(-1)) // unread when the ledger is opened again
		at := f.at
		again()
		f.at = ""
		all := f.read()
		if len(all) != len(seen)+1 {
			t.Fatalf("%d events are left of %d", len(all), len(seen)+1)
		}
		for i, event := range seen {
			if all[i].Cursor != event.Cursor || !all[i].At.Equal(event.At) {
				t.Fatalf("event %d is %+v, was %+v", i, all[i], event)
			}
			checkEvent(f, all[i], event)
		}
		f.at = at
		next := f.read()
		if len(next) != 1 || string(next[0].Job) != fmt.Sprint("more", i) {
			t.Fatalf("after the last one that was read: %+v", next)
		}
		seen = append(seen, next...)
	}
}

func (s suite) testEventsGone(t *testing.T) {
	f := s.open(t, Options{EventNumber: 16})
	f.create("first")
	f.now()
	old := f.at
	var newest job.Cursor
	gone := false
	for i := 0; !gone && i < 300; i++ { // an implementation may remove them later
		f.create(fmt.Sprint("job", i))
		f.now()
		newest = f.at
		_, _, err := f.Events(f.Context(), old, ledger.EventFilter{}, 10)
		if gone = errors.Is(err, ledger.ErrEventsGone); err != nil && !gone {
			t.Fatal(err)
		}
	}
	if !gone {
		// Memory may have more events; the file has none of these.
		f.reopen()
		if _, _, err := f.Events(f.Context(), old, ledger.EventFilter{}, 10); !errors.Is(err, ledger.ErrEventsGone) || !errdefs.IsOutOfRange(err) {
			t.Fatalf("Events from long ago answered %v", err)
		}
	}
	f.at = newest
	f.create("next")
	if events := f.read(); len(events) != 1 || events[0].Job != "next" {
		t.Fatalf("after the latest: %+v", events)
	}
	f.at = ""
	kept := f.read()
	if len(kept) < 16 || kept[len(kept)-1].Job != "next" {
		t.Fatalf("%d events are kept, want 16 at least", len(kept))
	}
	last, _, err := f.NewestEvents(f.Context(), ledger.EventFilter{}, 1000)
	if err != nil || len(last) < 16 || last[len(last)-1].Job != "next" {
		t.Fatalf("the newest of those that are kept: %d, %v", len(last), err)
	}
	for _, none := range []job.Cursor{"no cursor", "-5", "99999999999999999999999999"} {
		if _, _, err := f.Events(f.Context(), none, ledger.EventFilter{}, 10); !errors.Is(err, ledger.ErrEventsGone) {
			t.Errorf("Events after %q answered %v", none, err)
		}
	}
}

// testEventsConcurrent reads events while many goroutines make changes: each reader gets
// every event once, all readers in the same order, and the events of a job in the order
// of its changes.
func (s suite) testEventsConcurrent(t *testing.T) {
	f := s.open(t, Options{})
	const workers, each, readers = 8, 25, 3
	const total = 2 * workers * each
	start, err := f.Now(f.Context())
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	read := make([][]job.Event, readers)
	for i := range readers {
		group.Go(func() {
			at := start
			hung := time.After(patience)
			for len(read[i]) < total {
				changed := f.Changed()
				events, next, err := f.Events(t.Context(), at, ledger.EventFilter{}, 1+9*i)
				if err != nil {
					t.Errorf("Events: %v", err)
					return
				}
				at = next
				read[i] = append(read[i], events...)
				if len(events) == 0 {
					select {
					case <-changed:
					case <-hung:
						t.Errorf("reader %d has %d of %d events", i, len(read[i]), total)
						return
					}
				}
			}
		})
	}
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
	if t.Failed() {
		return
	}
	for i, events := range read {
		states := map[job.ID]job.State{}
		for n, event := range events {
			if event.Cursor != read[0][n].Cursor {
				t.Fatalf("reader %d has %+v in place %d", i, event, n)
			}
			if before := states[event.Job]; before == "" && event.Kind != job.EventQueued || before != "" && (before != job.Queued || event.Kind != job.EventEnded) {
				t.Fatalf("%s was %q when it was %s", event.Job, before, event.Kind)
			}
			states[event.Job] = event.State
		}
	}
}

// testChanged: a reader that calls Changed, then Events, then waits, misses no event.
func (s suite) testChanged(t *testing.T) {
	f := s.open(t, Options{})
	changed := f.Changed()
	select {
	case <-changed:
		t.Fatal("a change without any")
	default:
	}
	f.create("x")
	select {
	case <-changed:
	case <-time.After(patience):
		t.Fatal("the change was not told")
	}
	changed = f.Changed()
	if err := f.Ping(f.Context()); err != nil {
		t.Fatal(err)
	}
	f.get("x")
	select { // the channel may be closed without an event, but not again and again
	case <-changed:
	default:
	}
	f.close()
	select {
	case <-changed:
	case <-time.After(patience):
		t.Fatal("whoever waits for a change waits beyond the ledger's end")
	}
	f.Ledger = f.harness.Open(f.outer)
}

func (s suite) testCheckpoint(t *testing.T) {
	f := s.open(t, Options{})
	check := func(consumer string, want job.Cursor) {
		t.Helper()
		got, err := f.Checkpoint(f.Context(), consumer)
		if want == "" && !errors.Is(err, ledger.ErrNotFound) || want != "" && (err != nil || got != want) {
			t.Fatalf("%s is at %q, %v; want %q", consumer, got, err, want)
		}
	}
	set := func(consumer string, at job.Cursor) {
		t.Helper()
		if err := f.SetCheckpoint(f.Context(), consumer, at); err != nil {
			t.Fatal(err)
		}
	}
	check("a", "")
	f.create("x")
	f.now()
	first := f.at
	set("a", first)
	set("a", first)
	check("a", first)
	check("b", "")
	f.crash()
	check("a", first)
	f.create("y")
	f.now()
	set("a", f.at)
	set("b", first)
	f.reopen()
	check("a", f.at)
	check("b", first)
	f.at = first
	if events := f.read(); len(events) != 1 || events[0].Job != "y" {
		t.Fatalf("after the checkpoint: %+v", events)
	}
}
