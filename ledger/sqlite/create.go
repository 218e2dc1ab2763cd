package sqlite

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/lifecycle"
)

// Create implements ledger.Ledger.
func (l *Ledger) Create(ctx context.Context, rec job.Record) (job.Record, error) {
	rec = clone(rec)
	return l.changeRecord(ctx, "queue job "+string(rec.ID), func(t *tx) (*row, error) {
		if err := t.checkNew(rec, nil); err != nil {
			return nil, err
		}
		return t.create(rec)
	})
}

// clone copies the parts of a record that the caller may change while it waits for its
// commit.
func clone(rec job.Record) job.Record {
	rec.Limits, rec.Labels, rec.After = rec.Limits.Clone(), rec.Labels.Clone(), slices.Clone(rec.After)
	if rec.Keep != nil {
		rec.Keep = new(min(rec.Keep.Truncate(time.Microsecond), job.MaxKeep))
	}
	return rec
}

// CreateAll implements ledger.Ledger.
func (l *Ledger) CreateAll(ctx context.Context, recs []job.Record) ([]job.Record, error) {
	cloned := make([]job.Record, len(recs))
	for i, rec := range recs {
		cloned[i] = clone(rec)
	}
	created := make([]job.Record, len(recs))
	err := l.change(ctx, "queue several jobs", func(t *tx) error {
		for i, rec := range cloned { // before the first write: a refusal changes nothing
			if err := t.checkNew(rec, cloned[:i]); err != nil {
				return &ledger.RecordError{ID: rec.ID, Err: err}
			}
		}
		for i, rec := range cloned {
			r, err := t.create(rec)
			if err != nil {
				return &ledger.RecordError{ID: rec.ID, Err: err}
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

// checkNew returns the error with which a record is refused because its id is reserved, it
// is after others, or it is one of several, of which those before it are given. create
// finds the other errors. An id that has a record already is reported before an error of
// the jobs that the record is after: it is the answer to a repeated request.
func (t *tx) checkNew(rec job.Record, before []job.Record) error {
	if err := t.checkUpload(rec); err != nil {
		return err
	}
	if len(before) == 0 && len(rec.After) == 0 {
		return nil
	}
	if slices.ContainsFunc(before, func(b job.Record) bool { return b.ID == rec.ID }) {
		return ledger.ErrExists
	}
	old, err := t.byID(rec.ID)
	switch {
	case errors.Is(err, ledger.ErrNotFound):
	case err != nil:
		return err
	default:
		if _, _, err := t.nextRun(old, rec); err != nil {
			return err
		}
	}
	if len(rec.After) == 0 {
		return nil
	}
	_, err = t.checkAfter(rec, before)
	return err
}

// checkAfter is ledger.CheckAfter for the stored jobs and the records given.
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

// needed reports whether a job that has not ended is after this one.
func (t *tx) needed(id job.ID) (needed bool, err error) {
	_, err = t.queryOne([]any{&needed}, t.stmts.needs, string(id))
	return needed, err
}

func (t *tx) create(rec job.Record) (*row, error) {
	rec.Blocked = false
	if len(rec.After) > 0 {
		var err error
		if rec.Blocked, err = t.checkAfter(rec, nil); err != nil {
			return nil, err
		}
	}
	old, known := t.cached(rec.ID)
	if !known { // most jobs are new, so the insert is tried without a look-up
		first, change, err := lifecycle.Create(nil, false, rec, t.moment())
		if err != nil {
			return nil, err
		}
		r, err := t.insertQueued(first, rec.Webhook, change)
		if err != nil || r != nil {
			return r, err
		}
		if old, err = t.byID(rec.ID); err != nil {
			return nil, err
		}
	}
	next, change, err := t.nextRun(old, rec)
	if err != nil {
		return nil, err
	}
	if err := t.remove(old); err != nil {
		return nil, err
	}
	if next.Run > lifecycle.KeepRuns {
		if _, err := t.exec(t.stmts.trimRuns, string(next.ID), next.Run-lifecycle.KeepRuns); err != nil {
			return nil, err
		}
	}
	return t.insertQueued(next, rec.Webhook, change)
}

// nextRun returns the row of a new run of a job that has ended. It writes nothing.
func (t *tx) nextRun(old *row, rec job.Record) (*lifecycle.Row, lifecycle.Change, error) {
	needed, err := t.needed(old.ID)
	if err != nil {
		return nil, lifecycle.Change{}, err
	}
	return lifecycle.Create(&old.Row, needed, rec, t.moment())
}

// insertQueued inserts the row of a queued job with its webhook, and ends the reservation
// of its id. It returns nil where the job has a row already.
func (t *tx) insertQueued(queued *lifecycle.Row, webhook job.Webhook, change lifecycle.Change) (*row, error) {
	r := &row{Row: *queued}
	r.Webhook = webhook
	if entered, err := t.insert(r); err != nil || !entered {
		return nil, err
	}
	if err := t.endUpload(r.ID); err != nil {
		return nil, err
	}
	if err := t.addWebhook(r); err != nil {
		return nil, err
	}
	return r, t.record(change.Event)
}
