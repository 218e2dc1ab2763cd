package shepherd

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// Webhooks looks up the webhooks of jobs.
type Webhooks interface {
	JobWebhooks(ctx context.Context, runs []ledger.JobRun) (map[ledger.JobRun]job.Webhook, error)
}

// Retry runs a job that has ended again, with its inputs and its submission parameters. A
// not_before or deadline that has passed is dropped. The error is *job.UnknownJob,
// job.ErrNothingToRetry, job.ErrForgotten, job.ErrFilesRemoved, *job.AfterError (also for a
// job in After that is unknown now), or one of Submit's.
func (s *submitter) Retry(ctx context.Context, id job.ID, trace job.Trace) error {
	rec, err := s.cfg.Ledger.Get(ctx, id)
	switch {
	case errors.Is(err, ledger.ErrNotFound):
		if _, err := s.reader.Job(ctx, id); err != nil {
			return err
		}
		return job.ErrForgotten
	case err != nil:
		return serviceError("ledger", fmt.Errorf("read job %s: %w", id, err))
	case !rec.State.Final():
		return job.ErrNothingToRetry
	case rec.FilesRemoved:
		return job.ErrFilesRemoved
	case rec.Removing:
		return job.ErrRemoving
	}
	to := job.ParseAddress(rec.Sheep)
	r := job.Request{
		ID: id, Model: rec.Model, Sheep: to.Who(), NodeLabels: to.Labels, Priority: rec.Priority, Tenant: rec.Tenant, Limits: rec.Limits, Keep: rec.Keep,
		Labels: rec.Labels, After: rec.After, Group: rec.Group, Trace: trace, Idempotency: nextIdempotency(rec),
	}
	if s.cfg.Webhooks != nil {
		run := ledger.JobRun{Job: id, Run: rec.Run}
		webhooks, err := s.cfg.Webhooks.JobWebhooks(ctx, []ledger.JobRun{run})
		if err != nil {
			return serviceError("ledger", fmt.Errorf("look up the webhook of job %s: %w", id, err))
		}
		r.Webhook = webhooks[run]
	}
	now := s.env.clock.now()
	if rec.NotBefore.After(now) {
		r.NotBefore = rec.NotBefore
	}
	if rec.Deadline.After(now) {
		r.Deadline = rec.Deadline
	}
	err = s.Submit(ctx, r)
	var invalid *job.Invalid
	if errors.As(err, &invalid) && invalid.Field == "after" {
		return &job.AfterError{Problem: "A job whose outputs this one needs is not known any more; submit both again"}
	}
	if errors.Is(err, job.ErrSubmitted) { // someone else has retried it
		return job.ErrNothingToRetry
	}
	return err
}

// nextIdempotency returns the record's idempotency key with the number of the next run
// appended: the ledger sees a new request, and the client can still recognise its key.
func nextIdempotency(rec job.Record) string {
	own, _, _ := strings.Cut(rec.Idempotency, ".")
	if own == "" {
		return ""
	}
	return own + "." + strconv.Itoa(rec.Run+1)
}
