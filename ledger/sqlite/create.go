package sqlite

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// Create implements ledger.Ledger.
func (l *Ledger) Create(ctx context.Context, rec job.Record) (job.Record, error) {
	rec = own(rec)
	return l.changeRecord(ctx, "queue job "+string(rec.ID), func(t *tx) (*row, error) {
		if err := t.admit(rec, nil); err != nil {
			return nil, err
		}
		return t.create(rec)
	})
}

// own is the record without anything that the caller may change while it waits for its
// commit.
func own(rec job.Record) job.Record {
	rec.Limits, rec.Labels, rec.After = rec.Limits.Clone(), rec.Labels.Clone(), slices.Clone(rec.After)
	if rec.Keep != nil {
		rec.Keep = new(min(rec.Keep.Truncate(time.Microsecond), job.MaxKeep))
	}
	return rec
}

// CreateAll implements ledger.Ledger.
func (l *Ledger) CreateAll(ctx context.Context, recs []job.Record) ([]job.Record, error) {
	owned := make([]job.Record, len(recs))
	for i, rec := range recs {
		owned[i] = own(rec)
	}
	created := make([]job.Record, len(recs))
	err := l.change(ctx, "queue several jobs", func(t *tx) error {
		for i, rec := range owned { // before anything is written: a refusal must leave nothing
			if err := t.admit(rec, owned[:i]); err != nil {
				return fmt.Errorf("job %s: %w", rec.ID, err)
			}
		}
		for i, rec := range owned {
			r, err := t.create(rec)
			if err != nil {
				return fmt.Errorf("job %s: %w", rec.ID, err)
			}
			created[i] = r.Record
		}
		return nil
	}, nil)
	if err != nil {
		return nil, err
	}
	return created, nil
}

// admit says why the record cannot be entered, where that is not for create alone to
// see: it is after others, or one of several. Those that are entered before it are given.
func (t *tx) admit(rec job.Record, before []job.Record) error {
	if len(rec.After) > 0 {
		if _, err := t.checkAfter(rec, before); err != nil {
			return err
		}
	}
	if len(before) == 0 && len(rec.After) == 0 {
		return nil
	}
	if slices.ContainsFunc(before, func(b job.Record) bool { return b.ID == rec.ID }) {
		return ledger.ErrExists
	}
	old, err := t.byID(rec.ID)
	if errors.Is(err, ledger.ErrNotFound) {
		return nil
	}
	if err == nil {
		err = t.replaceable(old, rec)
	}
	return err
}

// checkAfter is ledger.CheckAfter for what there is, and the records given.
func (t *tx) checkAfter(rec job.Record, before []job.Record) (blocked bool, err error) {
	var failed error
	blocked, err = ledger.CheckAfter(rec, func(id job.ID) *job.Record {
		for _, b := range before {
			if b.ID == id {
				b.State = job.Queued
				return &b
			}
		}
		r, err := t.byID(id)
		if err != nil {
			if !errors.Is(err, ledger.ErrNotFound) {
				failed = err
			}
			return nil
		}
		return &r.Record
	})
	if failed != nil {
		err = failed
	}
	return blocked, err
}

// replaceable says why the record does not take the place of the old one of its id.
func (t *tx) replaceable(old *row, rec job.Record) error {
	switch {
	case rec.Tenant != "" && rec.Tenant != old.Tenant:
		return ledger.ErrOthers
	case !old.State.Final(), rec.Idempotency != "" && rec.Idempotency == old.Idempotency:
		return ledger.ErrExists
	case old.removal != noRemoval:
		return ledger.ErrRemoving
	}
	return t.unneeded(old.ID)
}

// unneeded answers ledger.ErrNeeded where a job that has not ended is after the given one.
func (t *tx) unneeded(id job.ID) error {
	var needed bool
	if _, err := t.queryOne([]any{&needed}, t.do.needs, string(id)); err != nil {
		return err
	}
	if needed {
		return ledger.ErrNeeded
	}
	return nil
}

func (t *tx) create(rec job.Record) (*row, error) {
	r := &row{Record: job.Record{
		ID: rec.ID, Model: rec.Model, Sheep: rec.Sheep, Priority: rec.Priority, Trace: rec.Trace, Tenant: rec.Tenant, Limits: rec.Limits,
		NotBefore: keptTime(rec.NotBefore), WaitUntil: keptTime(rec.WaitUntil), Deadline: keptTime(rec.Deadline),
		Keep: rec.Keep, Labels: rec.Labels, Idempotency: rec.Idempotency, Webhook: rec.Webhook,
		After: rec.After, Group: rec.Group, State: job.Queued, Run: 1,
	}}
	if len(r.After) > 0 {
		blocked, err := t.checkAfter(rec, nil)
		if err != nil {
			return nil, err
		}
		r.Blocked = blocked
	}
	old, err := t.createFirst(r)
	switch {
	case err == nil && old == nil:
		return r, t.record(r, job.Event{Kind: job.EventQueued})
	case err != nil:
		return nil, err
	}
	if err := t.replaceable(old, rec); err != nil {
		return nil, err
	}
	r.Run, r.Tenant, r.changedAt = old.Run+1, old.Tenant, old.changedAt
	if err := t.remove(old); err != nil {
		return nil, err
	}
	if r.Run > keepRuns {
		if _, err := t.exec(t.do.trimRuns, string(r.ID), r.Run-keepRuns); err != nil {
			return nil, err
		}
	}
	if _, err := t.enqueue(r); err != nil {
		return nil, err
	}
	return r, t.record(r, job.Event{Kind: job.EventQueued})
}

// createFirst enters the first run of a job, or returns the record that there is.
func (t *tx) createFirst(r *row) (old *row, err error) {
	if old, ok := t.known(r.ID); ok {
		return old, nil
	}
	entered, err := t.enqueue(r)
	if err != nil || entered {
		return nil, err
	}
	r.changedAt = time.Time{}
	return t.byID(r.ID)
}

// enqueue enters a queued record; false where there is one of the job.
func (t *tx) enqueue(r *row) (bool, error) {
	r.EnqueuedAt = t.change(r)
	r.delayed = r.Blocked || r.NotBefore.After(t.now)
	entered, err := t.insert(r)
	if err == nil && entered {
		err = t.addWebhook(r)
	}
	return entered, err
}
