package ledgertest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// testDurable: every record is unchanged after the ledger is closed and after its process
// is killed.
func (s suite) testDurable(t *testing.T) {
	f := s.open(t, Options{})
	f.create("queued", priority(-1), sheep("a"), model(job.Model{Name: "ns/größe", Version: "ß"}))
	f.create("held")
	held := f.claim(ahead("a"), "held")
	f.create("processing")
	processing := f.claim(slot("b"), "processing")
	f.create("done")
	f.finish(f.claim(slot("c"), "done"))
	f.create("failed")
	c := f.claim(slot("c"), "failed")
	f.finishAs(c, ledger.Outcome{State: job.Failed, Failure: &job.Failure{Message: "m", Type: "T"}, Cause: job.CauseError, Warnings: []string{"w"}})
	f.create("cancelled")
	f.cancel("cancelled")
	f.create("released")
	f.release(f.claim(slot("c"), "released"), spent)
	f.create("delayed", func(r *job.Record) {
		r.NotBefore, r.WaitUntil, r.Deadline = time.Now().Add(longTime), time.Now().Add(2*longTime), time.Now().Add(3*longTime)
		pause := time.Minute
		r.Limits.RetryPause = &pause
	})
	f.create("cancelling")
	f.claim(ledger.Slot{Node: "node", Sheep: "d", Only: "cancelling"}, "cancelling")
	f.cancel("cancelling")
	f.create("again")
	f.cancel("again")
	f.create("again")

	want := f.list(ledger.Filter{}, 100)
	if len(want) != 10 {
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
	// Claims survive the process.
	f.start(held)
	f.finish(held)
	f.release(processing, unspent)
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
	// No job stays claimed after its caller stopped waiting, whenever that was.
	const n = 40
	f.finish(c)
	for i := range n {
		f.create(fmt.Sprint("job", i))
	}
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
	hung := time.After(patience)
	for len(got) < n { // a claim without a caller is released
		changed := f.Changed()
		claim, err := f.Claim(f.Context(), slot("a"))
		if err != nil {
			t.Fatal(err)
		}
		if claim == nil {
			select {
			case <-changed:
			case <-hung:
				t.Fatalf("%d of %d jobs came back", len(got), n)
			}
			continue
		}
		if _, twice := got[claim.ID]; twice {
			t.Fatalf("%s was given out twice", claim.ID)
		}
		got[claim.ID] = *claim
	}
	for _, claim := range got {
		if claim.Spent != 0 {
			t.Fatalf("%s was claimed once, but %d attempts are spent", claim.ID, claim.Spent)
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

// calls makes every call of a ledger and returns the errors.
func calls(ctx context.Context, l ledger.Ledger, c ledger.Claim) map[string]error {
	answers := map[string]error{}
	_, answers["Create"] = l.Create(ctx, job.Record{ID: "y", Model: red})
	_, answers["Claim"] = l.Claim(ctx, slot("a"))
	_, answers["Start"] = l.Start(ctx, c.ID, c.Token)
	_, answers["Finish"] = l.Finish(ctx, c.ID, c.Token, done)
	_, answers["Release"] = l.Release(ctx, c.ID, c.Token, unspent)
	_, answers["Cancel"] = l.Cancel(ctx, c.ID)
	_, answers["Get"] = l.Get(ctx, c.ID)
	_, answers["Held"] = l.Held(ctx, "node")
	_, _, answers["List"] = l.List(ctx, ledger.Filter{}, 0, 10)
	_, answers["Count"] = l.Count(ctx)
	_, answers["Join"] = l.Join(ctx, "node")
	_, answers["Attempts"] = l.Attempts(ctx, c.ID)
	_, answers["LastAttempts"] = l.LastAttempts(ctx, []job.ID{c.ID})
	_, answers["Waiting"] = l.Waiting(ctx, 10)
	_, _, answers["Events"] = l.Events(ctx, "", ledger.EventFilter{}, 10)
	_, _, answers["NewestEvents"] = l.NewestEvents(ctx, ledger.EventFilter{}, 10)
	_, answers["Now"] = l.Now(ctx)
	_, answers["Checkpoint"] = l.Checkpoint(ctx, "consumer")
	answers["SetCheckpoint"] = l.SetCheckpoint(ctx, "consumer", "")
	answers["Ping"] = l.Ping(ctx)
	if w, ok := l.(ledger.Webhooks); ok {
		_, answers["JobWebhooks"] = w.JobWebhooks(ctx, []ledger.JobRun{{Job: c.ID, Run: 1}})
		_, answers["QueueDeliveries"] = w.QueueDeliveries(ctx, "consumer", "", "", nil, nil)
		_, _, answers["ClaimDeliveries"] = w.ClaimDeliveries(ctx, 1, nil, time.Hour)
		answers["SettleDelivery"] = w.SettleDelivery(ctx, "x", 1, ledger.DeliveryResult{State: job.DeliveryDelivered})
		_, answers["Redeliver"] = w.Redeliver(ctx, "x", "")
		_, _, answers["Deliveries"] = w.Deliveries(ctx, job.DeliveryFilter{}, 0, 1)
		_, answers["Undelivered"] = w.Undelivered(ctx)
		_, answers["ExpireDeliveries"] = w.ExpireDeliveries(ctx, time.Hour, 1, 1)
	}
	return answers
}
