package ledgertest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// after sets the jobs that a record is after.
func after(ids ...job.ID) func(*job.Record) { return func(r *job.Record) { r.After = ids } }

func group(name string) func(*job.Record) { return func(r *job.Record) { r.Group = name } }

// refuse creates a record and fails the test unless the ledger refuses it with want.
func (f *fixture) refuse(rec job.Record, want ledger.AfterError) {
	f.Helper()
	_, err := f.Create(f.Context(), rec)
	var refusal *ledger.AfterError
	if !errors.As(err, &refusal) || *refusal != want {
		f.Fatalf("Create(%s, after %v): %v, want %+v", rec.ID, rec.After, err, want)
	}
}

// testAfter: jobs wait until those that they are after are done.
func (s suite) testAfter(t *testing.T) {
	f := s.open(t, Options{})
	f.create("a")
	f.create("b")
	f.end("b")
	rec := f.create("x", after("a", "b"), priority(9))
	if !rec.Blocked || !slices.Equal(rec.After, []job.ID{"a", "b"}) {
		t.Fatalf("created %+v", rec)
	}
	if event := f.await(job.EventQueued, "x"); !event.Delayed {
		t.Fatalf("event %+v", event)
	}
	f.create("y", after("x"), priority(9))
	f.checkSame("kept", f.get("x"), rec)
	f.claimNothing(ledger.Slot{Node: "node", Sheep: "a", Only: "x"})
	if position, err := f.Position(t.Context(), "x", 10); err != nil || position != 0 {
		t.Fatalf("position %d, %v", position, err)
	}
	f.reopen()
	f.claimNothing(ledger.Slot{Node: "node", Sheep: "a", Only: "x"})
	c := f.claim(slot("a"), "a")
	f.release(c, unspent)
	f.end("a")
	if event := f.await(job.EventDue, "x"); event.State != job.Queued || event.Delayed {
		t.Fatalf("event %+v", event)
	}
	rec.Blocked = false
	f.checkSame("no longer blocked", f.get("x"), rec)
	f.claimNothing(ledger.Slot{Node: "node", Sheep: "a", Only: "y"})
	c = f.claim(slot("a"), "x") // by its priority
	f.crash()
	f.finish(c)
	f.await(job.EventDue, "y")
	f.claim(slot("a"), "y")
}

// testAfterFailed: a job that ends without outputs fails the jobs that are after it, and
// those after them. They can run again once it is done.
func (s suite) testAfterFailed(t *testing.T) {
	f := s.open(t, Options{})
	f.create("a")
	f.create("c")
	f.create("x", after("a"))
	f.create("y", after("x", "a"))
	f.create("z", after("c"))
	f.finishAs(f.claim(slot("a"), "a"), failed)
	for id, blamed := range map[string]string{"x": "a", "y": ""} {
		f.now()
		rec := f.get(id)
		for rec.State == job.Queued {
			f.await(job.EventEnded, id)
			rec = f.get(id)
		}
		if rec.State != job.Failed || rec.Blocked || rec.Failure == nil || !strings.Contains(rec.Failure.Message, "`"+blamed) || !strings.Contains(rec.Failure.Message, "failed; run that again") {
			t.Fatalf("%s ended as %+v", id, rec)
		}
	}
	f.cancel("c")
	f.at = ""
	if event := f.await(job.EventEnded, "z"); event.Cause != job.CauseAfter || event.Status == nil || event.Status.State != job.Failed || !strings.Contains(event.Reason, "`c`, whose outputs this one needs, was cancelled") {
		t.Fatalf("event %+v", event)
	}

	f.refuse(job.Record{ID: "x", Model: red, After: []job.ID{"a"}}, ledger.AfterError{Job: "a", State: job.Failed})
	f.refuse(job.Record{ID: "z", Model: red, After: []job.ID{"c"}}, ledger.AfterError{Job: "c", State: job.Cancelled})
	f.create("a")
	if again := f.create("x", after("a")); again.Run != 2 || !again.Blocked {
		t.Fatalf("again %+v", again)
	}
	f.now()
	f.end("a")
	f.await(job.EventDue, "x")
	f.claim(slot("a"), "x")
}

