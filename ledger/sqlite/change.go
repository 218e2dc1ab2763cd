package sqlite

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// Start implements ledger.Ledger.
func (l *Ledger) Start(ctx context.Context, id job.ID, token ledger.Token) (job.Record, error) {
	var kept job.Record
	err := l.change(ctx, "start job "+string(id), func(t *tx) error {
		r, err := t.held(id, token)
		if err != nil {
			return err
		}
		if before := r.State; before == job.Queued {
			r.State, r.StartedAt = job.Processing, t.now
			err = t.save(r, before)
		}
		kept = r.Record
		return err
	}, nil)
	if err != nil {
		return job.Record{}, err
	}
	return kept, nil
}

// Finish implements ledger.Ledger. An outcome that is none (its state is not
// final, or its failure does not fit the state) is of class
// errdefs.ErrInternal.
func (l *Ledger) Finish(ctx context.Context, id job.ID, token ledger.Token, outcome ledger.Outcome) (job.Record, error) {
	doing := "finish job " + string(id)
	if !outcome.State.Final() || (outcome.State == job.Failed) != (outcome.Failure != nil) {
		return job.Record{}, fmt.Errorf("%s: state %s with failure %v is no outcome: %w", doing, outcome.State, outcome.Failure, errdefs.ErrInternal)
	}
	if outcome.Failure != nil {
		failure := *outcome.Failure // the caller's may change while this one is kept
		outcome.Failure = &failure
	}
	var kept job.Record
	err := l.change(ctx, doing, func(t *tx) error {
		r, err := t.held(id, token)
		if err != nil {
			return err
		}
		kept, err = t.end(r, outcome)
		return err
	}, nil)
	if err != nil {
		return job.Record{}, err
	}
	return kept, nil
}

// Cancel implements ledger.Ledger.
func (l *Ledger) Cancel(ctx context.Context, id job.ID) (job.Record, error) {
	var kept job.Record
	err := l.change(ctx, "cancel job "+string(id), func(t *tx) error {
		r, err := t.byID(id)
		if err != nil {
			return err
		}
		if r.State.Final() {
			return ledger.ErrFinal
		}
		kept, err = t.end(r, ledger.Outcome{State: job.Cancelled})
		return err
	}, nil)
	if err != nil {
		return job.Record{}, err
	}
	return kept, nil
}

// Release implements ledger.Ledger.
func (l *Ledger) Release(ctx context.Context, id job.ID, token ledger.Token, unspent bool) error {
	return l.change(ctx, "put back job "+string(id), func(t *tx) error {
		return t.release(id, token, unspent)
	}, nil)
}

func (t *tx) release(id job.ID, token ledger.Token, unspent bool) error {
	r, err := t.held(id, token)
	if err != nil {
		return err
	}
	before := r.State
	r.State, r.StartedAt = job.Queued, time.Time{}
	r.drop()
	r.putBack = true
	if unspent {
		r.Attempt--
	}
	return t.save(r, before)
}

func (t *tx) end(r *row, outcome ledger.Outcome) (job.Record, error) {
	before := r.State
	r.State, r.Failure, r.FinishedAt = outcome.State, outcome.Failure, t.now
	r.Usage = outcome.Usage
	r.Usage.GPUTime = r.Usage.GPUTime.Truncate(time.Microsecond)
	if !outcome.At.IsZero() {
		r.FinishedAt = outcome.At.UTC().Truncate(time.Microsecond)
	}
	r.drop()
	return r.Record, t.save(r, before)
}

// drop ends the claim on the record.
func (r *row) drop() { r.Holder, r.Node, r.token = "", "", 0 }

// Ping implements ledger.Ledger: it queues a job without a name and takes it
// away again, in one transaction. That needs the disk and the space for it that
// a job needs, and leaves nothing.
func (l *Ledger) Ping(ctx context.Context) error {
	return l.change(ctx, "write to the ledger", func(t *tx) error {
		place := t.counters.seq + 1
		if _, err := t.exec(t.do.insert, place, "", "", "", "", 0, "", "", "", string(job.Queued), fromTime(t.now), 1); err != nil {
			return err
		}
		t.wrote = true
		_, err := t.exec(t.do.remove, place)
		return err
	}, nil)
}
