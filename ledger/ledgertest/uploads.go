package ledgertest

import (
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// uploads is the ledger's part that knows what is reserved.
func uploads(t tb, l ledger.Ledger) ledger.Uploads {
	t.Helper()
	u, ok := l.(ledger.Uploads)
	if !ok {
		t.Fatalf("a %T is no ledger.Uploads", l)
	}
	return u
}

// reserve reserves a place for an hour.
func (f *fixture) reserve(id string, with ...func(*job.Upload)) job.Upload {
	f.Helper()
	u := job.Upload{ID: job.ID(id)}
	for _, set := range with {
		set(&u)
	}
	kept, err := uploads(f, f.Ledger).ReserveUpload(f.Context(), u, time.Hour)
	if err != nil {
		f.Fatalf("ReserveUpload(%s): %v", id, err)
	}
	return kept
}

func (s suite) testUploads(t *testing.T) {
	f := s.open(t, Options{})
	files := []job.UploadFile{{Path: "a/ü?", Size: 7}, {Path: "b", Size: 1 << 40, PartSize: 64 << 20, Parts: "x-y"}}
	before := time.Now().Truncate(time.Microsecond)
	reserved := f.reserve("r", func(u *job.Upload) { u.Tenant, u.Files = "wool", files })
	kept := reserved
	if kept.ID != "r" || kept.Tenant != "wool" || !reflect.DeepEqual(kept.Files, files) || kept.Removing || kept.Created.Before(before) || !kept.Expires.Equal(kept.Created.Add(time.Hour)) {
		t.Fatalf("reserved %+v", kept)
	}
	found := func(want job.Upload) {
		t.Helper()
		if got, err := uploads(t, f.Ledger).Upload(t.Context(), want.ID); err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("found %+v, %v; want %+v", got, err, want)
		}
	}
	gone := func(id job.ID) {
		t.Helper()
		if got, err := uploads(t, f.Ledger).Upload(t.Context(), id); !errors.Is(err, ledger.ErrNotFound) {
			t.Fatalf("found %+v, %v", got, err)
		}
	}
	found(kept)
	gone("unknown")
	f.crash()
	found(kept)
	if _, err := uploads(t, f.Ledger).ReserveUpload(t.Context(), job.Upload{ID: "r", Tenant: "wool"}, time.Hour); !errors.Is(err, ledger.ErrExists) {
		t.Errorf("reserved twice: %v", err)
	}
	f.create("job")
	if _, err := uploads(t, f.Ledger).ReserveUpload(t.Context(), job.Upload{ID: "job"}, time.Hour); !errors.Is(err, ledger.ErrExists) {
		t.Errorf("the id of a job is reserved: %v", err)
	}

	// Its time only grows.
	whole := f.reserve("whole", func(u *job.Upload) { u.Tenant, u.Files = "wool", []job.UploadFile{{Path: `"parts":`, Size: 1 << 40}} })
	kept, err := uploads(t, f.Ledger).KeepUpload(t.Context(), whole, files, time.Minute)
	if err != nil || !reflect.DeepEqual(kept.Files, files) || !kept.Expires.Equal(whole.Expires) {
		t.Errorf("kept %+v, %v", kept, err)
	}
	// Of those who begin the parts, the first decides.
	kept, err = uploads(t, f.Ledger).KeepUpload(t.Context(), whole, files[:1], time.Minute)
	if err != nil || !reflect.DeepEqual(kept.Files, files) {
		t.Errorf("kept %+v, %v", kept, err)
	}
	found(kept)
	kept, err = uploads(t, f.Ledger).KeepUpload(t.Context(), reserved, nil, 2*time.Hour)
	if err != nil || !reflect.DeepEqual(kept.Files, files) || kept.Expires.Before(kept.Created.Add(2*time.Hour)) {
		t.Errorf("kept %+v, %v", kept, err)
	}
	found(kept)
	if _, err := uploads(t, f.Ledger).KeepUpload(t.Context(), job.Upload{ID: "unknown"}, nil, time.Hour); !errors.Is(err, ledger.ErrNotFound) {
		t.Errorf("an unknown one is kept: %v", err)
	}
	if _, err := uploads(t, f.Ledger).KeepUpload(t.Context(), job.Upload{ID: "r", Created: reserved.Created.Add(-time.Second)}, files[:1], 9*time.Hour); !errors.Is(err, ledger.ErrNotFound) {
		t.Errorf("an earlier one of the id is kept: %v", err)
	}
	found(kept)

	// The job ends it, of its tenant alone.
	for _, tenant := range []string{"", "meat"} {
		if _, err := f.Create(t.Context(), job.Record{ID: "r", Model: red, Tenant: tenant}); !errors.Is(err, ledger.ErrOthers) {
			t.Errorf("submitted by %q: %v", tenant, err)
		}
		if _, err := f.CreateAll(t.Context(), []job.Record{{ID: "free", Model: red}, {ID: "r", Model: red, Tenant: tenant}}); !errors.Is(err, ledger.ErrOthers) {
			t.Errorf("submitted by %q with another: %v", tenant, err)
		}
	}
	if _, err := f.Get(t.Context(), "free"); !errors.Is(err, ledger.ErrNotFound) {
		t.Errorf("a job of a group that was refused is there: %v", err)
	}
	found(kept)
	f.create("r", func(r *job.Record) { r.Tenant = "wool" })
	gone("r")
	f.reserve("one")
	f.reserve("two")
	if _, err := f.CreateAll(t.Context(), []job.Record{{ID: "one", Model: red}, {ID: "two", Model: red, After: []job.ID{"one"}}}); err != nil {
		t.Fatal(err)
	}
	gone("one")
	gone("two")
	f.create("whole", func(r *job.Record) { r.Tenant = "wool" })
	f.crash()
	gone("r")
	if due, next, err := uploads(t, f.Ledger).DueUploads(t.Context(), 10); err != nil || len(due) != 0 || next != 0 {
		t.Errorf("due are %+v, the next in %s, %v", due, next, err)
	}
}

