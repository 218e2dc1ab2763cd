package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/job"
)

// JobService looks at jobs and changes their course.
type JobService interface {
	// Job is the job's present state, or *job.UnknownJob.
	Job(ctx context.Context, id job.ID) (job.Status, error)

	// View is the job in detail, or *job.UnknownJob.
	View(ctx context.Context, id job.ID) (job.View, error)

	// Jobs is up to limit jobs that match, without what job.View has only for one, in
	// the order they were submitted or, with q.Newest, in the opposite one, from the
	// cursor on (0 for the first), and the cursor to go on with, 0 at the end.
	Jobs(ctx context.Context, q job.Query, cursor int64, limit int) ([]job.View, int64, error)

	// Owner is the tenant that the job belongs to, empty for none, or
	// *job.UnknownJob.
	Owner(ctx context.Context, id job.ID) (tenant string, err error)

	// Wait blocks until the job has ended and returns its final state. It
	// returns ctx's error when that ends first, and *job.UnknownJob.
	Wait(ctx context.Context, id job.ID) (job.Status, error)

	// NotifyEnd is Job, and calls f with the final state when a job that has not ended
	// does. f is called at most once, on another goroutine, must return at once, and may
	// still be called just after stop. stop is never nil.
	NotifyEnd(ctx context.Context, id job.ID, f func(job.Status)) (_ job.Status, stop func(), err error)

	// Watch returns a channel that receives after the job has changed, until stop is
	// called.
	Watch(id job.ID) (changed <-chan struct{}, stop func())

	// Cancel requests that a job is cancelled. When it returns nil the
	// request is durable; the job may take a while to end, and may still end in
	// another way. It returns *job.UnknownJob and job.ErrEnded.
	Cancel(ctx context.Context, id job.ID) error

	// Retry runs a job that has ended again. It returns *job.UnknownJob,
	// job.ErrNothingToRetry, job.ErrForgotten, job.ErrFilesRemoved, and what Submit does.
	Retry(ctx context.Context, id job.ID, trace job.Trace) error

	// Explain says how the job stands, for people; to a tenant it tells nothing of
	// others' jobs. It returns *job.UnknownJob.
	Explain(ctx context.Context, id job.ID, tenant string) (job.Explanation, error)

	// Remove removes a job that has ended, with its files. It returns
	// *job.UnknownJob, job.ErrNotEnded, job.ErrNeeded, job.ErrRemoving, and
	// job.ErrRemovalContinues or job.ErrRemovalStopped where that takes long; after
	// another error, too, the removal may go on by itself.
	Remove(ctx context.Context, id job.ID) error
}

// jobServer serves jobs: their states and details, and changes of their course.
type jobServer struct {
	answers
	views
	jobIDs
	waiter
	service JobService
}

// GetJobStatus answers GET /jobs/{job_id}/status.
func (s *jobServer) GetJobStatus(w http.ResponseWriter, r *http.Request, rawID string) {
	if status, ok := s.job(w, r, rawID); ok {
		s.answer(w, r, http.StatusOK, s.visible(status))
	}
}

// GetJobReady answers GET /jobs/{job_id}/ready.
func (s *jobServer) GetJobReady(w http.ResponseWriter, r *http.Request, rawID string) {
	if status, ok := s.job(w, r, rawID); ok {
		s.answer(w, r, http.StatusOK, Ready{Ready: status.State.Final()})
	}
}

// job fetches the job that a request names, or answers why it cannot.
func (s *jobServer) job(w http.ResponseWriter, r *http.Request, rawID string) (job.Status, bool) {
	id, err := s.jobID(r, rawID)
	if err != nil {
		s.fail(w, r, err)
		return job.Status{}, false
	}
	status, err := s.service.Job(r.Context(), id)
	if err != nil {
		s.fail(w, r, err)
		return job.Status{}, false
	}
	return status, true
}

