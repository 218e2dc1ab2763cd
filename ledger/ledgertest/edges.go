package ledgertest

import (
	"errors"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// testEdges makes every change in every situation of a record, allowed or refused.
func (s suite) testEdges(t *testing.T) {
	// These bring a record into each situation. They return its last claim.
	situations := map[string]func(f *fixture) ledger.Claim{
		"queued": func(f *fixture) ledger.Claim { f.create("x"); return ledger.Claim{Record: job.Record{ID: "x"}} },
		"delayed": func(f *fixture) ledger.Claim {
			f.create("x", func(r *job.Record) { r.NotBefore = time.Now().Add(longTime) })
			return ledger.Claim{Record: job.Record{ID: "x"}}
		},
		"held":       func(f *fixture) ledger.Claim { f.create("x"); return f.claim(ahead("a"), "x") },
		"processing": func(f *fixture) ledger.Claim { f.create("x"); return f.claim(slot("a"), "x") },
		"cancelling, held": func(f *fixture) ledger.Claim {
			f.create("x")
			c := f.claim(ahead("a"), "x")
			f.cancel("x")
			return c
		},
		"cancelling, processing": func(f *fixture) ledger.Claim {
			f.create("x")
			c := f.claim(slot("a"), "x")
			f.cancel("x")
			return c
		},
		"released": func(f *fixture) ledger.Claim {
			f.create("x")
			c := f.claim(slot("a"), "x")
			f.release(c, spent)
			return c
		},
		"taken over": func(f *fixture) ledger.Claim { // c is the claim of the former holder
			f.create("x")
			c := f.claim(slot("a"), "x")
			f.release(c, unspent)
			f.claim(slot("b"), "x")
			return c
		},
		"done": func(f *fixture) ledger.Claim {
			f.create("x")
			c := f.claim(slot("a"), "x")
			f.finish(c)
			return c
		},
		"failed": func(f *fixture) ledger.Claim {
			f.create("x")
			c := f.claim(slot("a"), "x")
			f.finishAs(c, failed)
			return c
		},
		"cancelled": func(f *fixture) ledger.Claim {
			f.create("x")
			f.cancel("x")
			return ledger.Claim{Record: job.Record{ID: "x"}}
		},
		"cancelled by its holder": func(f *fixture) ledger.Claim {
			f.create("x")
			c := f.claim(ahead("a"), "x")
			f.cancel("x")
			f.release(c, unspent)
			return c
		},
		"submitted again": func(f *fixture) ledger.Claim { // c is a claim of the earlier run
			f.create("x")
			c := f.claim(slot("a"), "x")
			f.finish(c)
			f.create("x")
			return c
		},
	}
	steps := map[string]func(f *fixture, c ledger.Claim) error{
		"create": func(f *fixture, _ ledger.Claim) error {
			_, err := f.Create(f.Context(), job.Record{ID: "x", Model: red})
			return err
		},
		"start": func(f *fixture, c ledger.Claim) error {
			_, err := f.Start(f.Context(), c.ID, c.Token)
			return err
		},
		"finish": func(f *fixture, c ledger.Claim) error {
			_, err := f.Finish(f.Context(), c.ID, c.Token, done)
			return err
		},
		"release": func(f *fixture, c ledger.Claim) error {
			_, err := f.Release(f.Context(), c.ID, c.Token, spent)
			return err
		},
		"cancel": func(f *fixture, _ ledger.Claim) error {
			_, err := f.Cancel(f.Context(), "x")
			return err
		},
	}
	// after is the state the step leaves, where it is allowed.
	type outcome struct {
		err   error
		after job.State
	}
	to := func(state job.State) outcome { return outcome{after: state} }
	var (
		exists = outcome{err: ledger.ErrExists}
		fenced = outcome{err: ledger.ErrFenced}
		final  = outcome{err: ledger.ErrFinal}
	)
	table := map[string]map[string]outcome{
		"queued":                  {"create": exists, "start": fenced, "finish": fenced, "release": fenced, "cancel": to(job.Cancelled)},
		"delayed":                 {"create": exists, "start": fenced, "finish": fenced, "release": fenced, "cancel": to(job.Cancelled)},
		"held":                    {"create": exists, "start": to(job.Processing), "finish": to(job.Done), "release": to(job.Queued), "cancel": to(job.Queued)},
		"processing":              {"create": exists, "start": to(job.Processing), "finish": to(job.Done), "release": to(job.Queued), "cancel": to(job.Processing)},
		"cancelling, held":        {"create": exists, "start": to(job.Processing), "finish": to(job.Cancelled), "release": to(job.Cancelled), "cancel": to(job.Queued)},
		"cancelling, processing":  {"create": exists, "start": to(job.Processing), "finish": to(job.Cancelled), "release": to(job.Cancelled), "cancel": to(job.Processing)},
		"released":                {"create": exists, "start": fenced, "finish": fenced, "release": fenced, "cancel": to(job.Cancelled)},
		"taken over":              {"create": exists, "start": fenced, "finish": fenced, "release": fenced, "cancel": to(job.Processing)},
		"done":                    {"create": to(job.Queued), "start": fenced, "finish": fenced, "release": fenced, "cancel": final},
		"failed":                  {"create": to(job.Queued), "start": fenced, "finish": fenced, "release": fenced, "cancel": final},
		"cancelled":               {"create": to(job.Queued), "start": fenced, "finish": fenced, "release": fenced, "cancel": final},
		"cancelled by its holder": {"create": to(job.Queued), "start": fenced, "finish": fenced, "release": fenced, "cancel": final},
		"submitted again":         {"create": exists, "start": fenced, "finish": fenced, "release": fenced, "cancel": to(job.Cancelled)},
	}
	if len(table) != len(situations) {
		t.Fatalf("%d of %d situations are in the table", len(table), len(situations))
	}
	for situation, outcomes := range table {
		t.Run(situation, func(t *testing.T) {
			shared := s.open(t, Options{})
			for step, want := range outcomes {
				t.Run(step, func(t *testing.T) {
					f := shared.of(t)
					defer f.putAway("x") // for the next step
					c := situations[situation](f)
					before := f.get("x")
					f.now()
					err := steps[step](f, c)
					after := f.get("x")
					if want.err != nil {
						if !errors.Is(err, want.err) {
							t.Fatalf("answered %v, want %v", err, want.err)
						}
						f.checkSame("after a refusal", after, before)
						if events := f.read(); len(events) > 0 {
							t.Fatalf("a refusal recorded %+v", events)
						}
						return
					}
					if err != nil || after.State != want.after {
						t.Fatalf("answered %v and left the job %s, want %s", err, after.State, want.after)
					}
					if after.State.Final() && (after.Holder != "" || after.Node != "" || after.Cancelling) {
						t.Fatalf("ended: %s", show(after))
					}
				})
			}
		})
	}
}
