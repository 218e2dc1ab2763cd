package sqlite

import (
	"context"
	"errors"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// Create implements ledger.Ledger.
func (l *Ledger) Create(ctx context.Context, rec job.Record) (job.Record, error) {
	rec.Limits = rec.Limits.Clone() // the caller's may change while the record waits for its commit
	if rec.Keep != nil {
		rec.Keep = new(min(rec.Keep.Truncate(time.Microsecond), job.MaxKeep))
	}
	return l.changeRecord(ctx, "queue job "+string(rec.ID), func(t *tx) (*row, error) { return t.create(rec) })
}

func (t *tx) create(rec job.Record) (*row, error) {
	r := &row{Record: job.Record{
		ID: rec.ID, Model: rec.Model, Sheep: rec.Sheep, Priority: rec.Priority, Trace: rec.Trace, Tenant: rec.Tenant, Limits: rec.Limits,
		NotBefore: keptTime(rec.NotBefore), WaitUntil: keptTime(rec.WaitUntil), Deadline: keptTime(rec.Deadline),
		Keep: rec.Keep, State: job.Queued, Run: 1,
	}}
	old, err := t.byID(rec.ID)
	switch {
	case errors.Is(err, ledger.ErrNotFound):
	case err != nil:
		return nil, err
	case rec.Tenant != "" && rec.Tenant != old.Tenant:
		return nil, ledger.ErrOthers
	case !old.State.Final():
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
	r.EnqueuedAt = t.change(r)
	r.delayed = r.NotBefore.After(t.now)
	if err := t.insert(r); err != nil {
		return nil, err
	}
	return r, t.record(r, job.Event{Kind: job.EventQueued})
}
