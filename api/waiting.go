package api

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/iterait/shepherd/internal/heldconn"
	"github.com/iterait/shepherd/job"
)

// defaultWaitersInServer is how many requests wait in net/http before further ones are held
// by heldconn: a short wait costs the least time there, and many waits the most memory.
const defaultWaitersInServer = 64

// waiter lets requests wait for the end of a job.
type waiter struct {
	jobs interface {
		Job(ctx context.Context, id job.ID) (job.Status, error)
		Wait(ctx context.Context, id job.ID) (job.Status, error)
		NotifyEnd(ctx context.Context, id job.ID, f func(job.Status)) (_ job.Status, stop func(), err error)
	}
	maxWait  time.Duration // of one request
	inServer int           // how many wait before further ones are held
	waiting  *atomic.Int64 // requests that wait
}

// waitAndAnswer calls answer with the result of wait. Where many requests wait already, it
// returns before that, and answer is called with another writer and request.
func (s waiter) waitAndAnswer(a answers, w http.ResponseWriter, r *http.Request, id job.ID, limit time.Duration, answer func(http.ResponseWriter, *http.Request, job.Status, error)) {
	defer s.waiting.Add(-1)
	begin := time.Now()
	if s.waiting.Add(1) > int64(s.inServer) && heldconn.Hold(w, r, func(w http.ResponseWriter, held *heldconn.Request) {
		s.waiting.Add(1)
		defer s.waiting.Add(-1)
		a.serve(w, held.Request, begin, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			status, err := s.hold(held, id, limit)
			answer(w, r, status, err)
		}))
	}) {
		return
	}
	status, err := s.wait(w, r, id, limit)
	answer(w, r, status, err)
}

// hold is wait for a request that is held.
func (s waiter) hold(r *heldconn.Request, id job.ID, limit time.Duration) (job.Status, error) {
	var final atomic.Pointer[job.Status]
	status, stop, err := s.jobs.NotifyEnd(r.Context(), id, func(s job.Status) {
		final.Store(&s)
		r.Wake()
	})
	defer stop()
	if err != nil || status.State.Final() {
		return status, err
	}
	r.Wait(time.Now().Add(limit))
	if ended := final.Load(); ended != nil {
		return *ended, nil
	}
	if err := r.Context().Err(); err != nil { // the client has left, or the daemon is stopping
		return status, err
	}
	return s.jobs.Job(r.Context(), id)
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
// this request: they are meant for requests that neither wait nor do much.
// net/http sets them again for the connection's next request.
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
