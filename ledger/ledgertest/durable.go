package ledgertest

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// testDurable finds every record as it was, after a close and after a kill.
func (s suite) testDurable(t *testing.T) {
	f := s.open(t, Options{MaxOvertakes: 3})
	f.create("queued", priority(-1), sheep("a"), model(job.Model{Name: "ns/größe", Version: "ß"}))
	f.create("held")
	held := f.claim(ledger.Slot{Node: "n", Sheep: "a", Ahead: true}, "held")
	f.create("processing")
	processing := f.claim(slot("b"), "processing")
	f.create("done")
	f.finish(f.claim(slot("c"), "done"))
	f.create("failed")
	c := f.claim(slot("c"), "failed")
	if _, err := f.Finish(f.Context(), "failed", c.Token, ledger.Outcome{State: job.Failed, Failure: &job.Failure{Message: "m", Type: "T", Traceback: "t\n"}}); err != nil {
		t.Fatal(err)
	}
	f.create("cancelled")
	f.cancel("cancelled")
	f.create("released")
	f.release(f.claim(slot("c"), "released"), false)
	f.create("again")
	f.cancel("again")
	f.create("again")

	want := f.list(ledger.Filter{}, 100)
	if len(want) != 8 {
		t.Fatalf("%d records", len(want))
	}
	for _, again := range []func(){f.reopen, f.crash, f.crash, f.reopen} {
		again()
		got := f.list(ledger.Filter{}, 3)
		if len(got) != len(want) {
			t.Fatalf("%d records, want %d", len(got), len(want))
		}
		for i := range want {
			f.checkSame("listed", got[i], want[i])
			f.checkSame("Get", f.get(string(want[i].ID)), want[i])
		}
	}
	// Claims outlive the process, too.
	f.start(held)
	f.finish(held)
	f.release(processing, true)
	f.claim(slot("b"), "processing")
	if last := f.create("last"); last.Seq <= want[len(want)-1].Seq {
		t.Fatalf("place %d was given out before", last.Seq)
	}
}

func (s suite) testContexts(t *testing.T) {
	f := s.open(t, Options{})
	f.create("x")
	c := f.claim(slot("a"), "x")
	ctx, end := context.WithCancel(f.Context())
	end()
	for name, err := range calls(ctx, f.Ledger, c) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s answered %v, want %v", name, err, context.Canceled)
		}
	}
	// Callers that leave at any moment leave no job claimed by nobody.
	const n = 40
	f.finish(c)
	for i := range n {
		f.create(fmt.Sprint("job", i))
	}
	events := f.watch(f.Context(), -1)
	got := map[job.ID]ledger.Claim{}
	for range 4 * n {
		ctx, end := context.WithCancel(f.Context())
		go end()
		claim, err := f.Claim(ctx, slot("a"))
		end()
		switch {
		case err != nil && !errors.Is(err, context.Canceled):
			t.Fatalf("Claim: %v", err)
		case err == nil && claim != nil:
			got[claim.ID] = *claim
		}
	}
	for len(got) < n { // what was given to nobody comes back
		claim, err := f.Claim(f.Context(), slot("a"))
		if err != nil {
			t.Fatal(err)
		}
		if claim == nil {
			f.next(events)
			continue
		}
		if _, twice := got[claim.ID]; twice {
			t.Fatalf("%s was given out twice", claim.ID)
		}
		got[claim.ID] = *claim
	}
	for _, claim := range got {
		if claim.Attempt != 1 {
			t.Fatalf("%s was claimed once, but its attempt is %d", claim.ID, claim.Attempt)
		}
		f.finish(claim)
	}
}

func (s suite) testClose(t *testing.T) {
	f := s.open(t, Options{})
	f.create("x")
	c := f.claim(slot("a"), "x")
	for range 2 {
		if err := f.Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
	}
	for name, err := range calls(f.Context(), f.Ledger, c) {
		if !errdefs.IsUnavailable(err) {
			t.Errorf("%s of a closed ledger answered %v, want an error of class unavailable", name, err)
		}
	}
	f.reopen()
	f.checkSame("Get", f.get("x"), c.Record)
}

// calls makes every call there is and returns what it answered.
func calls(ctx context.Context, l ledger.Ledger, c ledger.Claim) map[string]error {
	answers := map[string]error{}
	_, answers["Create"] = l.Create(ctx, job.Record{ID: "y", Model: red})
	_, answers["Claim"] = l.Claim(ctx, slot("a"))
	_, answers["Start"] = l.Start(ctx, c.ID, c.Token)
	_, answers["Finish"] = l.Finish(ctx, c.ID, c.Token, ledger.Outcome{State: job.Done})
	answers["Release"] = l.Release(ctx, c.ID, c.Token, true)
	_, answers["Cancel"] = l.Cancel(ctx, c.ID)
	_, answers["Get"] = l.Get(ctx, c.ID)
	_, answers["Held"] = l.Held(ctx, "node")
	_, _, answers["List"] = l.List(ctx, ledger.Filter{}, 0, 10)
	_, answers["Count"] = l.Count(ctx)
	_, answers["Watch"] = l.Watch(ctx, -1)
	answers["Ping"] = l.Ping(ctx)
	return answers
}
