package storagetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
)

const input = "inputs/input"

// manyFiles is more than a listing names, or a request deletes, at a time.
const manyFiles = 1050

func (s *suite) testPlaces(t *testing.T) {
	s.testInit(t)
	s.testReserve(t)
	s.testRemove(t)
	s.testStatuses(t)
}

// testInit makes places, and refuses those that are taken.
func (s *suite) testInit(t *testing.T) {
	t.Run("Init", func(t *testing.T) {
		for name, payload := range map[string]string{"Empty": "", "Small": "payload", "Large": strings.Repeat("0123456789abcdef", 200_000)} {
			t.Run(name, func(t *testing.T) {
				id := s.id()
				exists, err := s.store.Exists(t.Context(), id)
				noError(t, err)
				if exists {
					t.Fatal("a job without a place has one")
				}
				noError(t, s.store.Init(t.Context(), id, []byte(payload)))
				sameFiles(t, "place", s.stored(t, id), map[string]string{input: payload})
				exists, err = s.store.Exists(t.Context(), id)
				noError(t, err)
				if !exists {
					t.Fatal("the place is not there after Init")
				}
			})
		}
	})

	t.Run("InitTaken", func(t *testing.T) {
		for name, files := range map[string]map[string]string{
			"OtherInput":    {input: "other"},
			"OtherLonger":   {input: "payload and more"},
			"MoreInputs":    {input: "payload", "inputs/more": "x"},
			"SameAndStatus": {input: "payload", job.StatusFile: "{}"},
			"Outputs":       {"outputs/output": "x"},
			"OtherName":     {"inputs/other": "payload"},
		} {
			t.Run(name, func(t *testing.T) {
				id := s.fresh(t, files)
				err := s.store.Init(t.Context(), id, []byte("payload"))
				if !errors.Is(err, storage.ErrExists) {
					t.Fatalf("Init answered %v, want ErrExists", err)
				}
				sameFiles(t, "the taken place", s.stored(t, id), files)
			})
		}
		if s.Bucket == "" {
			t.Run("EmptyBucket", func(t *testing.T) {
				id := s.fresh(t, nil)
				if err := s.store.Init(t.Context(), id, []byte("payload")); !errors.Is(err, storage.ErrExists) {
					t.Fatalf("Init answered %v, want ErrExists", err)
				}
				sameFiles(t, "the taken place", s.stored(t, id), nil)
			})
		}
	})

	t.Run("InitCutShort", func(t *testing.T) {
		id := s.fresh(t, map[string]string{input: "payload"})
		noError(t, s.store.Init(t.Context(), id, []byte("payload")))
		sameFiles(t, "place", s.stored(t, id), map[string]string{input: "payload"})
	})

	t.Run("InitRace", func(t *testing.T) {
		for range 4 {
			s.race(t)
		}
	})

	t.Run("CheckID", func(t *testing.T) {
		for _, id := range []job.ID{"abc", "job-1", "a.b.c", "1234", job.ID(strings.Repeat("a", 63))} {
			if err := s.store.CheckID(id); err != nil {
				t.Errorf("%q: %v", id, err)
			}
		}
		bad := []job.ID{"", "a/b", "a..b", "../x", "a b", "ä", "-abc", "a\x00b", job.ID(strings.Repeat("a", 129))}
		if s.Bucket == "" {
			bad = append(bad, "ab", "Abc", "a_b", "abc-", "abc.", ".abc", "a.-b", "a-.b", "192.168.0.1", job.ID(strings.Repeat("a", 64)))
		}
		for _, id := range bad {
			err := s.store.CheckID(id)
			class(t, fmt.Sprintf("CheckID(%q)", id), err, errdefs.IsInvalidArgument)
			class(t, fmt.Sprintf("Init(%q)", id), s.store.Init(t.Context(), id, nil), errdefs.IsInvalidArgument)
			_, err = s.store.Open(t.Context(), id, input, nil)
			class(t, fmt.Sprintf("Open(%q)", id), err, errdefs.IsInvalidArgument)
		}
	})
}

