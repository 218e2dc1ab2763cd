package api

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/job"
)

// A page of a listing has at most maxPage jobs, and somePage where the client
// does not say.
const (
	maxPage  = 1000
	somePage = 100
)

// GetJob answers GET /jobs/{job_id}.
func (s *server) GetJob(w http.ResponseWriter, r *http.Request, rawID string) {
	id, err := s.jobID(r, rawID)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	view, err := s.service.View(r.Context(), id)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	answer := s.shown(view)
	answer.Attempts = shownAttempts(view.Attempts)
	s.answer(w, r, http.StatusOK, answer)
}

// ListJobs answers GET /jobs.
func (s *server) ListJobs(w http.ResponseWriter, r *http.Request, params ListJobsParams) {
	query, err := queryOf(params)
	cursor, limit := int64(0), somePage
	if err == nil && params.After != nil {
		if cursor, err = strconv.ParseInt(*params.After, 10, 64); err != nil || cursor < 0 {
			err = &job.Invalid{Field: "after", Problem: "must be the `next` of an earlier answer"}
		}
	}
	if err == nil && params.Limit != nil {
		if limit, err = strconv.Atoi(*params.Limit); err != nil || limit < 1 || limit > maxPage {
			err = &job.Invalid{Field: "limit", Problem: fmt.Sprintf("must be a number from 1 to %d", maxPage)}
		}
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	query.Tenant = access.From(r.Context()).Tenant
	views, next, err := s.service.Jobs(r.Context(), query, cursor, limit)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	answer := JobList{Jobs: make([]Job, len(views))}
	for i, view := range views {
		answer.Jobs[i] = s.shown(view)
	}
	if next != 0 {
		answer.Next = orNull(strconv.FormatInt(next, 10))
	}
	s.answer(w, r, http.StatusOK, answer)
}

func queryOf(params ListJobsParams) (job.Query, error) {
	var q job.Query
	if params.State != nil {
		for _, named := range *params.State {
			switch state := job.State(named); state {
			case job.Queued, job.Processing, job.Done, job.Failed, job.Cancelled:
				q.States = append(q.States, state)
			default:
				return q, &job.Invalid{Field: "state", Problem: fmt.Sprintf("%q is none of queued, processing, done, failed and cancelled", named)}
			}
		}
	}
	if params.Model != nil {
		m, err := parseModel(*params.Model)
		if err != nil {
			return q, err
		}
		q.Model = m
	}
	if params.SheepId != nil {
		q.Sheep = *params.SheepId
	}
	if params.Order != nil {
		switch *params.Order {
		case "oldest":
		case "newest":
			q.Newest = true
		default:
			return q, &job.Invalid{Field: "order", Problem: fmt.Sprintf("%q is neither oldest nor newest", *params.Order)}
		}
	}
	return q, nil
}

// shown is a job as clients see it.
func (s *server) shown(v job.View) Job {
	status := s.visible(v.Status())
	out := Job{
		JobId: string(v.ID), Status: v.State, Model: Model{Name: &v.Model.Name, Version: &v.Model.Version},
		EnqueuedAt: job.FormatTime(v.EnqueuedAt), ProcessingStartedAt: job.FormatTime(v.StartedAt), FinishedAt: job.FormatTime(v.FinishedAt),
		SheepId: orNull(v.Record.Sheep), Priority: v.Priority, Sheep: orNull(v.Holder), Attempt: v.Attempt, Run: v.Run,
		Detail: orNull(v.Detail), Progress: shownProgress(v.Progress), Gpu: shownUsage(v.Usage),
		Cancelling: v.Cancelling, NotBefore: job.FormatTime(v.NotBefore), Deadline: job.FormatTime(v.Deadline), Warnings: v.Warnings,
		KeptUntil: job.FormatTime(v.KeptUntil), FilesRemoved: v.FilesRemoved,
		Limits: shownLimits(v.Limits),
	}
	if out.Warnings == nil {
		out.Warnings = []string{} // a list, not null
	}
	if f := status.Failure; f != nil {
		out.ErrorDetails = &Failure{Message: f.Message, ExceptionType: orNull(f.Type), ExceptionTraceback: orNull(f.Traceback)}
	}
	return out
}

func shownProgress(p *job.Progress) *Progress {
	if p == nil {
		return nil
	}
	return &Progress{Done: p.Done, Text: orNull(p.Text), At: job.FormatTime(p.At)}
}

func shownUsage(u job.Usage) *GPUUsage {
	if u == (job.Usage{}) {
		return nil
	}
	out := &GPUUsage{Seconds: u.GPUTime.Seconds()}
	if u.GPUMemory > 0 {
		out.PeakMemory = &u.GPUMemory
	}
	return out
}

// shownLimits has 0 for what is not limited.
func shownLimits(l job.Limits) Limits {
	var out Limits
	if l.Retries != nil {
		out.Retries = *l.Retries
	}
	for _, t := range []struct {
		into *float64
		from *time.Duration
	}{
		{&out.RetryPause, l.RetryPause}, {&out.WaitTimeout, l.WaitTimeout}, {&out.LoadTimeout, l.LoadTimeout}, {&out.RunTimeout, l.RunTimeout},
	} {
		if t.from != nil {
			*t.into = t.from.Seconds()
		}
	}
	return out
}

func shownAttempts(attempts []job.Attempt) *[]Attempt {
	out := make([]Attempt, len(attempts))
	for i, a := range attempts {
		out[i] = Attempt{
			Run: a.Run, Number: a.Number, Node: a.Node, Sheep: a.Sheep,
			BeganAt: job.FormatTime(a.Began), StartedAt: job.FormatTime(a.Started), EndedAt: job.FormatTime(a.Ended),
			Cause: orNull(string(a.Cause)), Reason: orNull(bounded(a.Reason)), Spent: a.Spent, Gpu: shownUsage(a.Usage),
			Phases: Phases{Stage: secondsOrNull(a.Phases.Stage), Load: secondsOrNull(a.Phases.Load), Run: secondsOrNull(a.Phases.Run), Collect: secondsOrNull(a.Phases.Collect)},
		}
	}
	return &out
}

func secondsOrNull(d time.Duration) *float64 {
	if d == 0 {
		return nil
	}
	seconds := d.Seconds()
	return &seconds
}
