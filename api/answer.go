package api

import (
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/iterait/shepherd/job"
)

const jsonType = "application/json; charset=utf-8"

// answer writes value as a JSON response that must not be cached.
func (s *server) answer(w http.ResponseWriter, r *http.Request, status int, value any) {
	s.answerAs(w, r, status, jsonType, value)
}

// answerAs is answer with a Content-Type.
func (s *server) answerAs(w http.ResponseWriter, r *http.Request, status int, contentType string, value any) {
	body, err := job.JSON(value)
	if err != nil {
		s.log.ErrorContext(r.Context(), "cannot write an answer as JSON", "path", r.URL.Path, "error", err)
		status = http.StatusInternalServerError
		contentType, body = jsonType, fmt.Appendf(nil, "{\"message\": %q}", internalMessage)
	}
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(body) // a client that has left cannot be told
}

// response records the status and size of a response.
type response struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (w *response) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// guard gives requests ids, writes the access log, and answers 500 where a handler panics.
func (s *server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w := &response{ResponseWriter: rw}
		r = withRequestID(w, r)
		begin := time.Now()
		defer func() {
			reason := recover()
			if reason != nil && reason != http.ErrAbortHandler {
				s.log.ErrorContext(r.Context(), "panic while answering", "method", r.Method, "path", r.URL.Path,
					"request", requestID(r.Context()), "error", fmt.Sprint(reason), "stack", string(debug.Stack()))
				if w.status == 0 {
					s.answer(w, r, http.StatusInternalServerError, Error{Message: internalMessage})
					reason = nil
				} else {
					reason = http.ErrAbortHandler // half an answer is worse than a broken connection
				}
			}
			if s.log.Enabled(r.Context(), slog.LevelDebug) {
				s.log.LogAttrs(r.Context(), slog.LevelDebug, "request",
					slog.String("method", r.Method), slog.String("path", r.URL.Path), slog.Int("status", w.status),
					slog.Int64("bytes", w.bytes), slog.Duration("duration", time.Since(begin)), slog.String("client", r.RemoteAddr), slog.String("request", requestID(r.Context())))
			}
			if reason != nil {
				panic(reason)
			}
		}()
		next.ServeHTTP(w, r)
	})
}
