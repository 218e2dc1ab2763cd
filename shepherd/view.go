package shepherd

import (
	"context"
	"errors"
	"fmt"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// View is a job in detail. Where only storage knows it, that is its status. The
// error is as Job's.
func (s *Shepherd) View(ctx context.Context, id job.ID) (job.View, error) {
	rec, err := s.cfg.Ledger.Get(ctx, id)
	if err == nil {
		attempts, err := s.cfg.Ledger.Attempts(ctx, id)
		if err != nil {
			return job.View{}, fmt.Errorf("read the attempts of job %s: %w", id, err)
		}
		view := s.view(rec)
		view.Attempts = attempts
		return view, nil
	}
	if !errors.Is(err, ledger.ErrNotFound) {
		return job.View{}, fmt.Errorf("read job %s: %w", id, err)
	}
	status, err := s.Job(ctx, id)
	if err != nil {
		return job.View{}, err
	}
	return job.View{Record: job.Record{
		ID: id, Model: status.Model, State: status.State, Failure: status.Failure,
		EnqueuedAt: status.EnqueuedAt, StartedAt: status.StartedAt, FinishedAt: status.FinishedAt,
	}}, nil
}

// Jobs is up to limit jobs that match, by when they were submitted, from the
// cursor on (0 for the first), and the cursor to go on with, 0 at the end. It
// knows the jobs that the ledger has.
func (s *Shepherd) Jobs(ctx context.Context, q job.Query, cursor int64, limit int) ([]job.View, int64, error) {
	filter := ledger.Filter{States: q.States, Sheep: q.Sheep, Model: q.Model, Tenant: q.Tenant, Newest: q.Newest}
	records, next, err := s.cfg.Ledger.List(ctx, filter, cursor, limit)
	if err != nil {
		return nil, 0, fmt.Errorf("list jobs: %w", err)
	}
	views := make([]job.View, len(records))
	for i, rec := range records {
		views[i] = s.view(rec)
	}
	return views, next, nil
}

// view is a record with the limits that apply and what is being done for it.
func (s *Shepherd) view(rec job.Record) job.View {
	view := job.View{Record: rec}
	var sheep job.Limits
	name := rec.Holder
	if name == "" {
		name = rec.Sheep
	}
	if l := s.env.flock.named(name); l != nil {
		sheep = l.Limits
		if shown := l.view(); rec.Holder != "" && rec.Node == s.cfg.Node && shown.Job == rec.ID {
			view.Detail, view.Progress = shown.Detail, shown.Progress
		}
	}
	view.Limits = s.cfg.Limits.apply(rec.Limits, rec.Model, sheep)
	return view
}