// testReserve makes places whose inputs come later.
func (s *suite) testReserve(t *testing.T) {
	t.Run("Reserve", func(t *testing.T) {
		status := job.Status{State: job.Queued, Accepted: true, Model: job.Model{Name: "m"}, Failure: &job.Failure{Message: "not whole"}, EnqueuedAt: time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)}
		id := s.id()
		noError(t, s.store.Reserve(t.Context(), id, status))
		got, err := s.store.Status(t.Context(), id)
		noError(t, err)
		if !got.Accepted || got.State != job.Queued || got.Failure == nil || got.Failure.Message != "not whole" || !got.EnqueuedAt.Equal(status.EnqueuedAt) {
			t.Errorf("the state is %+v", got)
		}
		noError(t, s.store.Reserve(t.Context(), id, status)) // the answer was missed
		noError(t, s.store.Put(t.Context(), id, "inputs/a/b", strings.NewReader("x"), 1))
		for _, again := range []error{s.store.Reserve(t.Context(), id, status), s.store.Init(t.Context(), id, []byte("x"))} {
			if !errors.Is(again, storage.ErrExists) {
				t.Errorf("a reserved place is made again: %v", again)
			}
		}
		taken := s.fresh(t, map[string]string{input: "payload"})
		if err := s.store.Reserve(t.Context(), taken, status); !errors.Is(err, storage.ErrExists) {
			t.Errorf("a taken place is reserved: %v", err)
		}
		sameFiles(t, "the taken place", s.stored(t, taken), map[string]string{input: "payload"})
		class(t, "Reserve of no id", s.store.Reserve(t.Context(), "../x", status), errdefs.IsInvalidArgument)
	})
}

// testRemove removes places, of which those that are left half-way are still their jobs'.
func (s *suite) testRemove(t *testing.T) {
	t.Run("Remove", func(t *testing.T) {
		other := s.fresh(t, map[string]string{input: "stays"})
		id := job.ID(string(other) + "-more") // a prefix of one is not the other
		s.place(t, id)
		for name := range map[string]bool{input: true, "outputs/a/b": true, job.StatusFile: true} {
			s.put(t, id, name, "x")
		}
		noError(t, s.store.Remove(t.Context(), id))
		exists, err := s.store.Exists(t.Context(), id)
		noError(t, err)
		if exists {
			t.Error("the place is there after Remove")
		}
		sameFiles(t, "another job", s.stored(t, other), map[string]string{input: "stays"})
		noError(t, s.store.Remove(t.Context(), other))
		noError(t, s.store.Remove(t.Context(), other)) // twice
		noError(t, s.store.Init(t.Context(), id, []byte("again")))
	})

	// Where Remove ends before all is removed, the place is still a job's.
	t.Run("RemoveCutShort", func(t *testing.T) {
		files := map[string]string{input: "x"}
		for n := range 40 {
			files[fmt.Sprintf("outputs/%02d", n)] = "x"
		}
		id := s.fresh(t, files)
		want := job.Status{State: job.Done, Model: job.Model{Name: "m"}}
		noError(t, s.store.SetStatus(t.Context(), id, want))
		for limit := 50 * time.Microsecond; ; limit += limit / 4 {
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			err := s.store.Remove(ctx, id)
			cancel()
			if err == nil {
				break
			}
			left, err := All(s.store.List(t.Context(), id, "outputs/")) // a server may still be at work on the request
			if err != nil && !errdefs.IsNotFound(err) {
				t.Fatal(err)
			}
			if status, err := s.store.Status(t.Context(), id); len(left) > 0 && (err != nil || status.State != want.State) {
				t.Fatalf("%d files are left without their job's state: %+v, %v", len(left), status, err)
			}
		}
		if exists, err := s.store.Exists(t.Context(), id); exists || err != nil {
			t.Errorf("the place is there after Remove: %v", err)
		}
	})
}

