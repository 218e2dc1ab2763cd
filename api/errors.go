package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/job"
)

// notice is an error of this package, with the text for the client.
type notice string

func (n notice) Error() string { return string(n) }

const (
	errNoRoute      notice = "There is nothing at this address; /ui shows what there is"
	errMethod       notice = "This address does not know this method"
	errPrecondition notice = "The file is not the one this request asks for"
	errStillRunning notice = "The job has not ended yet; wait again"
	errSlowBody     notice = "The body of the request took too long to come"
	errNoRoom       notice = "Too many large requests come at once; try again, or put large inputs into storage and start the job without a payload"
)

// statusClientGone is the status in the access log of a request whose client has
// disconnected; it is never sent.
const statusClientGone = 499

// class is how one kind of error is answered.
type class struct {
	status int
	// match returns the message for the client. Only errors made for clients are shown
	// with their own text, without the context they were wrapped in.
	match func(error) (message string, ok bool)
	// ours marks errors of the daemon or of what it depends on: they are logged, and
	// clients see their cause in debug mode only.
	ours bool
	// retryAfter, in seconds, is sent when not 0.
	retryAfter int
}

// classes maps errors to HTTP. The first match counts; an error without a match is an
// internal error.
var classes = []class{
	{status: http.StatusUnauthorized, match: as[*access.Unknown]},
	{status: http.StatusForbidden, match: as[*access.Refused]},
	{status: http.StatusForbidden, match: as[*job.Untrusted]},
	{status: http.StatusTooManyRequests, match: as[*access.TooMany]},
	{status: http.StatusTooManyRequests, match: as[*job.QueueFull], retryAfter: 30},
	{status: http.StatusBadRequest, match: as[*job.UnknownJob]},
	{status: http.StatusBadRequest, match: as[*job.UnknownSheep]},
	{status: http.StatusBadRequest, match: as[*job.Invalid]},
	{status: http.StatusInternalServerError, match: as[*job.Failure]}, // the original's answer for the result of a failed job
	{status: http.StatusRequestEntityTooLarge, match: tooLarge},
	{status: http.StatusConflict, match: is(job.ErrSubmitted)},
	{status: http.StatusConflict, match: is(job.ErrRemoving), retryAfter: 2},
	{status: http.StatusConflict, match: is(job.ErrEnded)},
	{status: http.StatusConflict, match: is(job.ErrNotEnded)},
	{status: http.StatusConflict, match: is(job.ErrNotReady)}, // only a result turns it into 202
	{status: http.StatusNotFound, match: is(job.ErrNoFile)},
	{status: http.StatusRequestedRangeNotSatisfiable, match: is(job.ErrRange)},
	{status: http.StatusNotFound, match: is(job.ErrNoLog)},
	{status: http.StatusNotFound, match: is(job.ErrNoJobLog)},
	{status: http.StatusConflict, match: is(job.ErrNoModels)},
	{status: http.StatusConflict, match: as[*job.ModelNeeded]},
	{status: http.StatusNotFound, match: modelError(errdefs.IsNotFound)},
	{status: http.StatusBadRequest, match: modelError(errdefs.IsInvalidArgument)},
	{status: http.StatusConflict, match: modelError(errdefs.IsFailedPrecondition)},
	{status: http.StatusBadGateway, match: modelError(errdefs.IsPermissionDenied)},
	{status: http.StatusServiceUnavailable, match: modelError(errdefs.IsResourceExhausted), retryAfter: 30},
	{status: http.StatusServiceUnavailable, match: modelError(errdefs.IsUnavailable), retryAfter: 5},
	{status: http.StatusInternalServerError, match: as[*job.ModelError], ours: true},
	{status: http.StatusServiceUnavailable, match: is(job.ErrDraining), retryAfter: 5},
	{status: http.StatusServiceUnavailable, match: as[*job.Unavailable], ours: true, retryAfter: 5},
	{status: http.StatusRequestTimeout, match: is(errSlowBody)},
	{status: http.StatusServiceUnavailable, match: is(errNoRoom), retryAfter: 2},
	{status: http.StatusNotFound, match: is(errNoRoute)},
	{status: http.StatusMethodNotAllowed, match: is(errMethod)},
	{status: http.StatusPreconditionFailed, match: is(errPrecondition)},
	{status: http.StatusServiceUnavailable, match: is(errStillRunning), retryAfter: 1},

	{status: statusClientGone, match: of(errdefs.IsCanceled, "The request was given up")},
	{status: http.StatusBadRequest, match: of(errdefs.IsInvalidArgument, "The request cannot be accepted"), ours: true},
	{status: http.StatusNotFound, match: of(errdefs.IsNotFound, "What the request asks for does not exist"), ours: true},
	{status: http.StatusConflict, match: of(errdefs.IsAlreadyExists, "What the request would make is there already"), ours: true},
	{status: http.StatusConflict, match: of(errdefs.IsConflict, "The request conflicts with another one; try again"), ours: true},
	{status: http.StatusConflict, match: of(errdefs.IsFailedPrecondition, "The request is not possible in the present state"), ours: true},
	{status: http.StatusServiceUnavailable, match: of(errdefs.IsResourceExhausted, "Shepherd has run out of room for this; try again later"), ours: true, retryAfter: 30},
	{status: http.StatusServiceUnavailable, match: of(errdefs.IsDeadlineExceeded, "A service that shepherd depends on takes too long; try again later"), ours: true, retryAfter: 5},
	{status: http.StatusServiceUnavailable, match: of(errdefs.IsUnavailable, "A service that shepherd depends on is not reachable; try again later"), ours: true, retryAfter: 5},
}

