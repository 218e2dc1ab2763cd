package shepherd

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/storage"
)

// oneJob is a ledger with one job, which keeps the checkpoint.
type oneJob struct {
	ledger.Ledger
	mu   sync.Mutex
	rec  job.Record
	kept job.Cursor
}

func (l *oneJob) Get(context.Context, job.ID) (job.Record, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rec, nil
}

func (l *oneJob) SetCheckpoint(_ context.Context, _ string, c job.Cursor) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kept = c
	return nil
}

func (l *oneJob) set(s job.State) *job.Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rec.ID, l.rec.State = "job", s
	status := l.rec.Status()
	return &status
}

func (l *oneJob) checkpoint() job.Cursor {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.kept
}

// states is a store that remembers which states were written; it is away while
// fail is set.
type states struct {
	storage.Store
	mu      sync.Mutex
	written []job.State
	fail    error
	slow    time.Duration
}

func (s *states) SetStatus(ctx context.Context, _ job.ID, status job.Status) error {
	s.mu.Lock()
	fail, slow := s.fail, s.slow
	s.mu.Unlock()
	if err := sleep(ctx, slow); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if fail == nil {
		s.written = append(s.written, status.State)
	}
	return fail
}

func (s *states) last() (job.State, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.written) == 0 {
		return "", 0
	}
	return s.written[len(s.written)-1], len(s.written)
}

// runStatusFiles writes states to the store until stop is called.
func runStatusFiles(t *testing.T, l ledger.Ledger, s storage.Store) (f *statusFiles, stop func()) {
	f = newStatusFiles(l, s, "node", time.Second, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { f.run(ctx) })
	return f, func() {
		cancel()
		running.Wait()
	}
}

// A state that is not final is left out where the job ends first; clients are told
// of the end once it is in storage, or after a while; and the checkpoint never
// passes what is not written.
func TestStatusFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s := new(oneJob), new(states)
		f, stop := runStatusFiles(t, l, s)
		defer stop()
		told := 0
		tell := func(job.Event) { told++ }

		l.set(job.Queued)
		f.note(job.Event{Cursor: "1", Job: "job", Kind: job.EventQueued, State: job.Queued}, false, func(job.Event) {})
		done := l.set(job.Done)
		f.note(job.Event{Cursor: "2", Job: "job", Kind: job.EventEnded, State: job.Done, Status: done}, false, tell)
		synctest.Wait()
		if last, n := s.last(); last != job.Done || n != 1 || told != 1 {
			t.Fatalf("%d states were written, the last %s, told %d times", n, last, told)
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if _, n := s.last(); n != 1 || l.checkpoint() != "2" {
			t.Errorf("%d states were written, the checkpoint is %q", n, l.checkpoint())
		}

		// The next run, while storage is away.
		s.mu.Lock()
		s.fail = errdefs.ErrUnavailable
		s.mu.Unlock()
		failed := l.set(job.Cancelled)
		f.note(job.Event{Cursor: "3", Job: "job", Run: 2, Kind: job.EventEnded, State: job.Cancelled, Status: failed}, false, tell)
		time.Sleep(time.Minute)
		synctest.Wait()
		if told != 2 || l.checkpoint() != "2" {
			t.Errorf("storage is away: told %d times, the checkpoint is %q", told, l.checkpoint())
		}
		s.mu.Lock()
		s.fail = nil
		s.mu.Unlock()
		time.Sleep(time.Minute)
		synctest.Wait()
		if last, n := s.last(); last != job.Cancelled || n != 2 || l.checkpoint() != "3" {
			t.Errorf("storage is back: %d states, the last %s, the checkpoint is %q", n, last, l.checkpoint())
		}

		// A store that is slow keeps nobody waiting for long.
		s.mu.Lock()
		s.slow = time.Minute
		s.mu.Unlock()
		f.note(job.Event{Cursor: "4", Job: "job", Run: 3, Kind: job.EventEnded, State: job.Cancelled, Status: failed}, false, tell)
		time.Sleep(maxNotifyDelay + time.Millisecond)
		synctest.Wait()
		if told != 3 {
			t.Errorf("told %d times while storage is slow", told)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if last, _ := s.last(); last != job.Cancelled || told != 3 || l.checkpoint() != "4" {
			t.Errorf("the last is %s, told %d times, the checkpoint is %q", last, told, l.checkpoint())
		}
	})
}

// syncedStates are states that are not durable before they are synced.
type syncedStates struct {
	states
	synced int // of those written
	broken error
}

func (s *syncedStates) SyncStatuses(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken == nil {
		s.synced = len(s.written)
	}
	return s.broken
}

// The checkpoint never passes a state that is not durable.
func TestStatusFilesSynced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s := new(oneJob), new(syncedStates)
		f, stop := runStatusFiles(t, l, s)
		defer stop()
		end := func(cursor job.Cursor) {
			t.Helper()
			told := false
			f.note(job.Event{Cursor: cursor, Job: "job", Kind: job.EventEnded, State: job.Done, Status: l.set(job.Done)}, false, func(job.Event) { told = true })
			synctest.Wait()
			if !told {
				t.Error("who waits for the job's end waits for the disk")
			}
			time.Sleep(3 * checkpointEvery)
			synctest.Wait()
		}
		end("1")
		if s.synced != 1 || l.checkpoint() != "1" {
			t.Errorf("%d states are durable, the checkpoint is %q", s.synced, l.checkpoint())
		}
		s.mu.Lock()
		s.broken = errdefs.ErrUnavailable
		s.mu.Unlock()
		end("2")
		if s.synced != 1 || l.checkpoint() != "1" {
			t.Errorf("%d states are durable, the checkpoint is %q", s.synced, l.checkpoint())
		}
	})
}
