package api

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/iterait/shepherd/job"
)

// answers writes answers: values as JSON, and errors.
type answers struct {
	log   *slog.Logger
	debug bool // the daemon's own errors are answered with their causes
}

const jsonType = "application/json; charset=utf-8"

// answer writes value as a JSON response that must not be cached.
func (s answers) answer(w http.ResponseWriter, r *http.Request, status int, value any) {
	s.answerAs(w, r, status, jsonType, value)
}

// answerAs is answer with a Content-Type.
func (s answers) answerAs(w http.ResponseWriter, r *http.Request, status int, contentType string, value any) {
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
	status   int
	bytes    int64
	hijacked bool // the connection was taken: there is no response here
}

// Hijack takes the connection from the server.
func (w *response) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffered, err := http.NewResponseController(w.ResponseWriter).Hijack()
	w.hijacked = w.hijacked || err == nil
	return conn, buffered, err
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
func (s answers) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.serve(w, withRequestID(w, r), time.Now(), next)
	})
}

// serve is guard for one request, which began at the given time.
func (s answers) serve(rw http.ResponseWriter, r *http.Request, begin time.Time, next http.Handler) {
	w := &response{ResponseWriter: rw}
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
		if s.log.Enabled(r.Context(), slog.LevelDebug) && !w.hijacked {
			s.log.LogAttrs(r.Context(), slog.LevelDebug, "request",
				slog.String("method", r.Method), slog.String("path", r.URL.Path), slog.Int("status", w.status),
				slog.Int64("bytes", w.bytes), slog.Duration("duration", time.Since(begin)), slog.String("client", r.RemoteAddr), slog.String("request", requestID(r.Context())))
		}
		if reason != nil {
			panic(reason)
		}
	}()
	next.ServeHTTP(w, r)
}

// succeed answers that a request was done, or with its error.
func (s answers) succeed(w http.ResponseWriter, r *http.Request, err error) {
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.answer(w, r, http.StatusOK, Success{Success: true})
}

// answerRemoval answers a removal that has ended, continues in the background, or failed.
func (s answers) answerRemoval(w http.ResponseWriter, r *http.Request, err error) {
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

// fail answers r with err.
func (s answers) fail(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, context.Canceled) && r.Context().Err() != nil {
		err = context.Cause(r.Context()) // the client left, or the daemon is going and says so
	}
	c, message := classify(err)
	message = bounded(message)
	asProblem := wantsProblem(r)
	if needOf(r).job && c.inJobAPI != 0 {
		c.status = c.inJobAPI
	}
	var cause *string
	if c.ours {
		attrs := []slog.Attr{slog.String("method", r.Method), slog.String("path", r.URL.Path), slog.Int("status", c.status), slog.String("request", requestID(r.Context())), slog.Any("error", err)}
		if away := (*job.Unavailable)(nil); errors.As(err, &away) {
			attrs = append(attrs, slog.Any("cause", away.Cause))
		}
		level := slog.LevelWarn
		if c.status == http.StatusInternalServerError {
			level = slog.LevelError
		}
		s.log.LogAttrs(r.Context(), level, "request failed", attrs...)
		if s.debug {
			cause = new(bounded(err.Error()))
		}
	}
	c.retryAfter = max(c.retryAfter, challenge(w.Header(), err))
	if c.retryAfter != 0 {
		w.Header().Set("Retry-After", strconv.Itoa(c.retryAfter))
	}
	if asProblem {
		s.answerAs(w, r, c.status, problemType, problem(r, c, err, message, cause))
		return
	}
	s.answer(w, r, c.status, Error{Message: message, Detail: cause})
}

// badParameter answers requests whose parameters the generated code could not parse.
func (s answers) badParameter(w http.ResponseWriter, r *http.Request, err error) {
	name := "request"
	var format *InvalidParamFormatError
	var many *TooManyValuesForParamError
	switch {
	case errors.As(err, &format):
		name = format.ParamName
	case errors.As(err, &many):
		name = many.ParamName
	}
	s.fail(w, r, &job.Invalid{Field: name, Problem: "must be given once, as one value"})
}

func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
