package sqlite

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// together has the calls wait in the writer's queue and be taken as one batch.
func together(t *testing.T, l *Ledger, calls ...func()) {
	t.Helper()
	var group sync.WaitGroup
	err := l.change(t.Context(), "hold the writer", func(tx *tx) error {
		for _, call := range calls {
			group.Go(call)
		}
		for len(l.writer.ops) < len(calls) {
			runtime.Gosched()
		}
		return nil
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	group.Wait()
}

func openTemp(t *testing.T, cfg Config) *Ledger {
	t.Helper()
	cfg.Path = filepath.Join(t.TempDir(), "ledger.db")
	return mustOpen(t, cfg)
}

// TestGroupCommit makes many callers' changes durable by one commit, the
// refused among them included.
func TestGroupCommit(t *testing.T) {
	l := openTemp(t, Config{})
	const n = 40
	var calls []func()
	var mu sync.Mutex
	created, refused := 0, 0
	for i := range 2 * n {
		calls = append(calls, func() {
			_, err := l.Create(t.Context(), numbered(i/2)) // each twice
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				created++
			case errors.Is(err, ledger.ErrExists):
				refused++
			default:
				t.Errorf("Create: %v", err)
			}
		})
	}
	before := l.writer.commits.Load()
	together(t, l, calls...)
	if created != n || refused != n {
		t.Errorf("%d created, %d refused, want %d of each", created, refused, n)
	}
	if commits := l.writer.commits.Load() - before; commits != 1 {
		t.Errorf("%d commits, want 1", commits)
	}
}

// TestBadNeighbour has one change of a batch fail halfway: the others are made
// nevertheless, and no number is missing among the events.
func TestBadNeighbour(t *testing.T) {
	l := openTemp(t, Config{})
	events, err := l.Watch(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	const n = 10
	var calls []func()
	for i := range n {
		calls = append(calls, func() {
			if i == n/2 {
				err := l.change(t.Context(), "fail", func(tx *tx) error {
					if _, err := tx.create(job.Record{ID: "trace"}); err != nil {
						return err
					}
					return broken
				}, nil)
				if !errors.Is(err, broken) || !errdefs.IsInternal(err) {
					t.Errorf("the failing change answered %v", err)
				}
				return
			}
			if _, err := l.Create(t.Context(), numbered(i)); err != nil {
				t.Errorf("Create: %v", err)
			}
		})
	}
	together(t, l, calls...)
	if _, err := l.Get(t.Context(), "trace"); !errors.Is(err, ledger.ErrNotFound) {
		t.Errorf("the failed change left a record: %v", err)
	}
	for i := range n - 1 {
		if event := <-events; event.Seq != int64(i+1) {
			t.Errorf("event %d, want %d", event.Seq, i+1)
		}
	}
	if counts, err := l.Count(t.Context()); err != nil || counts[job.Queued] != n-1 {
		t.Errorf("counts are %v, %v", counts, err)
	}
}

// TestNoNeedlessCommit leaves the disk alone where nothing changes.
func TestNoNeedlessCommit(t *testing.T) {
	l := openTemp(t, Config{})
	before := l.writer.commits.Load()
	if c, err := l.Claim(t.Context(), ledger.Slot{Node: "n", Sheep: "a"}); c != nil || err != nil {
		t.Fatalf("Claim = %v, %v", c, err)
	}
	if _, err := l.Cancel(t.Context(), "x"); !errors.Is(err, ledger.ErrNotFound) {
		t.Fatalf("Cancel: %v", err)
	}
	if commits := l.writer.commits.Load() - before; commits != 0 {
		t.Errorf("%d commits for nothing", commits)
	}
	if err := l.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if commits := l.writer.commits.Load() - before; commits != 1 {
		t.Errorf("%d commits by Ping, which has to try one", commits)
	}
}

// TestExpiryByAge lets records grow old: they go in small steps, and only those
// that ended.
func TestExpiryByAge(t *testing.T) {
	t.Parallel()
	const n = 300
	cfg := Config{Path: filepath.Join(t.TempDir(), "ledger.db"), Keep: time.Hour}
	l := mustOpen(t, cfg)
	fill(t, l, 0, n+1)
	for i := range n {
		if _, err := l.Cancel(t.Context(), numbered(i).ID); err != nil {
			t.Fatal(err)
		}
	}
	l.Close()

	later := func() time.Time { return job.Now().Add(time.Hour + time.Minute) }
	l, err := open(t.Context(), cfg, later)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := l.Create(t.Context(), job.Record{ID: "young"}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Cancel(t.Context(), "young"); err != nil {
		t.Fatal(err)
	}
	for rounds := 0; ; rounds++ { // each call takes a few old records with it
		if err := l.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		counts, err := l.Count(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if counts[job.Cancelled] == 1 && counts[job.Queued] == 1 {
			break
		}
		if rounds > n {
			t.Fatalf("counts are still %v", counts)
		}
	}
	if _, err := l.Get(t.Context(), "young"); err != nil {
		t.Errorf("a record expired before its time: %v", err)
	}
	if _, err := l.Get(t.Context(), numbered(0).ID); !errors.Is(err, ledger.ErrNotFound) {
		t.Errorf("an old record: %v", err)
	}
}

// TestExpiryStep bounds what one transaction removes.
func TestExpiryStep(t *testing.T) {
	cfg := Config{Path: filepath.Join(t.TempDir(), "ledger.db"), KeepJobs: 1000}
	l := mustOpen(t, cfg)
	fill(t, l, 0, 300)
	for i := range 300 {
		if _, err := l.Cancel(t.Context(), numbered(i).ID); err != nil {
			t.Fatal(err)
		}
	}
	for _, alone := range []bool{true, false} {
		err := l.change(t.Context(), "expire", func(tx *tx) error {
			keep := tx.w.cfg.KeepJobs
			defer func() { tx.w.cfg.KeepJobs = keep }()
			tx.w.cfg.KeepJobs, tx.w.sweeping = 1, true
			if err := tx.expire(alone); err != nil {
				return err
			}
			want := expireBeside
			if alone {
				want = expireAlone
			}
			if got := -tx.changes[job.Cancelled]; got != want {
				t.Errorf("alone %v: %d records expired at once, want %d", alone, got, want)
			}
			if !tx.sweepOn {
				t.Error("the rest is forgotten")
			}
			return nil
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestOvertakesArePruned overtakes again and again: what is kept of it stays
// little.
func TestOvertakesArePruned(t *testing.T) {
	t.Parallel()
	l := openTemp(t, Config{MaxOvertakes: 3})
	blue := job.Model{Name: "blue"}
	most := 0
	for i := range 2000 {
		model := job.Model{Name: "red"}
		if i%4 != 0 {
			model = blue
		}
		if _, err := l.Create(t.Context(), job.Record{ID: job.ID(fmt.Sprint("job", i)), Model: model}); err != nil {
			t.Fatal(err)
		}
		if i < 8 {
			continue
		}
		if c, err := l.Claim(t.Context(), ledger.Slot{Node: "n", Sheep: "a", Loaded: blue}); c == nil || err != nil {
			t.Fatalf("Claim = %v, %v", c, err)
		}
		if i%100 == 0 {
			if err := l.change(t.Context(), "look", func(tx *tx) error { most = max(most, tx.overtakes); return nil }, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	if most < pruneEvery/2 {
		t.Errorf("there were %d overtakes at most: nothing to prune", most)
	}
	if most > 2*pruneEvery {
		t.Errorf("%d overtakes are kept", most)
	}
}
