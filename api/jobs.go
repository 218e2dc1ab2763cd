package api

import (
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/job"
)

// StartJob answers POST /start-job. The Content-Type is not checked: the original's
// clients may omit it.
func (s *server) StartJob(w http.ResponseWriter, r *http.Request) {
	room := lease{of: s.bodies}
	defer room.giveBack()
	body, err := readBody(w, r, s.maxBody, &room)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	request, err := decodeStartJob(body)
	if err == nil && !request.Deadline.IsZero() && !request.Deadline.After(job.Now()) {
		err = &job.Invalid{Field: "deadline", Problem: "has passed already; it is " + job.Now().Format(time.RFC3339) + " here"}
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	request.Trace = traceOf(r)
	request.Tenant = access.From(r.Context()).Tenant
	if err := s.service.Submit(r.Context(), request); err != nil {
		s.fail(w, r, err)
		return
	}
	s.answer(w, r, http.StatusOK, Success{Success: true})
}

// GetJobStatus answers GET /jobs/{job_id}/status.
func (s *server) GetJobStatus(w http.ResponseWriter, r *http.Request, rawID string) {
	if status, ok := s.job(w, r, rawID); ok {
		s.answer(w, r, http.StatusOK, s.visible(status))
	}
}

// GetJobReady answers GET /jobs/{job_id}/ready.
func (s *server) GetJobReady(w http.ResponseWriter, r *http.Request, rawID string) {
	if status, ok := s.job(w, r, rawID); ok {
		s.answer(w, r, http.StatusOK, Ready{Ready: status.State.Final()})
	}
}

// job fetches the job that a request names, or answers why it cannot.
func (s *server) job(w http.ResponseWriter, r *http.Request, rawID string) (job.Status, bool) {
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
func (s *server) WaitForJob(w http.ResponseWriter, r *http.Request, rawID string, params WaitForJobParams) {
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

	status, err := s.wait(w, r, id, limit)
	if err == nil && params.Timeout == nil && !status.State.Final() {
		err = errStillRunning
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.answer(w, r, http.StatusOK, s.visible(status))
}

// wait returns the job's final state, or its present one once limit has passed.
func (s *server) wait(w http.ResponseWriter, r *http.Request, id job.ID, limit time.Duration) (job.Status, error) {
	ctx, cancel := context.WithTimeout(r.Context(), limit)
	defer cancel()
	unbounded(w)
	status, err := s.service.Wait(ctx, id)
	if err != nil && errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil && r.Context().Err() == nil {
		return s.service.Job(r.Context(), id)
	}
	return status, err
}

// unbounded lifts the http.Server's read and write timeouts from the rest of
// this request: they are meant for requests that do not wait. net/http sets
// them again for the connection's next request.
func unbounded(w http.ResponseWriter) {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{}) // not every writer has deadlines to lift
	_ = control.SetWriteDeadline(time.Time{})
}

// CancelJob answers POST /jobs/{job_id}/cancel.
func (s *server) CancelJob(w http.ResponseWriter, r *http.Request, rawID string) {
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
func (s *server) RetryJob(w http.ResponseWriter, r *http.Request, rawID string) {
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
func (s *server) ExplainJob(w http.ResponseWriter, r *http.Request, rawID string) {
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

// traceOf is the trace that a request belongs to.
func traceOf(r *http.Request) job.Trace {
	return job.ParseTrace(r.Header.Get("Traceparent"), strings.Join(r.Header.Values("Tracestate"), ","))
}

// RemoveJob answers DELETE /jobs/{job_id}.
func (s *server) RemoveJob(w http.ResponseWriter, r *http.Request, rawID string) {
	id, err := s.jobID(r, rawID)
	if err == nil {
		err = s.service.Remove(r.Context(), id)
	}
	s.answerRemoval(w, r, err)
}

// answerRemoval answers a removal that has ended, goes on by itself, or failed.
func (s *server) answerRemoval(w http.ResponseWriter, r *http.Request, err error) {
	status := http.StatusOK
	if errors.Is(err, job.ErrRemovalContinues) {
		status, err = http.StatusAccepted, nil
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.answer(w, r, status, Success{Success: true})
}

// visible is status with the failure's texts cut to the lengths that are kept, and
// without what clients see in debug mode only.
func (s *server) visible(status job.Status) job.Status {
	status.Failure = status.Failure.Clip()
	if status.Failure != nil && !s.debug {
		status.Failure.Traceback = ""
	}
	return status
}

// jobID decodes a job's id from a path. An invalid id is answered like the id of an
// unknown job, and so is that of another tenant's job.
func (s *server) jobID(r *http.Request, raw string) (job.ID, error) {
	text, err := url.PathUnescape(raw)
	if err != nil {
		return "", &job.UnknownJob{ID: raw}
	}
	id, err := job.ParseID(text)
	if err != nil {
		return "", &job.UnknownJob{ID: text}
	}
	if tenant := access.From(r.Context()).Tenant; tenant != "" {
		owner, err := s.service.Owner(r.Context(), id)
		if err != nil {
			return "", err
		}
		if owner != tenant {
			return "", &job.UnknownJob{ID: text}
		}
	}
	return id, nil
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
