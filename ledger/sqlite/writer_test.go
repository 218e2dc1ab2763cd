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

// together makes the calls so that the writer takes them as one batch.
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

// TestGroupCommit: one commit makes the changes of many callers durable, refused ones
// included.
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

// TestRefusedNeighbours: a refusal of any kind is the answer to its caller only, and the
// changes of the others share one commit.
func TestRefusedNeighbours(t *testing.T) {
	l := openTemp(t, Config{})
	for _, rec := range []job.Record{{ID: "open"}, {ID: "ended"}, {ID: "others", Tenant: "wool"}} {
		if _, err := l.Create(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []job.ID{"ended", "others"} {
		if _, err := l.Cancel(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	next := 0
	for name, c := range map[string]struct {
		call func() error
		want error
	}{
		"exists":    {func() error { _, err := l.Create(t.Context(), job.Record{ID: "open"}); return err }, ledger.ErrExists},
		"others":    {func() error { _, err := l.Create(t.Context(), job.Record{ID: "others", Tenant: "meat"}); return err }, ledger.ErrOthers},
		"not found": {func() error { _, err := l.Cancel(t.Context(), "none"); return err }, ledger.ErrNotFound},
		"fenced":    {func() error { _, err := l.Start(t.Context(), "open", 7); return err }, ledger.ErrFenced},
		"final":     {func() error { _, err := l.Cancel(t.Context(), "ended"); return err }, ledger.ErrFinal},
		"any other": {func() error {
			return l.change(t.Context(), "refuse", func(*tx) error { return errRefused }, nil)
		}, errRefused},
	} {
		const n = 39
		calls := []func(){func() {
			if err := c.call(); !errors.Is(err, c.want) {
				t.Errorf("%s: answered %v", name, err)
			}
		}}
		for range n {
			rec := numbered(next)
			next++
			calls = append(calls, func() {
				if _, err := l.Create(t.Context(), rec); err != nil {
					t.Errorf("beside %s: %v", name, err)
				}
			})
		}
		before := l.writer.commits.Load()
		together(t, l, calls...)
		if commits := l.writer.commits.Load() - before; commits != 1 {
			t.Errorf("%s: %d commits for %d changes, want 1", name, commits, n)
		}
	}
}

var errRefused = fmt.Errorf("some refusal to come: %w", errdefs.ErrConflict)

// TestBadNeighbour: where one change of a batch fails halfway, the others are made, and
// there are events of exactly those.
func TestBadNeighbour(t *testing.T) {
	for name, fail := range map[string]func(*tx) error{
		"by itself":    func(*tx) error { return errBroken },
		"by a refusal": func(*tx) error { return ledger.ErrFenced }, // but after it wrote
	} {
		t.Run(name, func(t *testing.T) {
			l := openTemp(t, Config{})
			const n = 10
			var calls []func()
			for i := range n {
				calls = append(calls, func() {
					if i == n/2 {
						err := l.change(t.Context(), "fail", func(tx *tx) error {
							if _, err := tx.create(job.Record{ID: "trace"}); err != nil {
								return err
							}
							return fail(tx)
						}, nil)
						if err == nil {
							t.Error("the failing change succeeded")
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
			events, _, err := l.Events(t.Context(), "", ledger.EventFilter{}, 100)
			if err != nil || len(events) != n-1 {
				t.Errorf("%d events, %v", len(events), err)
			}
			if counts, err := l.Count(t.Context()); err != nil || counts[job.Queued] != n-1 {
				t.Errorf("counts are %v, %v", counts, err)
			}
		})
	}
}

var errBroken = errors.New("broken")

// TestNoNeedlessCommit: where nothing changes, nothing is written.
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

// TestExpiryByAge: old records expire in small steps, and only those that ended.
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

	cfg.Now = func() time.Time { return time.Now().Add(time.Hour + time.Minute) }
	l = mustOpen(t, cfg)
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

// TestExpiryStep: the number of records that one transaction removes is bounded.
func TestExpiryStep(t *testing.T) {
	cfg := Config{Path: filepath.Join(t.TempDir(), "ledger.db"), KeepJobs: 1000}
	l := mustOpen(t, cfg)
	fill(t, l, 0, 300)
	for i := range 300 {
		if _, err := l.Cancel(t.Context(), numbered(i).ID); err != nil {
			t.Fatal(err)
		}
	}
	for _, idle := range []bool{true, false} {
		err := l.change(t.Context(), "expire", func(tx *tx) error {
			keep := tx.w.cfg.KeepJobs
			defer func() { tx.w.cfg.KeepJobs = keep }()
			tx.w.cfg.KeepJobs, tx.w.maintenance.sweeping = 1, true
			if err := tx.expire(idle); err != nil {
				return err
			}
			want := expireWithChanges
			if idle {
				want = expireIdle
			}
			if got := -tx.states[job.Cancelled]; got != want {
				t.Errorf("idle %v: %d records expired at once, want %d", idle, got, want)
			}
			if !tx.sweepMore {
				t.Error("the rest is forgotten")
			}
			return nil
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
	}
}
