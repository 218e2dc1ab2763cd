package sqlite

import (
	"context"
	"errors"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// Create implements ledger.Ledger.
func (l *Ledger) Create(ctx context.Context, rec job.Record) (job.Record, error) {
	var kept job.Record
	err := l.change(ctx, "queue job "+string(rec.ID), func(t *tx) (err error) {
		kept, err = t.create(rec)
		return err
	}, nil)
	if err != nil {
		return job.Record{}, err
	}
	return kept, nil
}

func (t *tx) create(rec job.Record) (job.Record, error) {
	run := 1
	old, err := t.byID(rec.ID)
	switch {
	case errors.Is(err, ledger.ErrNotFound):
	case err != nil:
		return job.Record{}, err
	case rec.Tenant != "" && rec.Tenant != old.Tenant:
		return job.Record{}, ledger.ErrOthers
	case !old.State.Final():
		return job.Record{}, ledger.ErrExists
	default:
		run, rec.Tenant = old.Run+1, old.Tenant
		if err := t.remove(old); err != nil {
			return job.Record{}, err
		}
	}
	r := &row{Record: job.Record{
		ID: rec.ID, Model: rec.Model, Sheep: rec.Sheep, Priority: rec.Priority, Trace: rec.Trace, Tenant: rec.Tenant,
		State: job.Queued, EnqueuedAt: t.now, Run: run,
	}}
	if err := t.insert(r); err != nil {
		return job.Record{}, err
	}
	return r.Record, nil
}
