package ledgertest

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

func (s suite) testHeld(t *testing.T) {
	f := s.open(t, Options{})
	for i := range 6 {
		f.create(fmt.Sprint("job", i))
	}
	mine := []ledger.Claim{
		f.claim(ledger.Slot{Node: "node", Sheep: "a", Only: "job3"}, "job3"),
		f.claim(ledger.Slot{Node: "node", Sheep: "b", Only: "job1", Ahead: true}, "job1"),
		f.claim(ledger.Slot{Node: "node", Sheep: "c", Only: "job5"}, "job5"),
	}
	f.claim(ledger.Slot{Node: "other", Sheep: "a"}, "job0")
	check := func(want []ledger.Claim) {
		t.Helper()
		held, err := f.Held(f.Context(), "node")
		if err != nil || len(held) != len(want) {
			t.Fatalf("Held = %d claims, %v; want %d", len(held), err, len(want))
		}
		for i := range held {
			f.checkSame("Held, in the order of the claims", held[i].Record, want[i].Record)
			if held[i].Token != want[i].Token {
				t.Fatalf("token %d, want %d", held[i].Token, want[i].Token)
			}
		}
	}
	check(mine)
	f.reopen()
	check(mine)
	f.crash()
	check(mine)
	f.finish(mine[0])
	check(mine[1:])
	f.release(mine[1], unspent)
	check(mine[2:])
	mine[2].Record = f.cancel("job5") // is a request
	check(mine[2:])
	f.release(mine[2], unspent)
	check(nil)
	if held, err := f.Held(f.Context(), "other"); err != nil || len(held) != 1 {
		t.Fatalf("Held of the other node = %v, %v", held, err)
	}
	if held, err := f.Held(f.Context(), ""); err != nil || len(held) != 0 {
		t.Fatalf("Held of no node = %v, %v", held, err)
	}
}

