package shepherd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/iterait/shepherd/internal/crashpoint"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// cancelPatience is how long Cancel waits for a sheep to release a job.
const cancelPatience = 5 * time.Second

// Cancel requests the end of a job. A job that no sheep holds ends at once. A sheep that
// holds it stops its runner and then ends the job; Cancel waits for that up to
// cancelPatience or until ctx ends, but the request stays in force either way. The error is
// *job.UnknownJob or job.ErrEnded, or has the ledger's class.
func (s *Shepherd) Cancel(ctx context.Context, id job.ID) error {
	events, stop := s.env.hub.subscribe(id)
	defer stop()
	rec, err := s.cfg.Ledger.Cancel(ctx, id)
	switch {
	case errors.Is(err, ledger.ErrNotFound):
		return &job.UnknownJob{ID: string(id)}
	case errors.Is(err, ledger.ErrFinal):
		return job.ErrEnded
	case err != nil:
		return serviceError("ledger", fmt.Errorf("cancel job %s: %w", id, err))
	case rec.State.Final():
		crashpoint.Reached(crashpoint.CancelRecorded)
		s.log.Info("Job cancelled", "job", id)
		return nil
	}
	crashpoint.Reached(crashpoint.CancelRecorded)
	s.log.Info("Job is being cancelled", "job", id, "sheep", rec.Holder)
	patience := time.NewTimer(cancelPatience)
	defer patience.Stop()
	for {
		select {
		case e := <-events:
			if e.Kind == job.EventEnded && e.Run == rec.Run || e.Run > rec.Run {
				return nil
			}
		case <-patience.C:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// CancelGroup cancels the jobs of a group that have not ended, newest first, so that jobs
// that are after others end as cancelled. The errors are those of Group and Cancel.
func (s *Shepherd) CancelGroup(ctx context.Context, id, tenant string) error {
	return s.eachOfGroup(ctx, job.Query{Group: id, Tenant: tenant, Newest: true, States: []job.State{job.Queued, job.Processing}}, func(v job.View) error {
		_, err := s.cfg.Ledger.Cancel(ctx, v.ID)
		if errors.Is(err, ledger.ErrFinal) || errors.Is(err, ledger.ErrNotFound) { // it ended or was removed since it was listed
			return nil
		}
		if err != nil {
			return serviceError("ledger", fmt.Errorf("cancel job %s: %w", v.ID, err))
		}
		return nil
	})
}
