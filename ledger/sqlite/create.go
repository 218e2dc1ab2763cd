package sqlite

import (
	"context"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// Create implements ledger.Ledger.
func (l *Ledger) Create(ctx context.Context, rec job.Record) (job.Record, error) {
	rec.Limits, rec.Labels = rec.Limits.Clone(), rec.Labels.Clone() // the caller's may change while the record waits for its commit
	if rec.Keep != nil {
		rec.Keep = new(min(rec.Keep.Truncate(time.Microsecond), job.MaxKeep))
	}
	return l.changeRecord(ctx, "queue job "+string(rec.ID), func(t *tx) (*row, error) { return t.create(rec) })
}

func (t *tx) create(rec job.Record) (*row, error) {
	r := &row{Record: job.Record{
		ID: rec.ID, Model: rec.Model, Sheep: rec.Sheep, Priority: rec.Priority, Trace: rec.Trace, Tenant: rec.Tenant, Limits: rec.Limits,
		NotBefore: keptTime(rec.NotBefore), WaitUntil: keptTime(rec.WaitUntil), Deadline: keptTime(rec.Deadline),
		Keep: rec.Keep, Labels: rec.Labels, Idempotency: rec.Idempotency, Webhook: rec.Webhook, State: job.Queued, Run: 1,
	}}
	old, err := t.createFirst(r)
	switch {
	case err == nil && old == nil:
		return r, t.record(r, job.Event{Kind: job.EventQueued})
	case err != nil:
		return nil, err
	case rec.Tenant != "" && rec.Tenant != old.Tenant:
		return nil, ledger.ErrOthers
	case !old.State.Final(), rec.Idempotency != "" && rec.Idempotency == old.Idempotency:
		return nil, ledger.ErrExists
	case old.removal != noRemoval:
		return nil, ledger.ErrRemoving
	default:
		r.Run, r.Tenant, r.changedAt = old.Run+1, old.Tenant, old.changedAt
		if err := t.remove(old); err != nil {
			return nil, err
		}
		if r.Run > keepRuns {
			if _, err := t.exec(t.do.trimRuns, string(r.ID), r.Run-keepRuns); err != nil {
				return nil, err
			}
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
	r.delayed = r.NotBefore.After(t.now)
	entered, err := t.insert(r)
	if err == nil && entered {
		err = t.addWebhook(r)
	}
	return entered, err
}
