package ledgertest

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// testRaceForOne: of many callers that make the same change, one succeeds.
func (s suite) testRaceForOne(t *testing.T) {
	f := s.open(t, Options{})
	const callers, rounds = 16, 10
	// race returns how many of the callers got nil; the others must get want.
	race := func(what string, call func(caller int) error, want ...error) int {
		t.Helper()
		var won atomic.Int32
		var group sync.WaitGroup
		for caller := range callers {
			group.Go(func() {
				err := call(caller)
				if err == nil {
					won.Add(1)
					return
				}
				for _, w := range want {
					if errors.Is(err, w) {
						return
					}
				}
				t.Errorf("%s answered %v", what, err)
			})
		}
		group.Wait()
		return int(won.Load())
	}
	ctx := t.Context()
	for round := range rounds {
		if n := race("Create", func(int) error {
			_, err := f.Create(ctx, job.Record{ID: "x", Model: red})
			return err
		}, ledger.ErrExists); n != 1 {
			t.Fatalf("%d of %d created the job", n, callers)
		}
		if run := f.get("x").Run; run != round+1 {
			t.Fatalf("run %d, want %d", run, round+1)
		}
		claims := make(chan ledger.Claim, callers)
		race("Claim", func(caller int) error {
			claim, err := f.Claim(ctx, slot(fmt.Sprint("sheep", caller)))
			if claim != nil {
				claims <- *claim
			}
			return err
		})
		if len(claims) != 1 {
			t.Fatalf("%d of %d claimed the job", len(claims), callers)
		}
		c := <-claims
		// Cancel is a request while the job is held: it may be answered before the end, any
		// number of times, or refused after it. A cancel that was answered is kept.
		var asked atomic.Bool
		if n := race("Finish and Cancel", func(caller int) error {
			if caller%2 == 0 {
				rec, err := f.Cancel(ctx, "x")
				if err == nil && rec.Cancelling {
					asked.Store(true)
					return errAsked
				}
				return err
			}
			_, err := f.Finish(ctx, "x", c.Token, done)
			return err
		}, ledger.ErrFenced, ledger.ErrFinal, errAsked); n != 1 {
			t.Fatalf("%d of %d ended the job", n, callers)
		}
		if rec := f.get("x"); (rec.State == job.Cancelled) != asked.Load() || rec.State != job.Cancelled && rec.State != job.Done {
			t.Fatalf("ended as %s; cancelled before: %t", show(rec), asked.Load())
		}
	}
}

// errAsked stands for a Cancel of a held job, which did not end it.
var errAsked = errors.New("the holder was asked to end the job")

// testRaceForMany: many sheep run the jobs of many clients. Each job has one holder at a
// time and ends once.
func (s suite) testRaceForMany(t *testing.T) {
	f := s.open(t, Options{})
	const clients, each, sheeps = 6, 30, 6
	ctx := t.Context()
	var held, ended sync.Map // by id
	var left atomic.Int64
	left.Store(clients * each)
	finished := make(chan struct{}) // closed when none is left
	models := []job.Model{red, blue}

	var group sync.WaitGroup
	for client := range clients {
		group.Go(func() {
			for i := range each {
				rec := job.Record{ID: job.ID(fmt.Sprintf("job-%d-%d", client, i)), Model: models[i%2], Priority: i % 3}
				if i%5 == 0 {
					rec.Sheep = fmt.Sprint("sheep", i%sheeps)
				}
				if _, err := f.Create(ctx, rec); err != nil {
					t.Errorf("Create: %v", err)
					return
				}
			}
		})
	}
	wake := make([]chan struct{}, sheeps)
	for i := range wake {
		wake[i] = make(chan struct{}, 1)
	}
	for i := range sheeps {
		group.Go(func() {
			work := ledger.Slot{Node: nodes[i%2], Sheep: fmt.Sprint("sheep", i), Prefer: models[i%2]}
			for n := 0; ; n++ {
				work.Ahead = n%4 == 0
				c, err := f.Claim(ctx, work)
				if err != nil {
					t.Errorf("Claim: %v", err)
					return
				}
				if c == nil {
					select {
					case <-wake[i]:
						continue
					case <-finished:
						return
					}
				}
				if c.Sheep != "" && c.Sheep != work.Sheep {
					t.Errorf("%s got a job of %s", work.Sheep, c.Sheep)
				}
				if other, twice := held.LoadOrStore(c.ID, work.Sheep); twice {
					t.Errorf("%s is with %s and %s", c.ID, other, work.Sheep)
				}
				held.Delete(c.ID) // from now on another sheep may claim it
				if n%7 == 3 {
					if _, err := f.Release(ctx, c.ID, c.Token, ledger.Return{Cause: job.CauseHandedBack, Spent: n%2 == 0}); err != nil {
						t.Errorf("Release: %v", err)
					}
					continue
				}
				if _, err := f.Start(ctx, c.ID, c.Token); err != nil {
					t.Errorf("Start: %v", err)
				}
				if _, err := f.Finish(ctx, c.ID, c.Token, done); err != nil {
					t.Errorf("Finish: %v", err)
				}
				if _, twice := ended.LoadOrStore(c.ID, true); twice {
					t.Errorf("%s ended twice", c.ID)
				}
				if left.Add(-1) == 0 {
					close(finished)
				}
			}
		})
	}
	// Every event wakes all sheep: a job may have been created or released.
	counted := map[job.ID]int{}
	hung := time.After(patience)
	for total := 0; total < clients*each && !t.Failed(); {
		changed := f.Changed()
		for _, event := range f.read() {
			if event.State.Final() {
				counted[event.Job]++
				total++
			}
		}
		for _, w := range wake {
			select {
			case w <- struct{}{}:
			default:
			}
		}
		if total < clients*each {
			select {
			case <-changed:
			case <-hung:
				t.Fatalf("%d of %d jobs ended", total, clients*each)
			}
		}
	}
	group.Wait()
	for id, n := range counted {
		if n != 1 {
			t.Errorf("%s ended %d times", id, n)
		}
	}
	if got := f.count(); got[job.Done] != clients*each || got[job.Queued] != 0 || got[job.Processing] != 0 {
		t.Fatalf("counts are %v", got)
	}
}