var internal = class{status: http.StatusInternalServerError, ours: true}

const internalMessage = "Internal server error"

// classify returns err's class and the message for the client.
func classify(err error) (class, string) {
	for _, c := range classes {
		if message, ok := c.match(err); ok {
			return c, message
		}
	}
	return internal, internalMessage
}

// is matches one error value, with its own text.
func is(target error) func(error) (string, bool) {
	return func(err error) (string, bool) { return target.Error(), errors.Is(err, target) }
}

// as matches one type of error, with its own text.
func as[E error](err error) (string, bool) {
	var target E
	if !errors.As(err, &target) {
		return "", false
	}
	return target.Error(), true
}

// of matches a class of errors, with a text for all of them.
func of(belongs func(error) bool, message string) func(error) (string, bool) {
	return func(err error) (string, bool) { return message, belongs(err) }
}

// modelError matches a class of errors about models, with their own texts.
func modelError(belongs func(error) bool) func(error) (string, bool) {
	return func(err error) (string, bool) {
		message, ok := as[*job.ModelError](err)
		return message, ok && belongs(err)
	}
}

func tooLarge(err error) (string, bool) {
	var target *http.MaxBytesError
	if !errors.As(err, &target) {
		return "", false
	}
	return fmt.Sprintf("The body is larger than %d bytes, the most that is accepted; put large inputs into storage and start the job without a payload", target.Limit), true
}

// maxErrorText bounds the texts of an error answer, in bytes.
const maxErrorText = 16 << 10

// bounded cuts a text for clients at maxErrorText.
func bounded(text string) string {
	if len(text) > maxErrorText {
		return strings.ToValidUTF8(text[:maxErrorText], "") + "…"
	}
	return text
}

// fail answers r with err.
func (s *server) fail(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, context.Canceled) && r.Context().Err() != nil {
		err = context.Cause(r.Context()) // the client left, or the daemon is going and says so
	}
	c, message := classify(err)
	body := Error{Message: bounded(message)}
	if c.ours {
		attrs := []slog.Attr{slog.String("method", r.Method), slog.String("path", r.URL.Path), slog.Int("status", c.status), slog.Any("error", err)}
		if away := (*job.Unavailable)(nil); errors.As(err, &away) {
			attrs = append(attrs, slog.Any("cause", away.Cause))
		}
		level := slog.LevelWarn
		if c.status == http.StatusInternalServerError {
			level = slog.LevelError
		}
		s.log.LogAttrs(r.Context(), level, "request failed", attrs...)
		if s.debug {
			detail := bounded(err.Error())
			body.Detail = &detail
		}
	}
	c.retryAfter = max(c.retryAfter, challenge(w.Header(), err))
	if c.retryAfter != 0 {
		w.Header().Set("Retry-After", strconv.Itoa(c.retryAfter))
	}
	s.answer(w, r, c.status, body)
}