func (s suite) testList(t *testing.T) {
	f := s.open(t, Options{})
	if got := f.list(ledger.Filter{}, 10); len(got) != 0 {
		t.Fatalf("an empty ledger lists %v", ids(got))
	}
	var all []job.Record
	for i := range 24 {
		id := fmt.Sprintf("job%02d", i)
		f.create(id, tenant([]string{"", "", "wool", "meat"}[i%4]), model([]job.Model{red, blue, {Name: "red"}}[i%3]), sheep([]string{"", "a"}[i%2]), priority(i%5),
			labels([]job.Labels{nil, {"batch": "1"}, {"batch": "2", "team": "x=y", "note": ""}, {"batch": "1", "team": "x=y"}, {}}[i%5]))
		only := ledger.Slot{Node: "node", Sheep: "a", Only: job.ID(id)}
		switch i % 4 {
		case 1:
			f.claim(only, id)
		case 2:
			f.finish(f.claim(only, id))
		case 3:
			f.cancel(id)
		}
		all = append(all, f.get(id))
	}
	for name, c := range map[string]struct {
		filter ledger.Filter
		match  func(r job.Record) bool
	}{
		"all":            {ledger.Filter{}, func(job.Record) bool { return true }},
		"a state":        {ledger.Filter{States: []job.State{job.Processing}}, func(r job.Record) bool { return r.State == job.Processing }},
		"states":         {ledger.Filter{States: []job.State{job.Queued, job.Done}}, func(r job.Record) bool { return r.State == job.Queued || r.State == job.Done }},
		"a state, twice": {ledger.Filter{States: []job.State{job.Done, job.Done}}, func(r job.Record) bool { return r.State == job.Done }},
		"all states":     {ledger.Filter{States: []job.State{job.Cancelled, job.Failed, job.Done, job.Processing, job.Queued}}, func(job.Record) bool { return true }},
		"a tenant's states": {ledger.Filter{Tenant: "wool", States: []job.State{job.Done, job.Queued}},
			func(r job.Record) bool { return r.Tenant == "wool" && (r.State == job.Done || r.State == job.Queued) }},
		"a sheep's model": {ledger.Filter{Sheep: "a", Model: red}, func(r job.Record) bool { return r.Sheep == "a" && r.Model == red }},
		"no state":        {ledger.Filter{States: []job.State{job.Failed}}, func(job.Record) bool { return false }},
		"a sheep":         {ledger.Filter{Sheep: "a"}, func(r job.Record) bool { return r.Sheep == "a" }},
		"a model":         {ledger.Filter{Model: blue}, func(r job.Record) bool { return r.Model == blue }},
		"versioned":       {ledger.Filter{Model: job.Model{Name: "red"}}, func(r job.Record) bool { return r.Model == job.Model{Name: "red"} }},
		"a tenant":        {ledger.Filter{Tenant: "wool"}, func(r job.Record) bool { return r.Tenant == "wool" }},
		"no tenant":       {ledger.Filter{Tenant: "milk"}, func(r job.Record) bool { return false }},
		"a label":         {ledger.Filter{Labels: job.Labels{"batch": "1"}}, func(r job.Record) bool { return r.Labels["batch"] == "1" }},
		"two labels":      {ledger.Filter{Labels: job.Labels{"batch": "1", "team": "x=y"}}, func(r job.Record) bool { return r.Labels["batch"] == "1" && r.Labels["team"] == "x=y" }},
		"an empty value":  {ledger.Filter{Labels: job.Labels{"note": ""}}, func(r job.Record) bool { return r.Labels["batch"] == "2" }},
		"no label":        {ledger.Filter{Labels: job.Labels{"batch": "3"}}, func(job.Record) bool { return false }},
		"a label's states": {ledger.Filter{Labels: job.Labels{"team": "x=y"}, States: []job.State{job.Done, job.Cancelled}},
			func(r job.Record) bool {
				return r.Labels["team"] == "x=y" && (r.State == job.Done || r.State == job.Cancelled)
			}},
		"a tenant's label": {ledger.Filter{Labels: job.Labels{"batch": "1"}, Tenant: "wool", Model: blue},
			func(r job.Record) bool { return r.Labels["batch"] == "1" && r.Tenant == "wool" && r.Model == blue }},
		"a prefix":          {ledger.Filter{Prefix: "job1"}, func(r job.Record) bool { return strings.HasPrefix(string(r.ID), "job1") }},
		"an id":             {ledger.Filter{Prefix: "job07"}, func(r job.Record) bool { return r.ID == "job07" }},
		"no such prefix":    {ledger.Filter{Prefix: "Job"}, func(job.Record) bool { return false }},
		"since":             {ledger.Filter{Since: all[7].EnqueuedAt}, func(r job.Record) bool { return !r.EnqueuedAt.Before(all[7].EnqueuedAt) }},
		"since a bit later": {ledger.Filter{Since: all[7].EnqueuedAt.Add(1)}, func(r job.Record) bool { return r.EnqueuedAt.After(all[7].EnqueuedAt) }},
		"before":            {ledger.Filter{Before: all[7].EnqueuedAt}, func(r job.Record) bool { return r.EnqueuedAt.Before(all[7].EnqueuedAt) }},
		"between": {ledger.Filter{Since: all[3].EnqueuedAt, Before: all[9].EnqueuedAt.Add(1), States: []job.State{job.Done, job.Queued}, Prefix: "job0"},
			func(r job.Record) bool {
				return !r.EnqueuedAt.Before(all[3].EnqueuedAt) && !r.EnqueuedAt.After(all[9].EnqueuedAt) && (r.State == job.Done || r.State == job.Queued) && strings.HasPrefix(string(r.ID), "job0")
			}},
		"several": {ledger.Filter{States: []job.State{job.Cancelled, job.Done}, Sheep: "a", Model: red},
			func(r job.Record) bool { return r.State == job.Cancelled && r.Sheep == "a" && r.Model == red }},
	} {
		var want []job.Record
		for _, r := range all {
			if c.match(r) {
				want = append(want, r)
			}
		}
		for _, limit := range []int{1, 2, 5, 24, 100} {
			for _, newest := range []bool{false, true} {
				c.filter.Newest = newest
				got := f.list(c.filter, limit)
				if newest {
					slices.Reverse(got)
				}
				if !slices.EqualFunc(got, want, same) {
					t.Errorf("%s by %d, newest first %v: %v, want %v", name, limit, newest, ids(got), ids(want))
				}
			}
		}
	}
}