// WaitForJob answers GET /jobs/{job_id}/wait_ready.
//
// A client that sets a timeout expects that it may pass, and is answered with the status
// at that time. The original's clients set none and take a 200 to mean that the job has
// ended; when the server's bound passes first they are answered with an error and
// Retry-After.
func (s *jobServer) WaitForJob(w http.ResponseWriter, r *http.Request, rawID string, params WaitForJobParams) {
	id, err := s.jobID(r, rawID)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	limit := s.maxWait
	if params.Timeout != nil {
		asked, err := parseTimeout(*params.Timeout)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		limit = min(limit, asked)
	}

	s.waitAndAnswer(s.answers, w, r, id, limit, func(w http.ResponseWriter, r *http.Request, status job.Status, err error) {
		if err == nil && params.Timeout == nil && !status.State.Final() {
			err = errStillRunning
		}
		if err != nil {
			s.fail(w, r, err)
			return
		}
		s.answer(w, r, http.StatusOK, s.visible(status))
	})
}

// CancelJob answers POST /jobs/{job_id}/cancel.
func (s *jobServer) CancelJob(w http.ResponseWriter, r *http.Request, rawID string) {
	id, err := s.jobID(r, rawID)
	if err == nil {
		err = s.service.Cancel(r.Context(), id)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.answer(w, r, http.StatusOK, Success{Success: true})
}

// RetryJob answers POST /jobs/{job_id}/retry.
func (s *jobServer) RetryJob(w http.ResponseWriter, r *http.Request, rawID string) {
	id, err := s.jobID(r, rawID)
	if err == nil {
		err = s.service.Retry(r.Context(), id, traceOf(r))
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.answer(w, r, http.StatusOK, Success{Success: true})
}

// ExplainJob answers GET /jobs/{job_id}/explain.
func (s *jobServer) ExplainJob(w http.ResponseWriter, r *http.Request, rawID string) {
	id, err := s.jobID(r, rawID)
	var e job.Explanation
	if err == nil {
		e, err = s.service.Explain(r.Context(), id, access.From(r.Context()).Tenant)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	h := w.Header()
	h.Add("Vary", "Accept")
	text := bounded(e.String())
	if accept := strings.Join(r.Header.Values("Accept"), ","); strings.Contains(accept, "text/plain") && !strings.Contains(accept, "json") {
		h.Set("Content-Type", "text/plain; charset=utf-8")
		h.Set("Cache-Control", "no-store")
		_, _ = io.WriteString(w, text+"\n") // a client that has left cannot be told
		return
	}
	s.answer(w, r, http.StatusOK, Explanation{
		JobId: string(id), Status: e.State, Summary: bounded(e.Summary), Reasons: append([]string{}, e.Reasons...), Next: append([]string{}, e.Next...), Text: text,
	})
}

// RemoveJob answers DELETE /jobs/{job_id}.
func (s *jobServer) RemoveJob(w http.ResponseWriter, r *http.Request, rawID string) {
	id, err := s.jobID(r, rawID)
	if err == nil {
		err = s.service.Remove(r.Context(), id)
	}
	s.answerRemoval(w, r, err)
}

// parseTimeout reads a time as seconds or as a Go duration. What is too long
// for a duration is as long as one can be.
func parseTimeout(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if seconds, notSeconds := strconv.ParseFloat(text, 64); notSeconds == nil && !math.IsNaN(seconds) {
		d, err = time.Duration(math.MaxInt64), nil
		if seconds < math.MaxInt64/float64(time.Second) {
			d = time.Duration(seconds * float64(time.Second))
		}
		if seconds < 0 {
			d = -1
		}
	}
	if err != nil || d < 0 {
		return 0, &job.Invalid{Field: "timeout", Problem: "must be a number of seconds such as 30 or 0.5, or a duration such as 1m30s, and not negative"}
	}
	return d, nil
}

// GetJob answers GET /jobs/{job_id}.
func (s *jobServer) GetJob(w http.ResponseWriter, r *http.Request, rawID string, _ GetJobParams) {
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
func (s *jobServer) jobWithTag(ctx context.Context, id job.ID) (body []byte, tag string, err error) {
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
func (s *jobServer) waitForChange(w http.ResponseWriter, r *http.Request, id job.ID, limit time.Duration) (body []byte, tag string, err error) {
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