// testAfterRefused: jobs that could never run are refused.
func (s suite) testAfterRefused(t *testing.T) {
	f := s.open(t, Options{Retention: byModel})
	f.create("theirs", tenant("wool"))
	f.create("nobody's")
	f.refuse(job.Record{ID: "x", Model: red, After: []job.ID{"unknown"}}, ledger.AfterError{Job: "unknown"})
	f.refuse(job.Record{ID: "x", Model: red, After: []job.ID{"x"}}, ledger.AfterError{Job: "x"})
	f.refuse(job.Record{ID: "x", Model: red, Tenant: "meat", After: []job.ID{"theirs"}}, ledger.AfterError{Job: "theirs"})
	f.refuse(job.Record{ID: "x", Model: red, Tenant: "meat", After: []job.ID{"nobody's"}}, ledger.AfterError{Job: "nobody's"})
	if _, err := f.Get(t.Context(), "x"); !errors.Is(err, ledger.ErrNotFound) {
		t.Fatalf("a job that was refused is there: %v", err)
	}
	f.create("of wool", tenant("wool"), after("theirs"))
	f.create("anyone's", after("theirs", "nobody's"))

	f.create("gone")
	f.end("gone")
	if _, err := f.retention().BeginRemoval(t.Context(), "gone", 0, false); err != nil {
		t.Fatal(err)
	}
	f.refuse(job.Record{ID: "x", Model: red, After: []job.ID{"gone"}}, ledger.AfterError{Job: "gone", State: job.Done})
	if err := f.retention().EndRemoval(t.Context(), "gone"); err != nil {
		t.Fatal(err)
	}
	f.refuse(job.Record{ID: "x", Model: red, After: []job.ID{"gone"}}, ledger.AfterError{Job: "gone", State: job.Done})
}

// testNeeded: a job does not change while a job that has not ended is after it.
func (s suite) testNeeded(t *testing.T) {
	f := s.open(t, Options{Retention: byModel, KeepJobs: 3})
	f.create("a", model(blue)) // whose files are due at once
	f.end("a")
	f.create("b", model(job.Model{Name: "other", Version: "1"})) // whose files are kept
	f.end("b")
	x := f.create("x", after("a", "b"))
	if x.Blocked {
		t.Fatalf("created %+v", x)
	}
	time.Sleep(time.Millisecond)
	f.wantDue()
	check := func(want error) {
		t.Helper()
		if _, err := f.retention().BeginRemoval(t.Context(), "a", 0, true); !errors.Is(err, want) {
			t.Fatalf("BeginRemoval: %v, want %v", err, want)
		}
		if want == nil {
			want = ledger.ErrRemoving
		}
		if _, err := f.Create(t.Context(), job.Record{ID: "a", Model: red}); !errors.Is(err, want) {
			t.Fatalf("Create: %v, want %v", err, want)
		}
	}
	check(ledger.ErrNeeded)
	for i := range 6 { // so that older records expire
		f.create(fmt.Sprint("old", i), model(job.Model{Name: "other", Version: "1"}))
		f.end(fmt.Sprint("old", i))
	}
	if _, err := f.Get(t.Context(), "b"); err != nil {
		t.Fatalf("a job that is needed: %v", err)
	}
	f.reopen()
	c := f.claim(slot("a"), "x")
	check(ledger.ErrNeeded)
	f.finishAs(c, failed)
	f.wantDue("a")
	check(nil)
}

// testAfterNotBefore: a job waits for another job and for a time.
func (s suite) testAfterNotBefore(t *testing.T) {
	f := s.open(t, Options{})
	f.create("a")
	later := time.Now().Add(longTime)
	f.create("later", after("a"), func(r *job.Record) { r.NotBefore = later })
	f.create("past", after("a"), func(r *job.Record) { r.NotBefore = time.Now().Add(soon) })
	f.create("late", after("a"), func(r *job.Record) { r.Deadline = time.Now().Add(soon) })
	f.await(job.EventEnded, "late")
	time.Sleep(time.Until(f.get("past").NotBefore))
	f.claim(slot("a"), "a")
	f.claimNothing(slot("a"))
	f.now()
	held, err := f.Held(t.Context(), "node")
	if err != nil {
		t.Fatal(err)
	}
	f.finish(held[0])
	f.await(job.EventDue, "past")
	f.claim(slot("a"), "past")
	f.claimNothing(slot("a"))
	hung := time.Now().Add(patience)
	for rec := f.get("later"); rec.Blocked; rec = f.get("later") { // there is no event of this
		if time.Now().After(hung) {
			t.Fatalf("still blocked: %s", show(rec))
		}
		time.Sleep(time.Millisecond)
	}
	for _, event := range f.read() {
		if event.Kind == job.EventDue {
			t.Fatalf("event %+v", event)
		}
	}
}