// testLabels looks at labels, and what a repeated request is known by, over the life
// of a record.
func (s suite) testLabels(t *testing.T) {
	const keep = 4
	f := s.open(t, Options{KeepJobs: keep})
	own := job.Labels{"batch": "1", "quoted": `a"b\c'`, "text": "Wölfe"}
	given := own.Clone()
	kept := f.create("x", labels(given), func(r *job.Record) { r.Idempotency = "key" })
	given["batch"] = "changed by its owner"
	check := func(want job.Labels, idempotency string) {
		t.Helper()
		r := f.get("x")
		if !maps.Equal(r.Labels, want) || r.Idempotency != idempotency {
			t.Fatalf("labels %v and %q, want %v and %q", r.Labels, r.Idempotency, want, idempotency)
		}
	}
	listed := func(key, value string, want int) {
		t.Helper()
		if got := f.list(ledger.Filter{Labels: job.Labels{key: value}}, 10); len(got) != want {
			t.Fatalf("%s=%s: %v, want %d", key, value, ids(got), want)
		}
	}
	if !maps.Equal(kept.Labels, own) || kept.Idempotency != "key" {
		t.Fatalf("Create kept %+v", kept)
	}
	check(own, "key")
	claim := f.claim(slot("a"), "x")
	if !maps.Equal(claim.Labels, own) {
		t.Fatalf("Claim gave %v", claim.Labels)
	}
	f.finish(claim)
	f.reopen()
	check(own, "key")
	listed("quoted", own["quoted"], 1)

	// The same request sent again is no next run, even though the job has ended.
	if _, err := f.Create(f.Context(), job.Record{ID: "x", Model: red, Idempotency: "key"}); !errors.Is(err, ledger.ErrExists) {
		t.Fatalf("the same request again: %v", err)
	}
	// The next run has labels of its own, and none of the one before.
	f.create("x", labels(job.Labels{"batch": "2"}))
	f.crash()
	check(job.Labels{"batch": "2"}, "")
	listed("batch", "1", 0)
	listed("batch", "2", 1)
	f.cancel("x")

	// Labels go with the record.
	bounded := false
	for i := 0; i < 1000 && !bounded; i++ {
		id := fmt.Sprint("job", i)
		f.create(id)
		f.cancel(id)
		_, err := f.Get(f.Context(), "x")
		bounded = err != nil
	}
	if !bounded {
		t.Fatal("the record does not expire")
	}
	listed("batch", "2", 0)
}

func (s suite) testPosition(t *testing.T) {
	f := s.open(t, Options{})
	check := func(want map[string]int) {
		t.Helper()
		for id, place := range want {
			if got, err := f.Position(f.Context(), job.ID(id), 4); err != nil || got != place {
				t.Errorf("Position(%s) = %d, %v; want %d", id, got, err, place)
			}
		}
	}
	if _, err := f.Position(f.Context(), "unknown", 10); !errors.Is(err, ledger.ErrNotFound) {
		t.Fatalf("Position of an unknown job: %v", err)
	}
	f.create("a")
	f.create("b", model(blue))
	f.create("urgent", priority(5))
	f.create("late", func(r *job.Record) { r.NotBefore = time.Now().Add(longTime) })
	f.create("x1", sheep("x"))
	f.create("y1", sheep("y"), priority(1))
	f.create("c")
	f.create("least", priority(-1))
	check(map[string]int{"urgent": 1, "a": 2, "b": 3, "c": 4, "least": 4, "x1": 4, "y1": 2, "late": 0})
	f.claim(slot("z"), "urgent")
	f.claim(ahead("y"), "y1")
	check(map[string]int{"urgent": 0, "y1": 0, "a": 1, "b": 2, "x1": 3, "c": 3, "least": 4})
	f.cancel("a")
	f.crash()
	check(map[string]int{"a": 0, "b": 1, "x1": 2, "c": 2, "least": 3})
	if got, err := f.Position(f.Context(), "least", 1); err != nil || got != 1 {
		t.Errorf("at most 1: %d, %v", got, err)
	}
}

// testListUnderChanges pages while other records come, change and go: what was
// there throughout is listed once.
func (s suite) testListUnderChanges(t *testing.T) {
	f := s.open(t, Options{})
	const n = 30
	for i := range n {
		f.create(fmt.Sprintf("job%02d", i))
	}
	seen := map[job.ID]int{}
	var last, cursor int64
	for page := 0; ; page++ {
		records, next, err := f.List(f.Context(), ledger.Filter{}, cursor, 4)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			if r.Seq <= last {
				t.Fatalf("place %d after %d", r.Seq, last)
			}
			last = r.Seq
			seen[r.ID]++
		}
		if next == 0 {
			break
		}
		cursor = next
		// In the part still to come one starts; in the part listed one ends and is
		// submitted again, to the end.
		f.claim(ledger.Slot{Node: "node", Sheep: "a", Only: job.ID(fmt.Sprintf("job%02d", n-1-page))}, fmt.Sprintf("job%02d", n-1-page))
		if page < 3 {
			again := fmt.Sprintf("job%02d", page)
			f.cancel(again)
			f.create(again)
		}
	}
	for i := range n {
		id := job.ID(fmt.Sprintf("job%02d", i))
		want := 1
		if i < 3 {
			want = 2 // its run before, and the next one
		}
		if seen[id] != want {
			t.Errorf("%s was listed %d times, want %d", id, seen[id], want)
		}
	}
}

