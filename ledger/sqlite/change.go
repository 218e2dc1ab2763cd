package sqlite

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/lifecycle"
)

// transition changes a job's row, which is nil for an unknown job; see package lifecycle.
type transition func(r *lifecycle.Row, m lifecycle.Moment) (lifecycle.Change, error)

// changeRecord makes a change and returns the changed record.
func (l *Ledger) changeRecord(ctx context.Context, doing string, apply func(*tx) (*row, error)) (job.Record, error) {
	var changed *row
	err := l.change(ctx, doing, func(t *tx) (err error) {
		changed, err = apply(t)
		return err
	}, nil)
	if err != nil {
		return job.Record{}, err
	}
	return changed.Record, nil
}

// moment is when the changes of the transaction are made.
func (t *tx) moment() lifecycle.Moment { return lifecycle.Moment{Now: t.now, Age: t.age} }

// keep is how long the files of a job that ends are kept.
func (t *tx) keep() lifecycle.Retention { return t.w.cfg.Retention }

// apply reads the job's row, changes it by do, writes it and returns it.
func (t *tx) apply(id job.ID, do transition) (*row, error) {
	r, err := t.byID(id)
	if errors.Is(err, ledger.ErrNotFound) {
		_, err := do(nil, t.moment())
		return new(row), err
	}
	if err != nil {
		return nil, err
	}
	change, err := do(&r.Row, t.moment())
	if err == nil {
		err = t.writeChange(r, change)
	}
	return r, err
}

// writeChange writes a changed row, its attempt and its event.
func (t *tx) writeChange(r *row, c lifecycle.Change) error {
	if !c.Made {
		return nil
	}
	if c.Attempt != nil {
		if err := t.endAttempt(r, *c.Attempt); err != nil {
			return err
		}
	}
	if err := t.save(r); err != nil {
		return err
	}
	return t.record(c.Event)
}

// endAttempt writes an attempt that ended and charges its tenant.
func (t *tx) endAttempt(r *row, a job.Attempt) error {
	if err := t.insertAttempt(r.ID, a); err != nil {
		return err
	}
	if a.Number > lifecycle.KeepAttempts {
		if _, err := t.exec(t.stmts.trimAttempts, string(r.ID), a.Run, a.Number-lifecycle.KeepAttempts); err != nil {
			return err
		}
	}
	return t.charge(r.Tenant, a)
}

func (t *tx) insertAttempt(id job.ID, a job.Attempt) error {
	_, err := t.exec(t.stmts.insertAttempt, string(id), a.Run, a.Number, a.Node, a.Sheep, fromTime(a.Began), fromTime(a.Started), fromTime(a.Ended),
		string(a.Cause), a.Reason, a.Spent, a.Usage.GPUMemory, a.Usage.GPUTime.Microseconds(),
		a.Phases.Stage.Microseconds(), a.Phases.Load.Microseconds(), a.Phases.Run.Microseconds(), a.Phases.Collect.Microseconds(), a.Log)
	return err
}

// Start implements ledger.Ledger.
func (l *Ledger) Start(ctx context.Context, id job.ID, token ledger.Token) (job.Record, error) {
	return l.changeRecord(ctx, "start job "+string(id), func(t *tx) (*row, error) {
		return t.apply(id, func(r *lifecycle.Row, m lifecycle.Moment) (lifecycle.Change, error) { return r.Start(token, m) })
	})
}

// Finish implements ledger.Ledger. An outcome that is none is of class
// errdefs.ErrInternal.
func (l *Ledger) Finish(ctx context.Context, id job.ID, token ledger.Token, outcome ledger.Outcome) (job.Record, error) {
	doing := "finish job " + string(id)
	if err := lifecycle.CheckOutcome(outcome); err != nil {
		return job.Record{}, fmt.Errorf("%s: %w", doing, err)
	}
	// The caller may change these after ctx ended, before the change is made.
	outcome.Failure, outcome.Warnings = outcome.Failure.Clip(), slices.Clone(outcome.Warnings)
	return l.changeRecord(ctx, doing, func(t *tx) (*row, error) {
		return t.apply(id, func(r *lifecycle.Row, m lifecycle.Moment) (lifecycle.Change, error) {
			return r.Finish(token, outcome, t.keep(), m)
		})
	})
}

// Release implements ledger.Ledger. A return without a cause is of class
// errdefs.ErrInternal.
func (l *Ledger) Release(ctx context.Context, id job.ID, token ledger.Token, why ledger.Return) (job.Record, error) {
	doing := "release job " + string(id)
	if err := lifecycle.CheckReturn(why); err != nil {
		return job.Record{}, fmt.Errorf("%s: %w", doing, err)
	}
	return l.changeRecord(ctx, doing, func(t *tx) (*row, error) { return t.release(id, token, why) })
}

func (t *tx) release(id job.ID, token ledger.Token, why ledger.Return) (*row, error) {
	return t.apply(id, func(r *lifecycle.Row, m lifecycle.Moment) (lifecycle.Change, error) {
		return r.Release(token, why, t.keep(), m)
	})
}

// Cancel implements ledger.Ledger.
func (l *Ledger) Cancel(ctx context.Context, id job.ID) (job.Record, error) {
	return l.changeRecord(ctx, "cancel job "+string(id), func(t *tx) (*row, error) {
		return t.apply(id, func(r *lifecycle.Row, m lifecycle.Moment) (lifecycle.Change, error) { return r.Cancel(t.keep(), m) })
	})
}

// Ping implements ledger.Ledger: it writes the numbers, which needs a disk that works and
// has space.
func (l *Ledger) Ping(ctx context.Context) error {
	return l.change(ctx, "write to the ledger", (*tx).writeNumbers, nil)
}