// testAfterRace creates jobs that are after others, which end at the same time.
func (s suite) testAfterRace(t *testing.T) {
	f := s.open(t, Options{})
	const jobs = 20
	var racing sync.WaitGroup
	for i := range jobs {
		first, second := fmt.Sprint("first", i), fmt.Sprint("second", i)
		f.create(first)
		c := f.claim(ledger.Slot{Node: "node", Sheep: "a", Only: job.ID(first)}, first)
		racing.Go(func() {
			if _, err := f.Finish(t.Context(), c.ID, c.Token, done); err != nil {
				t.Errorf("Finish: %v", err)
			}
		})
		racing.Go(func() {
			if _, err := f.Create(t.Context(), job.Record{ID: job.ID(second), Model: blue, After: []job.ID{job.ID(first)}}); err != nil {
				t.Errorf("Create: %v", err)
			}
		})
	}
	racing.Wait()
	hung := time.After(patience)
	for {
		changed := f.Changed()
		claim, err := f.Claim(t.Context(), slot("a"))
		if err != nil {
			t.Fatal(err)
		}
		if claim == nil && f.count()[job.Queued] == 0 {
			return
		}
		if claim != nil {
			continue
		}
		select {
		case <-changed:
		case <-hung:
			t.Fatalf("%d jobs are blocked for ever", f.count()[job.Queued])
		}
	}
}

// testCreateAll creates several jobs together, or none of them.
func (s suite) testCreateAll(t *testing.T) {
	f := s.open(t, Options{})
	f.create("there")
	f.create("ended", labels(job.Labels{"a": "1"}))
	f.finish(f.claim(ledger.Slot{Node: "node", Sheep: "a", Only: "ended"}, "ended"))
	record := func(id string, with ...func(*job.Record)) job.Record {
		rec := job.Record{ID: job.ID(id), Model: red, Group: "g"}
		for _, set := range with {
			set(&rec)
		}
		return rec
	}
	for name, refused := range map[string]struct {
		recs []job.Record
		want error
		id   string
	}{
		"one is there":      {[]job.Record{record("x"), record("there"), record("y")}, ledger.ErrExists, "there"},
		"one is twice":      {[]job.Record{record("x"), record("y"), record("x")}, ledger.ErrExists, "x"},
		"after a later one": {[]job.Record{record("x", after("y")), record("y")}, &ledger.AfterError{Job: "y"}, "x"},
		"after none":        {[]job.Record{record("ended"), record("y", after("unknown"))}, &ledger.AfterError{Job: "unknown"}, "y"},
	} {
		f.now()
		_, err := f.CreateAll(t.Context(), refused.recs)
		var refusal *ledger.AfterError
		var of *ledger.RecordError
		if !errors.Is(err, refused.want) && (!errors.As(err, &refusal) || refusal.Job != refused.want.(*ledger.AfterError).Job) || !errors.As(err, &of) || string(of.ID) != refused.id {
			t.Errorf("%s: %v, want %v", name, err, refused.want)
		}
		if events := f.read(); len(events) > 0 {
			t.Errorf("%s: events %+v", name, events)
		}
		if _, err := f.Get(t.Context(), "x"); !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("%s: a job is there: %v", name, err)
		}
	}
	f.now()
	created, err := f.CreateAll(t.Context(), []job.Record{record("x", priority(2)), record("ended"), record("y", after("x", "ended"), tenant("wool")), record("z", after("x"))}[:2])
	if err != nil || len(created) != 2 || created[1].Run != 2 || created[0].Seq >= created[1].Seq {
		t.Fatalf("created %+v, %v", created, err)
	}
	more, err := f.CreateAll(t.Context(), []job.Record{record("y", after("x", "ended")), record("z", after("y")), record("free", group("h"))})
	if err != nil || len(more) != 3 || !more[0].Blocked || !more[1].Blocked || more[2].Blocked {
		t.Fatalf("created %+v, %v", more, err)
	}
	for i, event := range f.read() {
		if want := []job.ID{"x", "ended", "y", "z", "free"}[i]; event.Kind != job.EventQueued || event.Job != want {
			t.Errorf("event %d is %+v, want %s queued", i, event, want)
		}
	}
	f.crash()
	for i, rec := range slices.Concat(created, more) {
		f.checkSame(fmt.Sprint("created together, ", i), f.get(string(rec.ID)), rec)
	}
	if listed := ids(f.list(ledger.Filter{Group: "g"}, 2)); !slices.Equal(listed, []string{"x", "ended", "y", "z"}) {
		t.Errorf("of the group there are %v", listed)
	}
	if listed := ids(f.list(ledger.Filter{Group: "g", States: []job.State{job.Queued, job.Processing}, Newest: true}, 3)); !slices.Equal(listed, []string{"z", "y", "ended", "x"}) {
		t.Errorf("of the group there are %v", listed)
	}
	if listed := ids(f.list(ledger.Filter{Group: "g", Tenant: "wool"}, 2)); len(listed) > 0 {
		t.Errorf("of the group there are %v", listed)
	}
	f.claim(slot("a"), "x")
}