// testStatuses stores the states of jobs.
func (s *suite) testStatuses(t *testing.T) {
	t.Run("Status", func(t *testing.T) {
		id := s.fresh(t, map[string]string{input: "x"})
		_, err := s.store.Status(t.Context(), id)
		class(t, "Status before it is set", err, errdefs.IsNotFound)
		for _, want := range []job.Status{
			{State: job.Queued, Model: job.Model{Name: "m", Version: "v"}, EnqueuedAt: time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)},
			{State: job.Failed, Model: job.Model{Name: "m"}, Failure: &job.Failure{Message: "ü", Type: "T", Traceback: "line\nline"}, FinishedAt: time.Date(2026, 1, 2, 3, 4, 5, 999999000, time.UTC)},
		} {
			noError(t, s.store.SetStatus(t.Context(), id, want))
			got, err := s.store.Status(t.Context(), id)
			noError(t, err)
			if fmt.Sprintf("%+v", got.Failure) != fmt.Sprintf("%+v", want.Failure) {
				t.Errorf("failure %+v, want %+v", got.Failure, want.Failure)
			}
			got.Failure, want.Failure = nil, nil
			if got != want {
				t.Errorf("status %+v, want %+v", got, want)
			}
		}
		_, err = s.store.Status(t.Context(), s.id())
		class(t, "Status of an unknown job", err, errdefs.IsNotFound)
	})

	t.Run("SyncStatuses", func(t *testing.T) {
		syncer, ok := s.store.(storage.StatusSyncer)
		if !ok {
			return // each status is durable when it is set
		}
		noError(t, syncer.SyncStatuses(t.Context())) // there is none
		want := job.Status{State: job.Done}
		for _, jobs := range []int{1, 20} {
			var ids []job.ID
			for range jobs {
				id := s.fresh(t, map[string]string{input: "x"})
				noError(t, s.store.SetStatus(t.Context(), id, want))
				ids = append(ids, id)
			}
			removed := s.fresh(t, map[string]string{input: "x"})
			noError(t, s.store.SetStatus(t.Context(), removed, want))
			noError(t, s.store.Remove(t.Context(), removed))
			noError(t, syncer.SyncStatuses(t.Context()))
			for _, id := range ids {
				got, err := s.store.Status(t.Context(), id)
				noError(t, err)
				if got != want {
					t.Errorf("status %+v, want %+v", got, want)
				}
			}
		}
	})

	t.Run("StatusOfOthers", func(t *testing.T) {
		// The original stored tracebacks of any length: such a job has ended all the same.
		traceback := "Traceback:" + strings.Repeat("x", 5<<20) + "ValueError"
		id := s.fresh(t, map[string]string{job.StatusFile: fmt.Sprintf(`{"status": "failed", "error_details": {"message": "no", "exception_type": "E", "exception_traceback": %q}, `+
			`"model": {"name": "m", "version": "v"}, "enqueued_at": "2026-01-02T03:04:05.000006", "processing_started_at": null, "finished_at": "2026-01-02T03:04:06.000000"}`, traceback)})
		status, err := s.store.Status(t.Context(), id)
		noError(t, err)
		if status.State != job.Failed || status.Model.Version != "v" || status.FinishedAt.IsZero() {
			t.Errorf("status %v of model %v, finished at %v", status.State, status.Model, status.FinishedAt)
		}
		if got := status.Failure.Traceback; len(got) > 1<<20 || !strings.HasPrefix(got, "Traceback:x") || !strings.HasSuffix(got, "xValueError") {
			t.Errorf("the traceback has %d bytes, from %.20q to %q", len(got), got, got[max(0, len(got)-20):])
		}
		for name, content := range map[string]string{
			"TooLarge": `{"status": "failed", "more": [` + strings.Repeat(`"x", `, 1<<20) + `"x"]}`,
			"Half":     `{"status": "failed", "error_de`,
			"Empty":    "",
		} {
			s.put(t, id, job.StatusFile, content)
			_, err := s.store.Status(t.Context(), id)
			class(t, name, err, errdefs.IsDataLoss)
		}
	})
}

// race makes one place from many goroutines, each with an input of its own.
func (s *suite) race(t *testing.T) {
	t.Helper()
	id := s.id()
	const runners = 16
	answers := make([]error, runners)
	begin := make(chan struct{})
	var group sync.WaitGroup
	for n := range runners {
		group.Go(func() {
			<-begin
			answers[n] = s.store.Init(t.Context(), id, fmt.Appendf(nil, "payload %d", n))
		})
	}
	close(begin)
	group.Wait()
	winner := -1
	for n, err := range answers {
		switch {
		case err == nil && winner >= 0:
			t.Errorf("both %d and %d made the place", winner, n)
		case err == nil:
			winner = n
		case !errors.Is(err, storage.ErrExists):
			t.Errorf("Init answered %v, want ErrExists", err)
		}
	}
	if winner < 0 {
		t.Fatal("nobody made the place")
	}
	sameFiles(t, "place", s.stored(t, id), map[string]string{input: fmt.Sprintf("payload %d", winner)})
}

// testJobs lists the jobs that have a place, and no others.
func (s *suite) testJobs(t *testing.T) {
	want := make(map[job.ID]bool)
	for range 7 {
		id := s.id()
		noError(t, s.store.Init(t.Context(), id, []byte("payload")))
		want[id] = true
	}
	gone := s.id()
	noError(t, s.store.Init(t.Context(), gone, []byte("payload")))
	noError(t, s.store.Remove(t.Context(), gone))
	found := make(map[job.ID]int)
	noError(t, s.store.Jobs(t.Context(), func(id job.ID) error {
		found[id]++
		return nil
	}))
	for id := range want {
		if found[id] != 1 {
			t.Errorf("job %s is listed %d times, want once", id, found[id])
		}
	}
	if found[gone] != 0 {
		t.Errorf("job %s, which was removed, is listed", gone)
	}
	for id := range found {
		if s.store.CheckID(id) != nil {
			t.Errorf("%q is listed, which no job can be called", id)
		}
	}
	stop := errors.New("enough")
	visits := 0
	if err := s.store.Jobs(t.Context(), func(job.ID) error { visits++; return stop }); !errors.Is(err, stop) || visits != 1 {
		t.Errorf("a visit that stops is called %d times, and Jobs returns %v", visits, err)
	}
}
