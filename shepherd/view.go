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
		return job.View{Record: rec, Detail: s.detail(rec)}, nil
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

// Jobs is up to limit jobs that match, in the order they were submitted, from the
// cursor on (0 for the first), and the cursor to go on with, 0 at the end. It
// knows the jobs that the ledger has.
func (s *Shepherd) Jobs(ctx context.Context, q job.Query, cursor int64, limit int) ([]job.View, int64, error) {
	records, next, err := s.cfg.Ledger.List(ctx, ledger.Filter{States: q.States, Sheep: q.Sheep, Model: q.Model, Tenant: q.Tenant}, cursor, limit)
	if err != nil {
		return nil, 0, fmt.Errorf("list jobs: %w", err)
	}
	views := make([]job.View, len(records))
	for i, rec := range records {
		views[i] = job.View{Record: rec, Detail: s.detail(rec)}
	}
	return views, next, nil
}

// detail is what the job's holder says of what it does for the job.
func (s *Shepherd) detail(rec job.Record) string {
	if rec.Holder == "" {
		return ""
	}
	for _, sheep := range s.Sheep(context.Background()) {
		if sheep.Name == rec.Holder && sheep.Job == rec.ID {
			return sheep.Detail
		}
	}
	return ""
}
