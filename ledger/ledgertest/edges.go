package ledgertest

import (
	"errors"
	"testing"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// testEdges walks every edge of the lifecycle, and every step that is none, from
// every situation a record can be in.
func (s suite) testEdges(t *testing.T) {
	// How a record gets into each situation. The claim returned is the last one
	// made on it.
	situations := map[string]func(f *fixture) ledger.Claim{
		"queued": func(f *fixture) ledger.Claim { f.create("x"); return ledger.Claim{Record: job.Record{ID: "x"}} },
		"held": func(f *fixture) ledger.Claim {
			f.create("x")
			return f.claim(ledger.Slot{Node: "node", Sheep: "a", Ahead: true}, "x")
		},
		"processing": func(f *fixture) ledger.Claim { f.create("x"); return f.claim(slot("a"), "x") },
		"released": func(f *fixture) ledger.Claim {
			f.create("x")
			c := f.claim(slot("a"), "x")
			f.release(c, false)
			return c
		},
		"taken over": func(f *fixture) ledger.Claim { // c is the claim of the one before
			f.create("x")
			c := f.claim(slot("a"), "x")
			f.release(c, false)
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
			if _, err := f.Finish(f.Context(), c.ID, c.Token, ledger.Outcome{State: job.Failed, Failure: &job.Failure{Message: "broken"}}); err != nil {
				f.Fatalf("Finish: %v", err)
			}
			return c
		},
		"cancelled": func(f *fixture) ledger.Claim {
			f.create("x")
			c := f.claim(slot("a"), "x")
			f.cancel("x")
			return c
		},
		"cancelled while held": func(f *fixture) ledger.Claim {
			f.create("x")
			c := f.claim(ledger.Slot{Node: "node", Sheep: "a", Ahead: true}, "x")
			f.cancel("x")
			return c
		},
		"submitted again": func(f *fixture) ledger.Claim { // c is a claim on the run before
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
			_, err := f.Finish(f.Context(), c.ID, c.Token, ledger.Outcome{State: job.Done})
			return err
		},
		"release": func(f *fixture, c ledger.Claim) error { return f.Release(f.Context(), c.ID, c.Token, false) },
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
		"queued":               {"create": exists, "start": fenced, "finish": fenced, "release": fenced, "cancel": to(job.Cancelled)},
		"held":                 {"create": exists, "start": to(job.Processing), "finish": to(job.Done), "release": to(job.Queued), "cancel": to(job.Cancelled)},
		"processing":           {"create": exists, "start": to(job.Processing), "finish": to(job.Done), "release": to(job.Queued), "cancel": to(job.Cancelled)},
		"released":             {"create": exists, "start": fenced, "finish": fenced, "release": fenced, "cancel": to(job.Cancelled)},
		"taken over":           {"create": exists, "start": fenced, "finish": fenced, "release": fenced, "cancel": to(job.Cancelled)},
		"done":                 {"create": to(job.Queued), "start": fenced, "finish": fenced, "release": fenced, "cancel": final},
		"failed":               {"create": to(job.Queued), "start": fenced, "finish": fenced, "release": fenced, "cancel": final},
		"cancelled":            {"create": to(job.Queued), "start": fenced, "finish": fenced, "release": fenced, "cancel": final},
		"cancelled while held": {"create": to(job.Queued), "start": fenced, "finish": fenced, "release": fenced, "cancel": final},
		"submitted again":      {"create": exists, "start": fenced, "finish": fenced, "release": fenced, "cancel": to(job.Cancelled)},
	}
	for situation, outcomes := range table {
		for step, want := range outcomes {
			t.Run(situation+"/"+step, func(t *testing.T) {
				f := s.open(t, Options{})
				c := situations[situation](f)
				before := f.get("x")
				err := steps[step](f, c)
				after := f.get("x")
				if want.err != nil {
					if !errors.Is(err, want.err) {
						t.Fatalf("answered %v, want %v", err, want.err)
					}
					f.checkSame("after a refusal", after, before)
					return
				}
				if err != nil || after.State != want.after {
					t.Fatalf("answered %v and left the job %s, want %s", err, after.State, want.after)
				}
			})
		}
	}
}