func (s suite) testCount(t *testing.T) {
	f := s.open(t, Options{})
	check := func(want ledger.Counts) {
		t.Helper()
		got := f.count()
		for _, state := range []job.State{job.Queued, job.Processing, job.Done, job.Failed, job.Cancelled} {
			if got[state] != want[state] {
				t.Fatalf("counts are %v, want %v", got, want)
			}
		}
	}
	check(ledger.Counts{})
	for i := range 6 {
		f.create(fmt.Sprint("job", i))
	}
	check(ledger.Counts{job.Queued: 6})
	f.finish(f.claim(slot("a"), "job0"))
	c := f.claim(slot("a"), "job1")
	f.finishAs(c, failed)
	f.claim(slot("a"), "job2")
	f.claim(ledger.Slot{Node: "node", Sheep: "a", Ahead: true}, "job3") // still queued to everyone outside
	f.cancel("job4")
	want := ledger.Counts{job.Queued: 2, job.Processing: 1, job.Done: 1, job.Failed: 1, job.Cancelled: 1}
	check(want)
	f.reopen()
	check(want)
	f.create("job0")
	check(ledger.Counts{job.Queued: 3, job.Processing: 1, job.Failed: 1, job.Cancelled: 1})
}

func (s suite) testWaiting(t *testing.T) {
	f := s.open(t, Options{})
	check := func(most int, want ...ledger.Waiting) {
		t.Helper()
		got, err := f.Waiting(f.Context(), most)
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("Waiting(%d) = %+v, %v; want %+v", most, got, err, want)
		}
	}
	check(10)
	a := f.create("a")
	f.create("b", priority(5))
	f.create("c", priority(7))
	f.create("delayed", func(r *job.Record) { r.NotBefore = time.Now().Add(longTime) })
	d := f.create("d", sheep("x"))
	f.create("e", sheep("x"), priority(1))
	g := f.create("g", model(blue))
	groups := []ledger.Waiting{
		{Model: red, Jobs: 3, Oldest: a.EnqueuedAt}, {Model: red, Sheep: "x", Jobs: 2, Oldest: d.EnqueuedAt}, {Model: blue, Jobs: 1, Oldest: g.EnqueuedAt},
	}
	check(10, groups...)
	check(3, groups...)
	check(2, groups[0], ledger.Waiting{Jobs: 3, Rest: true})
	check(1, ledger.Waiting{Jobs: 6, Rest: true})
	f.reopen()
	check(3, groups...)

	// One held, ahead or not, does not wait; one released does, by its old age.
	held := f.claim(ahead("y"), "c")
	check(10, ledger.Waiting{Model: red, Jobs: 2, Oldest: a.EnqueuedAt}, groups[1], groups[2])
	f.release(held, unspent)
	check(10, groups...)
	f.finish(f.claim(slot("y"), "c"))
	f.cancel("g")
	f.cancel("e")
	after := []ledger.Waiting{{Model: red, Jobs: 2, Oldest: a.EnqueuedAt}, {Model: red, Sheep: "x", Jobs: 1, Oldest: d.EnqueuedAt}}
	check(10, after...)
	f.crash()
	check(10, after...)
}

// testExpiry ends more jobs than are kept: the number stays bounded, the oldest
// go, and no job that has not ended goes ever.
func (s suite) testExpiry(t *testing.T) {
	const keep, n = 10, 60
	f := s.open(t, Options{KeepJobs: keep})
	f.create("waiting", priority(-1))
	f.create("running", priority(1))
	running := f.claim(slot("b"), "running")
	bounded := false
	for i := 0; i < n || !bounded && i < 100*n; i++ { // an implementation may lag a little behind
		id := fmt.Sprint("job", i)
		f.create(id)
		f.finish(f.claim(slot("a"), id))
		f.get(id) // the youngest is there
		bounded = f.count()[job.Done] <= keep+1
	}
	if !bounded {
		t.Fatalf("%d ended jobs are kept, want about %d", f.count()[job.Done], keep)
	}
	if _, err := f.Get(f.Context(), "job0"); err == nil {
		t.Fatal("the oldest is still kept")
	}
	if got := f.attempts("job0"); len(got) > 0 {
		t.Fatalf("its attempts are still kept: %+v", got)
	}
	for listed, counted, tries := -1, 0, 0; listed != counted; tries++ { // one may expire in between
		listed, counted = len(f.list(ledger.Filter{States: []job.State{job.Done}}, 7)), f.count()[job.Done]
		if tries > keep && listed != counted {
			t.Fatalf("%d are listed, %d counted", listed, counted)
		}
	}
	f.finish(running)
	f.claim(slot("a"), "waiting")
}
