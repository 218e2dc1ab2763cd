package ledgertest

import (
	"errors"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// retention is the ledger's part that keeps files.
func (f *fixture) retention() ledger.Retention {
	f.Helper()
	r, ok := f.Ledger.(ledger.Retention)
	if !ok {
		f.Fatalf("a %T is no ledger.Retention", f.Ledger)
	}
	return r
}

// due are the jobs whose files are to be removed, and whether that has begun.
func (f *fixture) due() (ids []string, begun []bool, next time.Duration) {
	f.Helper()
	due, next, err := f.retention().Due(f.Context(), 100)
	if err != nil {
		f.Fatalf("Due: %v", err)
	}
	for _, d := range due {
		ids, begun = append(ids, string(d.ID)), append(begun, d.Begun)
	}
	return ids, begun, next
}

func (f *fixture) wantDue(want ...string) time.Duration {
	f.Helper()
	ids, _, next := f.due()
	if len(ids) != len(want) {
		f.Fatalf("due are %q, want %q", ids, want)
	}
	for i := range want {
		if ids[i] != want[i] {
			f.Fatalf("due are %q, want %q", ids, want)
		}
	}
	return next
}

// byModel keeps red jobs' files for an hour, blue ones' for no time worth
// mentioning, and others' as asked for, or for ever.
func byModel(rec job.Record) time.Duration {
	switch {
	case rec.Keep != nil:
		return *rec.Keep
	case rec.Model == red:
		return time.Hour
	case rec.Model == blue:
		return time.Microsecond
	}
	return 0
}

// end has a job done that is the only one.
func (f *fixture) end(id string) job.Record {
	f.Helper()
	return f.finish(f.claim(ledger.Slot{Node: "node", Sheep: "a", Only: job.ID(id)}, id))
}

func (s suite) testRetention(t *testing.T) {
	f := s.open(t, Options{Retention: byModel})
	other := job.Model{Name: "other", Version: "1"}
	f.create("hour", func(r *job.Record) { r.Model = red })
	f.create("now", func(r *job.Record) { r.Model = blue })
	f.create("ever", func(r *job.Record) { r.Model = other })
	f.create("own", func(r *job.Record) { r.Model, r.Keep = red, new(time.Duration(0)) })
	f.create("days", func(r *job.Record) { r.Model, r.Keep = other, new(48*time.Hour) })
	if next := f.wantDue(); next != 0 {
		t.Errorf("something of jobs that have not ended is due in %s", next)
	}
	for id, want := range map[string]time.Duration{"hour": time.Hour, "now": time.Microsecond, "ever": 0, "own": 0, "days": 48 * time.Hour} {
		rec := f.end(id)
		for _, rec := range []job.Record{rec, f.get(id)} {
			if until := rec.KeptUntil; want == 0 && !until.IsZero() || want > 0 && !until.Equal(rec.FinishedAt.Add(want)) {
				t.Errorf("the files of %s, finished at %s, are kept until %s", id, rec.FinishedAt, until)
			}
		}
	}
	if rec := f.get("own"); rec.Keep == nil || *rec.Keep != 0 {
		t.Errorf("what the client asked for is kept as %v", rec.Keep)
	}
	time.Sleep(time.Millisecond)
	if next := f.wantDue("now"); next <= 59*time.Minute || next > time.Hour {
		t.Errorf("the next is due in %s", next)
	}

	// Other times.
	kept := []ledger.Kept{
		{Job: "hour", Run: 1, For: time.Microsecond}, {Job: "now", Run: 1}, {Job: "days", Run: 2, For: time.Microsecond},
		{Job: "ever", Run: 1, For: 3 * time.Hour}, {Job: "unknown", Run: 1, For: time.Hour},
	}
	for range 2 {
		if err := f.retention().Keep(t.Context(), kept); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(time.Millisecond)
	if next := f.wantDue("hour"); next <= 2*time.Hour || next > 3*time.Hour {
		t.Errorf("the next is due in %s", next)
	}
	if rec := f.get("now"); !rec.KeptUntil.IsZero() {
		t.Errorf("files that are kept for ever are kept until %s", rec.KeptUntil)
	}
	if rec := f.get("days"); !rec.KeptUntil.Equal(rec.FinishedAt.Add(48 * time.Hour)) {
		t.Errorf("of another run the files are kept until %s", rec.KeptUntil)
	}
	f.reopen()
	f.wantDue("hour")
}

func (s suite) testRemoval(t *testing.T) {
	f := s.open(t, Options{Retention: byModel})
	begin := func(id string, run int, whole bool, want error) {
		t.Helper()
		rec, err := f.retention().BeginRemoval(t.Context(), job.ID(id), run, whole)
		if !errors.Is(err, want) || err == nil && !rec.Removing {
			t.Fatalf("BeginRemoval(%s): %+v, %v, want %v", id, rec, err, want)
		}
	}
	end := func(id string) {
		t.Helper()
		if err := f.retention().EndRemoval(t.Context(), job.ID(id)); err != nil {
			t.Fatal(err)
		}
	}
	create := func(id string, want error) {
		t.Helper()
		if _, err := f.Create(t.Context(), job.Record{ID: job.ID(id), Model: red}); !errors.Is(err, want) {
			t.Fatalf("Create(%s): %v, want %v", id, err, want)
		}
	}
	begin("unknown", 0, true, ledger.ErrNotFound)
	end("unknown")
	f.create("files")
	begin("files", 0, true, ledger.ErrNotFinal)
	end("files")
	claim := f.claim(ledger.Slot{Node: "node", Sheep: "a"}, "files")
	begin("files", 0, true, ledger.ErrNotFinal)
	f.finish(claim)
	f.create("whole")
	f.end("whole")
	end("files") // none has begun

	begin("files", 2, false, ledger.ErrNotFound)
	begin("files", 1, false, nil)
	begin("files", 0, false, nil)
	begin("whole", 0, true, nil)
	begin("whole", 1, false, nil) // stays whole
	create("files", ledger.ErrRemoving)
	create("whole", ledger.ErrRemoving)
	// What has begun is the longest time's affair no more.
	if err := f.retention().Keep(t.Context(), []ledger.Kept{{Job: "files", Run: 1}}); err != nil {
		t.Fatal(err)
	}
	f.crash()
	ids, begun, _ := f.due()
	if len(ids) != 2 || !begun[0] || !begun[1] || !f.get("files").Removing {
		t.Fatalf("after a crash %q are due, begun: %t", ids, begun)
	}
	create("whole", ledger.ErrRemoving)

	for range 2 {
		end("files")
		end("whole")
	}
	f.wantDue()
	rec := f.get("files")
	if rec.Removing || !rec.FilesRemoved || rec.KeptUntil.Before(rec.FinishedAt) || rec.State != job.Done {
		t.Errorf("with its files removed the record is %+v", rec)
	}
	if _, err := f.Get(t.Context(), "whole"); !errors.Is(err, ledger.ErrNotFound) {
		t.Errorf("the removed record is there: %v", err)
	}
	if left := f.attempts("whole"); len(left) != 0 {
		t.Errorf("attempts of the removed record: %+v", left)
	}
	if err := f.retention().Keep(t.Context(), []ledger.Kept{{Job: "files", Run: 1, For: time.Microsecond}}); err != nil {
		t.Fatal(err)
	}
	f.wantDue()

	// Both ids can be used again.
	if rec := f.create("files"); rec.Run != 2 || rec.FilesRemoved || !rec.KeptUntil.IsZero() {
		t.Errorf("the next run is %+v", rec)
	}
	if rec := f.create("whole"); rec.Run != 1 {
		t.Errorf("the run after a removal is %d", rec.Run)
	}
	if n := f.count()[job.Queued]; n != 2 {
		t.Errorf("%d jobs are queued", n)
	}

	// The same without a crash on the way.
	f.end("whole")
	begin("whole", 0, true, nil)
	end("whole")
	if _, err := f.Get(t.Context(), "whole"); !errors.Is(err, ledger.ErrNotFound) {
		t.Errorf("the removed record is there: %v", err)
	}
	end("whole")
	if rec := f.create("whole"); rec.Run != 1 {
		t.Errorf("the run after a removal is %d", rec.Run)
	}
}

// testRetainedExpiry has more jobs end than records are kept: those whose files
// are to be removed stay.
func (s suite) testRetainedExpiry(t *testing.T) {
	f := s.open(t, Options{KeepJobs: 3, Retention: byModel})
	f.create("retained", func(r *job.Record) { r.Model = red })
	f.end("retained")
	other := job.Model{Name: "other", Version: "1"}
	for _, id := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		f.create(id, func(r *job.Record) { r.Model = other })
		f.end(id)
	}
	deadline := time.Now().Add(patience)
	for f.count()[job.Done] != 4 { // three, and the one with files
		if time.Now().After(deadline) {
			t.Fatalf("%d records are kept", f.count()[job.Done])
		}
		f.create("more", func(r *job.Record) { r.Model = other })
		f.end("more")
	}
	f.get("retained")
	if _, err := f.retention().BeginRemoval(t.Context(), "retained", 0, false); err != nil {
		t.Fatal(err)
	}
	if err := f.retention().EndRemoval(t.Context(), "retained"); err != nil {
		t.Fatal(err)
	}
	for { // it is the oldest
		if _, err := f.Get(t.Context(), "retained"); errors.Is(err, ledger.ErrNotFound) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a record without files to remove does not expire")
		}
		f.create("more", func(r *job.Record) { r.Model = other })
		f.end("more")
	}
	for f.count()[job.Done] != 3 { // it may have gone before the last one ended
		if time.Now().After(deadline) {
			t.Fatalf("%d records are kept", f.count()[job.Done])
		}
		time.Sleep(time.Millisecond)
	}
}