func (s suite) testUploadRemoval(t *testing.T) {
	f := s.open(t, Options{})
	reserve := func(id string, keep time.Duration) {
		t.Helper()
		if _, err := uploads(t, f.Ledger).ReserveUpload(t.Context(), job.Upload{ID: job.ID(id)}, keep); err != nil {
			t.Fatal(err)
		}
	}
	due := func(limit int, want ...string) time.Duration {
		t.Helper()
		found, next, err := uploads(t, f.Ledger).DueUploads(t.Context(), limit)
		var ids []string
		for _, u := range found {
			ids = append(ids, string(u.ID))
		}
		if err != nil || fmt.Sprint(ids) != fmt.Sprint(want) {
			t.Fatalf("due are %q, %v; want %q", ids, err, want)
		}
		return next
	}
	begin := func(id string, onlyDue bool, want error) {
		t.Helper()
		u, err := uploads(t, f.Ledger).BeginUploadRemoval(t.Context(), job.ID(id), onlyDue)
		if !errors.Is(err, want) || err == nil && (!u.Removing || u.ID != job.ID(id)) {
			t.Fatalf("BeginUploadRemoval(%s): %+v, %v, want %v", id, u, err, want)
		}
	}
	end := func(id string) {
		t.Helper()
		if err := uploads(t, f.Ledger).EndUploadRemoval(t.Context(), job.ID(id)); err != nil {
			t.Fatal(err)
		}
	}
	reserve("soon", time.Microsecond)
	reserve("hour", time.Hour)
	time.Sleep(time.Millisecond)
	if next := due(10, "soon"); next <= 59*time.Minute || next > time.Hour {
		t.Errorf("the next is due in %s", next)
	}
	begin("unknown", false, ledger.ErrNotFound)
	begin("hour", true, ledger.ErrNotFound)
	end("soon") // none has begun
	end("unknown")
	due(10, "soon")

	begin("hour", false, nil)
	begin("hour", true, nil)
	if due(1, "hour") <= 0 {
		t.Error("there is no next one")
	}
	if _, err := f.Create(t.Context(), job.Record{ID: "hour", Model: red}); !errors.Is(err, ledger.ErrUploadOver) {
		t.Errorf("submitted what is being removed: %v", err)
	}
	if _, err := f.CreateAll(t.Context(), []job.Record{{ID: "free", Model: red}, {ID: "hour", Model: red}}); !errors.Is(err, ledger.ErrUploadOver) {
		t.Errorf("submitted what is being removed, with another: %v", err)
	}
	hour, err := uploads(t, f.Ledger).Upload(t.Context(), "hour")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := uploads(t, f.Ledger).KeepUpload(t.Context(), hour, nil, time.Hour); !errors.Is(err, ledger.ErrUploadOver) {
		t.Errorf("kept what is being removed: %v", err)
	}
	if _, err := uploads(t, f.Ledger).ReserveUpload(t.Context(), job.Upload{ID: "hour"}, time.Hour); !errors.Is(err, ledger.ErrExists) {
		t.Errorf("reserved what is being removed: %v", err)
	}
	f.crash()
	due(10, "hour", "soon")
	end("hour")
	end("hour")
	due(10, "soon")
	f.create("hour") // the id is free

	// One whose time is over can be submitted until its removal begins.
	f.create("soon")
	begin("soon", true, ledger.ErrNotFound)
	due(10)
}

// testUploadRace has a submission and a removal race for each of many reservations, and
// two submissions for others: one of them has it.
func (s suite) testUploadRace(t *testing.T) {
	f := s.open(t, Options{})
	other := f.harness.Another(t, f.Ledger)
	t.Cleanup(func() { _ = other.Close() })
	remover, apart := other.(ledger.Uploads)
	if !apart { // the ledger has one owner
		remover = uploads(t, f.Ledger)
	}
	for n := range 20 {
		id := job.ID(fmt.Sprintf("race%d", n))
		f.reserve(string(id))
		submit := func(l ledger.Ledger) error {
			_, err := l.Create(t.Context(), job.Record{ID: id, Model: red})
			return err
		}
		var first, second error
		var racing sync.WaitGroup
		racing.Go(func() { first = submit(f.Ledger) })
		racing.Go(func() {
			if n%2 == 0 {
				second = submit(other)
			} else {
				_, second = remover.BeginUploadRemoval(t.Context(), id, false)
			}
		})
		racing.Wait()
		if (first == nil) == (second == nil) {
			t.Fatalf("%s: both or none has it: %v, %v", id, first, second)
		}
		_, err := uploads(t, f.Ledger).Upload(t.Context(), id)
		_, jobErr := f.Get(t.Context(), id)
		if (err == nil) == (jobErr == nil) {
			t.Fatalf("%s: the reservation: %v, the job: %v", id, err, jobErr)
		}
	}
}
