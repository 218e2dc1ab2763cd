package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"strconv"
	"strings"
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
func (s *server) GetJob(w http.ResponseWriter, r *http.Request, rawID string, _ GetJobParams) {
	id, err := s.jobID(r, rawID)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	wait := preferredWait(r, s.maxWait)
	body, tag, err := s.jobWithTag(r.Context(), id)
	known := err == nil && listed(r.Header.Values("If-None-Match"), tag, weak)
	switch {
	case err != nil || wait == 0:
	case known: // it has this representation: wait for another one
		body, tag, err = s.waitForChange(w, r, id, wait)
		known = err == nil && listed(r.Header.Values("If-None-Match"), tag, weak)
	case len(r.Header.Values("If-None-Match")) == 0:
		if _, err = s.wait(w, r, id, wait); err == nil {
			body, tag, err = s.jobWithTag(r.Context(), id)
		}
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	h := w.Header()
	applied(h, wait)
	h.Set("ETag", tag)
	h.Set("Cache-Control", "no-cache") // keep it, but ask whether it is still so
	if known {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h.Set("Content-Type", jsonType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(body) // a client that has left cannot be told
}

// jobWithTag is a job in detail as JSON, and the ETag of that.
func (s *server) jobWithTag(ctx context.Context, id job.ID) (body []byte, tag string, err error) {
	view, err := s.service.View(ctx, id)
	if err != nil {
		return nil, "", err
	}
	if body, err = job.JSON(s.detailed(view)); err != nil {
		return nil, "", fmt.Errorf("write job %s as JSON: %w", id, err)
	}
	sum := sha256.Sum256(body)
	return body, `"` + hex.EncodeToString(sum[:12]) + `"`, nil
}

// waitForChange is jobWithTag once the client does not have that representation, or
// limit has passed.
func (s *server) waitForChange(w http.ResponseWriter, r *http.Request, id job.ID, limit time.Duration) (body []byte, tag string, err error) {
	unbounded(w)
	changed, stop := s.service.Watch(id)
	defer stop()
	over := time.NewTimer(limit)
	defer over.Stop()
	for last := false; ; {
		body, tag, err = s.jobWithTag(r.Context(), id)
		if err != nil || last || !listed(r.Header.Values("If-None-Match"), tag, weak) {
			return body, tag, err
		}
		select {
		case <-changed:
		case <-over.C:
			last = true
		case <-r.Context().Done():
			return nil, "", r.Context().Err()
		}
	}
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
	var err error
	if params.Label != nil {
		if q.Labels, err = parseLabels(*params.Label); err != nil {
			return q, err
		}
	}
	if params.Group != nil {
		if err := job.CheckGroup(*params.Group); err != nil || *params.Group == "" {
			return q, &job.Invalid{Field: "group", Problem: "is the name of no group"}
		}
		q.Group = *params.Group
	}
	if params.Prefix != nil {
		q.Prefix = job.ID(*params.Prefix)
	}
	if params.Since != nil {
		if q.Since, err = parseMoment("since", *params.Since); err != nil {
			return q, err
		}
	}
	if params.Before != nil {
		if q.Before, err = parseMoment("before", *params.Before); err != nil {
			return q, err
		}
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

// parseLabels reads labels that a query names, each KEY=VALUE.
func parseLabels(texts []string) (job.Labels, error) {
	labels := make(job.Labels, len(texts))
	for _, text := range texts {
		key, value, ok := strings.Cut(text, "=")
		if !ok {
			return nil, &job.Invalid{Field: "label", Problem: fmt.Sprintf("%q is not KEY=VALUE", bounded(text))}
		}
		if err := job.ValidateLabel(key, value); err != nil {
			return nil, &job.Invalid{Field: "label", Problem: err.Error()}
		}
		if other, twice := labels[key]; twice && other != value {
			return nil, &job.Invalid{Field: "label", Problem: fmt.Sprintf("no job has two values of %s", key)}
		}
		labels[key] = value
	}
	if len(labels) > job.MaxLabels {
		return nil, &job.Invalid{Field: "label", Problem: fmt.Sprintf("there are more than %d", job.MaxLabels)}
	}
	return labels, nil
}

// parseMoment reads a time with its zone, or how long ago it is.
func parseMoment(field, text string) (time.Time, error) {
	if ago, err := job.ParseDuration(text); err == nil && ago >= 0 {
		return job.Now().Add(-ago), nil
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return time.Time{}, &job.Invalid{Field: field, Problem: "must be a time with its zone, as in RFC 3339, such as 2006-01-02T15:04:05Z, or how long ago, such as 30m or 7d"}
	}
	return t.UTC(), nil
}

// detailed is a job as clients see it, with what is told of one job alone.
func (s *server) detailed(v job.View) Job {
	out := s.shown(v)
	out.Attempts = shownAttempts(v.Attempts)
	out.Timeline = shownTimeline(v.Timeline)
	if len(v.WaitsFor) > 0 {
		out.WaitsFor = new(idsOf(v.WaitsFor))
	}
	if v.Position > 0 {
		out.Position = &v.Position
	}
	out.ExpectedStart, out.ExpectedEnd = shownEstimate(v.ExpectedStart), shownEstimate(v.ExpectedEnd)
	return out
}

func shownEstimate(e *job.Estimate) *Estimate {
	if e == nil {
		return nil
	}
	return &Estimate{Earliest: job.FormatTime(e.Earliest), Likely: job.FormatTime(e.Likely), Latest: job.FormatTime(e.Latest)}
}

func shownTimeline(events []job.Event) *[]TimelineEntry {
	out := make([]TimelineEntry, len(events))
	for i, e := range events {
		out[i] = TimelineEntry{
			At: job.FormatTime(e.At), Event: TimelineEntryEvent(e.Kind), Sheep: orNull(e.Sheep),
			Cause: orNull(string(e.Cause)), Reason: orNull(bounded(e.Reason)),
		}
		if e.Attempt > 0 {
			out[i].Attempt = &e.Attempt
		}
	}
	return &out
}

// shown is a job as clients see it in a list.
func (s *server) shown(v job.View) Job {
	status := s.visible(v.Status())
	to := job.ParseAddress(v.Record.Sheep)
	out := Job{
		JobId: string(v.ID), Status: v.State, Model: Model{Name: &v.Model.Name, Version: &v.Model.Version},
		EnqueuedAt: job.FormatTime(v.EnqueuedAt), ProcessingStartedAt: job.FormatTime(v.StartedAt), FinishedAt: job.FormatTime(v.FinishedAt),
		SheepId: orNull(to.Who()), NodeLabels: to.Labels, Priority: v.Priority, Sheep: orNull(v.Holder), LastSheep: orNull(v.LastSheep), Attempt: v.Attempt, Run: v.Run,
		Detail: orNull(v.Detail), Progress: shownProgress(v.Progress), Gpu: shownUsage(v.Usage),
		Cancelling: v.Cancelling, NotBefore: job.FormatTime(v.NotBefore), Deadline: job.FormatTime(v.Deadline), Warnings: v.Warnings,
		KeptUntil: job.FormatTime(v.KeptUntil), FilesRemoved: v.FilesRemoved,
		Limits: shownLimits(v.Limits), Labels: v.Labels, After: idsOf(v.After), Group: orNull(v.Group),
	}
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	if out.NodeLabels == nil {
		out.NodeLabels = map[string]string{}
	}
	if out.Warnings == nil {
		out.Warnings = []string{} // a list, not null
	}
	if f := status.Failure; f != nil {
		out.ErrorDetails = &Failure{Message: f.Message, ExceptionType: orNull(f.Type), ExceptionTraceback: orNull(f.Traceback)}
	}
	return out
}

// idsOf is a list of ids, empty for none.
func idsOf(ids []job.ID) []string {
	out := make([]string, len(ids))
	for i, id := range ids {
		out[i] = string(id)
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
