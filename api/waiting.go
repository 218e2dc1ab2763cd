package api

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/iterait/shepherd/job"
)

// waiter has requests wait for the end of a job.
type waiter struct {
	jobs interface {
		Job(ctx context.Context, id job.ID) (job.Status, error)
		Wait(ctx context.Context, id job.ID) (job.Status, error)
	}
	maxWait time.Duration // of one request
}

// wait returns the job's final state, or its present one once limit has passed.
func (s waiter) wait(w http.ResponseWriter, r *http.Request, id job.ID, limit time.Duration) (job.Status, error) {
	ctx, cancel := context.WithTimeout(r.Context(), limit)
	defer cancel()
	unbounded(w)
	status, err := s.jobs.Wait(ctx, id)
	if err != nil && errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil && r.Context().Err() == nil {
		return s.jobs.Job(r.Context(), id)
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

// preferredWait is how long a client lets the answer take, as `Prefer: wait=N` says
// (RFC 7240), at most limit; 0 where it does not say. What is malformed is ignored,
// as the standard demands.
func preferredWait(r *http.Request, limit time.Duration) time.Duration {
	for _, header := range r.Header.Values("Prefer") {
		for preference := range strings.SplitSeq(header, ",") {
			name, value, _ := strings.Cut(strings.TrimSpace(preference), "=")
			if !strings.EqualFold(strings.TrimSpace(name), "wait") {
				continue
			}
			value, _, _ = strings.Cut(value, ";") // parameters, of which there are none
			seconds, err := strconv.ParseUint(strings.Trim(strings.TrimSpace(value), `"`), 10, 31)
			if err != nil {
				return 0
			}
			return min(time.Duration(seconds)*time.Second, limit) // the first counts
		}
	}
	return 0
}

// applied tells the client that its wait was respected.
func applied(h http.Header, wait time.Duration) {
	if wait > 0 {
		h.Set("Preference-Applied", "wait="+strconv.FormatInt(int64(wait/time.Second), 10))
	}
}
