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

// patience is how long a test waits for what has to happen before it takes it
// for hung.
const patience = 30 * time.Second

// The models that the tests name.
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

// fixture is an open ledger with methods that fail the test where the ledger
// does not do what it has to.
type fixture struct {
	tb
	ledger.Ledger
	harness Harness
	outer   *testing.T
}

// open opens an empty ledger for the test.
func (s suite) open(t *testing.T, options Options) *fixture {
	t.Helper()
	harness := s.newHarness(t, options)
	f := &fixture{tb: t, outer: t, harness: harness, Ledger: harness.Open(t)}
	t.Cleanup(func() { f.close() })
	return f
}

func (f *fixture) close() {
	if err := f.Ledger.Close(); err != nil {
		f.outer.Errorf("Close: %v", err)
	}
}

func (f *fixture) reopen() {
	f.close()
	f.Ledger = f.harness.Open(f.outer)
}

func (f *fixture) crash() {
	after := f.harness.Crash(f.outer, f.Ledger)
	f.close()
	f.Ledger = after
}

// create queues a job, of model red unless told otherwise.
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

func model(m job.Model) func(*job.Record)  { return func(r *job.Record) { r.Model = m } }
func sheep(name string) func(*job.Record)  { return func(r *job.Record) { r.Sheep = name } }
func tenant(name string) func(*job.Record) { return func(r *job.Record) { r.Tenant = name } }
func priority(n int) func(*job.Record)     { return func(r *job.Record) { r.Priority = n } }
func slot(name string) ledger.Slot         { return ledger.Slot{Node: "node", Sheep: name} }
func loaded(name string, m job.Model) ledger.Slot {
	return ledger.Slot{Node: "node", Sheep: name, Loaded: m}
}

// claim has the slot claim the job with the given id, and no other.
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

// claimNothing has the slot find no job.
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

func (f *fixture) finish(c ledger.Claim) job.Record {
	f.Helper()
	rec, err := f.Finish(f.Context(), c.ID, c.Token, ledger.Outcome{State: job.Done})
	if err != nil {
		f.Fatalf("Finish(%s): %v", c.ID, err)
	}
	return rec
}

func (f *fixture) release(c ledger.Claim, unspent bool) {
	f.Helper()
	if err := f.Release(f.Context(), c.ID, c.Token, unspent); err != nil {
		f.Fatalf("Release(%s): %v", c.ID, err)
	}
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
		if len(page) == 0 || next <= cursor || next <= page[len(page)-1].Seq {
			f.Fatalf("List(%+v, %d, %d) gave %d records and the cursor %d: that goes on without end", filter, cursor, limit, len(page), next)
		}
		cursor = next
	}
}

// same compares records as a client would; instants are the same in any
// representation.
func same(a, b job.Record) bool {
	if !a.EnqueuedAt.Equal(b.EnqueuedAt) || !a.StartedAt.Equal(b.StartedAt) || !a.FinishedAt.Equal(b.FinishedAt) {
		return false
	}
	return reflect.DeepEqual(timeless(a), timeless(b))
}

// timeless is r without its times, which only the ledger knows.
func timeless(r job.Record) job.Record {
	r.EnqueuedAt, r.StartedAt, r.FinishedAt = time.Time{}, time.Time{}, time.Time{}
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

// ids are the ids of records, in their order.
func ids(records []job.Record) []string {
	names := make([]string, len(records))
	for i, r := range records {
		names[i] = string(r.ID)
	}
	return names
}
