package ledgertest

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// testTwoNodes: of two nodes on one ledger each sees the changes of the other, no job is
// held by both, and each can use its own claims after the other has left.
func (s suite) testTwoNodes(t *testing.T) {
	f := s.open(t, Options{})
	second := f.harness.Another(t, f.Ledger)
	ctx := t.Context()
	ledgers := map[string]ledger.Ledger{"node": f.Ledger, "other": second}

	f.create("x")
	if rec, err := second.Get(ctx, "x"); err != nil || rec.ID != "x" {
		t.Fatalf("the other node sees %+v, %v", rec, err)
	}
	c, err := second.Claim(ctx, ledger.Slot{Node: "other", Sheep: "a"})
	if err != nil || c == nil {
		t.Fatalf("Claim = %v, %v", c, err)
	}
	f.claimNothing(slot("a")) // a sheep of the same name
	if asked := f.cancel("x"); !asked.Cancelling {
		t.Fatalf("cancelled from the other node: %s", show(asked))
	}
	if rec, err := second.Release(ctx, "x", c.Token, unspent); err != nil || rec.State != job.Cancelled {
		t.Fatalf("released as %s, %v", rec.State, err)
	}

	const jobs = 60
	var mu sync.Mutex
	holders := map[job.ID]string{}
	var group sync.WaitGroup
	for i := range jobs {
		f.create(fmt.Sprint("job", i), model([]job.Model{red, blue}[i%2]))
	}
	for node, l := range ledgers {
		for i := range 3 {
			group.Go(func() {
				for {
					c, err := l.Claim(ctx, ledger.Slot{Node: node, Sheep: fmt.Sprint("sheep", i), Prefer: blue})
					if err != nil {
						t.Errorf("Claim: %v", err)
					}
					if c == nil {
						return
					}
					mu.Lock()
					if other := holders[c.ID]; other != "" {
						t.Errorf("%s is with %s and %s", c.ID, other, node)
					}
					holders[c.ID] = node
					mu.Unlock()
				}
			})
		}
	}
	group.Wait()
	if len(holders) != jobs {
		t.Fatalf("%d of %d jobs were claimed", len(holders), jobs)
	}
	for node, l := range ledgers {
		held, err := ledgers["node"].Held(ctx, node)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range held {
			if holders[c.ID] != node || c.Node != node {
				t.Fatalf("%s of %s is held by %s", c.ID, c.Node, holders[c.ID])
			}
			if _, err := l.Finish(ctx, c.ID, c.Token, done); err != nil {
				t.Fatal(err)
			}
			delete(holders, c.ID)
		}
	}
	if len(holders) > 0 {
		t.Fatalf("nobody holds %v", holders)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	f.create("last")
	f.finish(f.claim(slot("a"), "last"))
}

// testLease: a lease is lost when the same node joins again, and not when another does.
func (s suite) testLease(t *testing.T) {
	f := s.open(t, Options{})
	join := func(node string) ledger.Lease {
		t.Helper()
		lease, err := f.Join(f.Context(), node)
		if err != nil {
			t.Fatal(err)
		}
		return lease
	}
	lost := func(lease ledger.Lease) bool {
		select {
		case <-lease.Lost():
			return true
		default:
			return false
		}
	}
	first, other := join("node"), join("other")
	f.create("x")
	c := f.claim(slot("a"), "x")
	second := join("node")
	select {
	case <-first.Lost():
	case <-time.After(patience):
		t.Fatal("the first lease is not lost to the second")
	}
	if lost(second) || lost(other) {
		t.Fatal("another lease is lost")
	}
	if held, err := f.Held(f.Context(), "node"); err != nil || len(held) != 1 || held[0].ID != "x" {
		t.Fatalf("the node holds %v, %v", held, err)
	}
	for range 2 {
		if err := second.Release(f.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if lost(second) {
		t.Fatal("a lease that was given up counts as lost")
	}
	third := join("node") // after a release, its claims are still there
	if held, err := f.Held(f.Context(), "node"); err != nil || len(held) != 1 || held[0].ID != c.ID {
		t.Fatalf("the node holds %v, %v", held, err)
	}
	f.reopen()
	for name, lease := range map[string]ledger.Lease{"node": third, "other": other} {
		select {
		case <-lease.Lost():
		case <-time.After(patience):
			t.Errorf("the lease of %s outlives its ledger", name)
		}
	}
}
