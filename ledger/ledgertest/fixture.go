package ledgertest

import (
	"context"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// patience is how long a test waits for something before it fails.
const patience = 2 * time.Minute

// The models that the tests use.
var (
	red  = job.Model{Name: "red", Version: "1"}
	blue = job.Model{Name: "blue", Version: "1"}
)

// tb is what *testing.T and *rapid.T share.
type tb interface {
	Helper()
	Context() context.Context
	Fatalf(format string, args ...any)
}

// The nodes that the tests claim for.
var nodes = []string{"node", "other"}

// fixture is an open ledger, joined by the nodes. Its methods make calls and fail the test
// unless the ledger answers as it has to.
type fixture struct {
	tb
	ledger.Ledger
	harness Harness
	outer   *testing.T
	at      job.Cursor // of the last event that was read
}

// open opens an empty ledger for the test.
func (s suite) open(t *testing.T, options Options) *fixture {
	t.Helper()
	f := newFixture(t, t, s.newHarness(t, options))
	t.Cleanup(func() { f.close() })
	return f
}

// of returns the fixture for a subtest.
func (f *fixture) of(t *testing.T) *fixture {
	part := *f
	part.tb = t
	return &part
}

// putAway ends the job, whether it is held or not.
func (f *fixture) putAway(id job.ID) {
	f.Helper()
	rec, err := f.Get(f.Context(), id)
	if err == nil && !rec.State.Final() {
		rec, err = f.Cancel(f.Context(), id)
	}
	if err == nil && !rec.State.Final() {
		var held []ledger.Claim
		held, err = f.Held(f.Context(), rec.Node)
		for _, c := range held {
			if c.ID == id {
				_, err = f.Finish(f.Context(), id, c.Token, done)
			}
		}
	}
	if err != nil {
		f.Fatalf("end %s: %v", id, err)
	}
}

func newFixture(t tb, outer *testing.T, harness Harness) *fixture {
	f := &fixture{tb: t, outer: outer, harness: harness, Ledger: harness.Open(outer)}
	f.join()
	return f
}

func (f *fixture) join() {
	for _, node := range nodes {
		if _, err := f.Join(f.Context(), node); err != nil {
			f.Fatalf("Join(%s): %v", node, err)
		}
	}
}

func (f *fixture) close() {
	if err := f.Ledger.Close(); err != nil {
		f.outer.Errorf("Close: %v", err)
	}
}

func (f *fixture) reopen() {
	f.close()
	f.Ledger = f.harness.Open(f.outer)
	f.join()
}

func (f *fixture) crash() {
	after := f.harness.Crash(f.outer, f.Ledger)
	f.close()
	f.Ledger = after
	f.join()
}

// create queues a job, of model red unless an option sets another.
func (f *fixture) create(id string, with ...func(*job.Record)) job.Record {
	f.Helper()
	rec := job.Record{ID: job.ID(id), Model: red}
	for _, set := range with {
		set(&rec)
	}
	kept, err := f.Create(f.Context(), rec)
	if err != nil {
		f.Fatalf("Create(%s): %v", id, err)
	}
	return kept
}

func model(m job.Model) func(*job.Record)   { return func(r *job.Record) { r.Model = m } }
func sheep(name string) func(*job.Record)   { return func(r *job.Record) { r.Sheep = name } }
func tenant(name string) func(*job.Record)  { return func(r *job.Record) { r.Tenant = name } }
func labels(l job.Labels) func(*job.Record) { return func(r *job.Record) { r.Labels = l } }
func priority(n int) func(*job.Record)      { return func(r *job.Record) { r.Priority = n } }
func slot(name string) ledger.Slot          { return ledger.Slot{Node: "node", Sheep: name} }
func ahead(name string) ledger.Slot {
	return ledger.Slot{Node: "node", Sheep: name, Ahead: true}
}
func prefer(name string, m job.Model) ledger.Slot {
	return ledger.Slot{Node: "node", Sheep: name, Prefer: m}
}

// Outcomes and returns for tests in which the details do not matter.
var (
	done     = ledger.Outcome{State: job.Done, Cause: job.CauseDone}
	failed   = ledger.Outcome{State: job.Failed, Cause: job.CauseError, Failure: &job.Failure{Message: "broken"}}
	spent    = ledger.Return{Cause: job.CauseInterrupted, Spent: true}
	unspent  = ledger.Return{Cause: job.CauseHandedBack}
	longTime = 24 * time.Hour
)

// claim claims a job for the slot, which must be the one with the given id.
func (f *fixture) claim(s ledger.Slot, want string) ledger.Claim {
	f.Helper()
	claim, err := f.Claim(f.Context(), s)
	if err != nil {
		f.Fatalf("Claim(%+v): %v", s, err)
	}
	if claim == nil {
		f.Fatalf("Claim(%+v) gave nothing, want %s", s, want)
		panic("unreachable")
	}
	if string(claim.ID) != want {
		f.Fatalf("Claim(%+v) gave %s, want %s", s, claim.ID, want)
	}
	return *claim
}

// claimNothing makes a claim for the slot, which must find no job.
func (f *fixture) claimNothing(s ledger.Slot) {
	f.Helper()
	claim, err := f.Claim(f.Context(), s)
	if err != nil || claim != nil {
		f.Fatalf("Claim(%+v) = %+v, %v; want nothing", s, claim, err)
	}
}

func (f *fixture) start(c ledger.Claim) job.Record {
	f.Helper()
	rec, err := f.Start(f.Context(), c.ID, c.Token)
	if err != nil {
		f.Fatalf("Start(%s): %v", c.ID, err)
	}
	return rec
}

func (f *fixture) finish(c ledger.Claim) job.Record { f.Helper(); return f.finishAs(c, done) }

func (f *fixture) finishAs(c ledger.Claim, outcome ledger.Outcome) job.Record {
	f.Helper()
	rec, err := f.Finish(f.Context(), c.ID, c.Token, outcome)
	if err != nil {
		f.Fatalf("Finish(%s): %v", c.ID, err)
	}
	return rec
}

func (f *fixture) release(c ledger.Claim, why ledger.Return) job.Record {
	f.Helper()
	rec, err := f.Release(f.Context(), c.ID, c.Token, why)
	if err != nil {
		f.Fatalf("Release(%s): %v", c.ID, err)
	}
	return rec
}

func (f *fixture) attempts(id string) []job.Attempt {
	f.Helper()
	attempts, err := f.Attempts(f.Context(), job.ID(id))
	if err != nil {
		f.Fatalf("Attempts(%s): %v", id, err)
	}
	return attempts
}

func (f *fixture) cancel(id string) job.Record {
	f.Helper()
	rec, err := f.Cancel(f.Context(), job.ID(id))
	if err != nil {
		f.Fatalf("Cancel(%s): %v", id, err)
	}
	return rec
}

func (f *fixture) get(id string) job.Record {
	f.Helper()
	rec, err := f.Get(f.Context(), job.ID(id))
	if err != nil {
		f.Fatalf("Get(%s): %v", id, err)
	}
	return rec
}

func (f *fixture) count() ledger.Counts {
	f.Helper()
	counts, err := f.Count(f.Context())
	if err != nil {
		f.Fatalf("Count: %v", err)
	}
	return counts
}

// list pages through all records that match.
func (f *fixture) list(filter ledger.Filter, limit int) []job.Record {
	f.Helper()
	var all []job.Record
	for cursor, pages := int64(0), 0; ; pages++ {
		page, next, err := f.List(f.Context(), filter, cursor, limit)
		if err != nil {
			f.Fatalf("List(%+v, %d, %d): %v", filter, cursor, limit, err)
		}
		if len(page) > limit {
			f.Fatalf("List gave %d records, the limit is %d", len(page), limit)
		}
		all = append(all, page...)
		if next == 0 {
			return all
		}
		on := len(page) > 0 && next > cursor && next > page[len(page)-1].Seq
		if filter.Newest {
			on = len(page) > 0 && (cursor == 0 || next < cursor) && next < page[len(page)-1].Seq
		}
		if !on {
			f.Fatalf("List(%+v, %d, %d) gave %d records and the cursor %d: that goes on without end", filter, cursor, limit, len(page), next)
		}
		cursor = next
	}
}

// read returns the events since the last read.
func (f *fixture) read() []job.Event {
	f.Helper()
	var all []job.Event
	for {
		events, next, err := f.Events(f.Context(), f.at, ledger.EventFilter{}, 7)
		if err != nil {
			f.Fatalf("Events(%q): %v", f.at, err)
		}
		if len(events) > 7 {
			f.Fatalf("Events gave %d events, the limit is 7", len(events))
		}
		all = append(all, events...)
		f.at = next
		if len(events) == 0 {
			return all
		}
	}
}

// now skips the events up to now.
func (f *fixture) now() {
	f.Helper()
	at, err := f.Now(f.Context())
	if err != nil {
		f.Fatalf("Now: %v", err)
	}
	f.at = at
}

// await reads events until the first of the kind about the job, and returns it. It does
// not read the events after it.
func (f *fixture) await(kind job.EventKind, id string) job.Event {
	f.Helper()
	hung := time.After(patience)
	for {
		changed := f.Changed()
		events, next, err := f.Events(f.Context(), f.at, ledger.EventFilter{}, 1)
		if err != nil {
			f.Fatalf("Events(%q): %v", f.at, err)
		}
		f.at = next
		if len(events) > 0 {
			if events[0].Kind == kind && string(events[0].Job) == id {
				return events[0]
			}
			continue
		}
		select {
		case <-changed:
		case <-hung:
			f.Fatalf("no event %s of %s came", kind, id)
		}
	}
}

// same compares records; times are equal if they are the same instant.
func same(a, b job.Record) bool {
	at, bt := times(&a), times(&b)
	for i := range at {
		if !at[i].Equal(*bt[i]) {
			return false
		}
	}
	return reflect.DeepEqual(timeless(a), timeless(b))
}

// times returns all times of a record.
func times(r *job.Record) []*time.Time {
	return []*time.Time{&r.EnqueuedAt, &r.StartedAt, &r.FinishedAt, &r.NotBefore, &r.WaitUntil, &r.Deadline}
}

func timeless(r job.Record) job.Record {
	for _, t := range times(&r) {
		*t = time.Time{}
	}
	return r
}

// checkSame fails the test unless the ledger's record is the wanted one.
func (f *fixture) checkSame(what string, got, want job.Record) {
	f.Helper()
	if !same(got, want) {
		f.Fatalf("%s:\n got %s\nwant %s", what, show(got), show(want))
	}
}

// checkTimes fails the test unless exactly the times that r's state has are
// set, as records keep them.
func (f *fixture) checkTimes(r job.Record, started, finished bool) {
	f.Helper()
	for _, at := range []struct {
		name string
		time time.Time
		set  bool
	}{{"EnqueuedAt", r.EnqueuedAt, true}, {"StartedAt", r.StartedAt, started}, {"FinishedAt", r.FinishedAt, finished}} {
		if at.time.IsZero() == at.set {
			f.Fatalf("job %s, %s: %s is %v", r.ID, r.State, at.name, at.time)
		}
		if at.set && (at.time.Location() != time.UTC || !at.time.Equal(at.time.Truncate(time.Microsecond))) {
			f.Fatalf("job %s: %s is %v, want UTC in whole microseconds", r.ID, at.name, at.time)
		}
	}
}

func show(r job.Record) string {
	failure := "none"
	if r.Failure != nil {
		failure = fmt.Sprintf("%+v", *r.Failure)
	}
	return fmt.Sprintf("%+v, failure %s", r, failure)
}

// ids returns the ids of records in their order.
func ids(records []job.Record) []string {
	names := make([]string, len(records))
	for i, r := range records {
		names[i] = string(r.ID)
	}
	return names
}
