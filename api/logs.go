package api

import (
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/iterait/shepherd/job"
)

// LogService opens what runners have written.
type LogService interface {
	// Logs opens what a sheep's runners have written; the caller closes it.
	// Reading ends with io.EOF or, following, with ctx's error once that has
	// ended. It returns *job.UnknownSheep and job.ErrNoLog.
	Logs(ctx context.Context, sheep string, q job.LogQuery) (io.ReadCloser, error)

	// JobLogs opens what runners have written during the job's last run; the caller
	// closes it. Reading ends with io.EOF or, following, once the run has ended, or
	// with ctx's error. It returns *job.UnknownJob and job.ErrNoJobLog.
	JobLogs(ctx context.Context, id job.ID, q job.LogQuery) (io.ReadCloser, error)
}

// logServer serves logs.
type logServer struct {
	answers
	jobIDs
	service LogService
}

// GetSheepLogs answers GET /sheep/{sheep_id}/logs.
func (s *logServer) GetSheepLogs(w http.ResponseWriter, r *http.Request, rawSheep string, params GetSheepLogsParams) {
	sheep, err := url.PathUnescape(rawSheep)
	if err != nil {
		s.fail(w, r, &job.UnknownSheep{Name: rawSheep})
		return
	}
	s.serveLog(w, r, params.Follow, params.Tail, func(q job.LogQuery) (io.ReadCloser, error) {
		return s.service.Logs(r.Context(), sheep, q)
	})
}

// GetJobLogs answers GET /jobs/{job_id}/logs.
func (s *logServer) GetJobLogs(w http.ResponseWriter, r *http.Request, rawID string, params GetJobLogsParams) {
	id, err := s.jobID(r, rawID)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.serveLog(w, r, params.Follow, params.Tail, func(q job.LogQuery) (io.ReadCloser, error) {
		return s.service.JobLogs(r.Context(), id, q)
	})
}

// serveLog answers with a log, as it is written where the client follows it.
func (s *logServer) serveLog(w http.ResponseWriter, r *http.Request, follow, tail *string, open func(job.LogQuery) (io.ReadCloser, error)) {
	q := job.LogQuery{Tail: -1}
	var err error
	if q.Follow, err = flag("follow", follow); err == nil && tail != nil {
		q.Tail, err = parseTail(*tail)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	log, err := open(q)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	defer log.Close()

	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Accel-Buffering", "no") // proxies that know it pass lines on as they come
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return
	}
	unbounded(w)
	control := http.NewResponseController(w)
	_ = control.Flush() // the client knows at once that it follows
	buffer := buffers.Get().(*[64 << 10]byte)
	defer buffers.Put(buffer)
	for {
		n, err := log.Read(buffer[:])
		if n > 0 {
			_ = control.SetWriteDeadline(time.Now().Add(stall)) // not every writer has deadlines
			if _, err := w.Write(buffer[:n]); err != nil {
				return // the client has left
			}
			if q.Follow {
				_ = control.Flush()
			}
		}
		switch {
		case err == nil:
			continue
		case errors.Is(err, io.EOF):
			_ = control.Flush()
		case r.Context().Err() != nil: // the client has left, or the daemon is going
		default:
			s.log.ErrorContext(r.Context(), "log broken off", "path", r.URL.Path, "error", err)
			panic(http.ErrAbortHandler)
		}
		_ = control.SetWriteDeadline(time.Time{})
		return
	}
}

// flag reads a parameter that is yes or no; named without a value it is yes.
func flag(name string, value *string) (bool, error) {
	if value == nil {
		return false, nil
	}
	switch *value {
	case "", "true", "1":
		return true, nil
	case "false", "0":
		return false, nil
	}
	return false, &job.Invalid{Field: name, Problem: "must be true or false"}
}

// parseTail reads a number of lines.
func parseTail(text string) (int, error) {
	if text == "all" {
		return -1, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return 0, &job.Invalid{Field: "tail", Problem: "must be a number of lines, or all"}
	}
	return int(min(n, math.MaxInt)), nil
}
