package api

import (
	"errors"
	"fmt"
	"net/http"
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
	errKeyReused    notice = "This Idempotency-Key was used for another request; use a new one for each job"
	errMediaType    notice = "The body must be application/json, or multipart/form-data with the files of the job"
	errStillRunning notice = "The job has not ended yet; wait again"
	errSlowBody     notice = "The body of the request took too long to arrive"
	errNoWebhooks   notice = "This daemon sends no webhooks: `webhooks` is not in its configuration"
	errNoFleet      notice = "This daemon is not part of a fleet: its ledger is a file on its machine, not a database (ledger.url)"
	errNoRoom       notice = "Too many large requests come at once; try again, or put large inputs into storage and start the job without a payload"
)

// statusClientGone is the status in the access log of a request whose client has
// disconnected; it is never sent.
const statusClientGone = 499

// class is how one kind of error is answered.
type class struct {
	name   string // in the type of a problem
	status int
	// inJobAPI is the status on routes of the job API, where it is another one than the
	// original's; 0 where it is the same.
	inJobAPI int
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
	{name: "unauthenticated", status: http.StatusUnauthorized, match: as[*access.Unknown]},
	{name: "forbidden", status: http.StatusForbidden, match: as[*access.Refused]},
	{name: "model-refused", status: http.StatusForbidden, match: as[*job.Untrusted]},
	{name: "too-many-requests", status: http.StatusTooManyRequests, match: as[*access.TooMany]},
	{name: "queue-full", status: http.StatusTooManyRequests, match: as[*job.QueueFull], retryAfter: 30},
	{name: "unknown-job", status: http.StatusBadRequest, inJobAPI: http.StatusNotFound, match: as[*job.UnknownJob]},
	{name: "unknown-sheep", status: http.StatusNotFound, match: as[noSheep]},
	{name: "unknown-sheep", status: http.StatusBadRequest, match: as[*job.UnknownSheep]},
	{name: "unknown-node", status: http.StatusNotFound, match: as[*job.UnknownNode]},
	{name: "no-fleet", status: http.StatusNotFound, match: is(errNoFleet)},
	{name: "node-in-use", status: http.StatusConflict, match: as[*job.NodeInUse]},
	{name: "invalid-request", status: http.StatusBadRequest, match: as[*job.Invalid]},
	{name: "job-failed", status: http.StatusInternalServerError, inJobAPI: http.StatusConflict, match: as[*job.Failure]}, // the original's answer for the result of a failed job
	{name: "too-large", status: http.StatusRequestEntityTooLarge, match: tooLarge},
	{name: "id-in-use", status: http.StatusConflict, match: is(job.ErrSubmitted)},
	{name: "being-removed", status: http.StatusConflict, match: is(job.ErrRemoving), retryAfter: 2},
	{name: "removal-stopped", status: http.StatusServiceUnavailable, match: is(job.ErrRemovalStopped), retryAfter: 1},
	{name: "job-ended", status: http.StatusConflict, match: is(job.ErrEnded)},
	{name: "job-not-ended", status: http.StatusConflict, match: is(job.ErrNotEnded)},
	{name: "job-not-ended", status: http.StatusConflict, match: is(job.ErrNotReady)}, // only a result turns it into 202
	{name: "no-message", status: http.StatusNotFound, match: is(job.ErrNoMessage)},
	{name: "no-webhooks", status: http.StatusNotFound, match: is(errNoWebhooks)},
	{name: "no-file", status: http.StatusNotFound, match: is(job.ErrNoFile)},
	{name: "being-submitted", status: http.StatusConflict, match: is(job.ErrUploading), retryAfter: 2},
	{name: "job-not-ended", status: http.StatusConflict, match: is(job.ErrNothingToRetry)},
	{name: "needed", status: http.StatusConflict, match: is(job.ErrNeeded)},
	{name: "after", status: http.StatusConflict, match: as[*job.AfterError]},
	{name: "no-uploads", status: http.StatusConflict, match: as[*job.NoUploads]},
	{name: "no-such-upload", status: http.StatusNotFound, match: is(job.ErrNoUpload)},
	{name: "upload-over", status: http.StatusGone, match: is(job.ErrUploadOver)},
	{name: "upload-incomplete", status: http.StatusConflict, match: as[*job.UploadIncomplete]},
	{name: "id-reserved", status: http.StatusConflict, match: is(job.ErrReserved)},
	{name: "no-addresses", status: http.StatusConflict, match: is(job.ErrNoAddresses)},
	{name: "no-group", status: http.StatusNotFound, match: is(job.ErrNoGroup)},
	{name: "files-removed", status: http.StatusConflict, match: is(job.ErrFilesRemoved)},
	{name: "forgotten", status: http.StatusConflict, match: is(job.ErrForgotten)},
	{name: "events-gone", status: http.StatusGone, match: is(job.ErrEventsGone)},
	{name: "key-reused", status: http.StatusUnprocessableEntity, match: is(errKeyReused)},
	{name: "media-type", status: http.StatusUnsupportedMediaType, match: is(errMediaType)},
	{name: "range", status: http.StatusRequestedRangeNotSatisfiable, match: is(job.ErrRange)},
	{name: "no-log", status: http.StatusNotFound, match: is(job.ErrNoLog)},
	{name: "no-log", status: http.StatusNotFound, match: is(job.ErrNoJobLog)},
	{name: "sheep-drained", status: http.StatusConflict, match: inState(job.SheepDrained)},
	{name: "sheep-not-drained", status: http.StatusConflict, match: inState(job.SheepNotDrained)},
	{name: "sheep-stopped", status: http.StatusConflict, match: inState(job.SheepStopped)},
	{name: "sheep-busy", status: http.StatusConflict, match: inState(job.SheepBusy)},
	{name: "sheep-disturbed", status: http.StatusConflict, match: inState(job.SheepDisturbed)},
	{name: "sheep-without-devices", status: http.StatusConflict, match: inState(job.SheepNoDevices)},
	{name: "no-models", status: http.StatusConflict, match: is(job.ErrNoModels)},
	{name: "model-needed", status: http.StatusConflict, match: as[*job.ModelNeeded]},
	{name: "unknown-model", status: http.StatusNotFound, match: modelError(errdefs.IsNotFound)},
	{name: "invalid-request", status: http.StatusBadRequest, match: modelError(errdefs.IsInvalidArgument)},
	{name: "model", status: http.StatusConflict, match: modelError(errdefs.IsFailedPrecondition)},
	{name: "registry-refused", status: http.StatusBadGateway, match: modelError(errdefs.IsPermissionDenied)},
	{name: "no-room", status: http.StatusServiceUnavailable, match: modelError(errdefs.IsResourceExhausted), retryAfter: 30},
	{name: "unavailable", status: http.StatusServiceUnavailable, match: modelError(errdefs.IsUnavailable), retryAfter: 5},
	{name: "internal", status: http.StatusInternalServerError, match: as[*job.ModelError], ours: true},
	{name: "shutting-down", status: http.StatusServiceUnavailable, match: is(job.ErrDraining), retryAfter: 5},
	{name: "unavailable", status: http.StatusServiceUnavailable, match: as[*job.Unavailable], ours: true, retryAfter: 5},
	{name: "slow-body", status: http.StatusRequestTimeout, match: is(errSlowBody)},
	{name: "no-room", status: http.StatusServiceUnavailable, match: is(errNoRoom), retryAfter: 2},
	{name: "no-address", status: http.StatusNotFound, match: is(errNoRoute)},
	{name: "no-method", status: http.StatusMethodNotAllowed, match: is(errMethod)},
	{name: "precondition", status: http.StatusPreconditionFailed, match: is(errPrecondition)},
	{name: "job-not-ended", status: http.StatusServiceUnavailable, match: is(errStillRunning), retryAfter: 1},

	{name: "given-up", status: statusClientGone, match: of(errdefs.IsCanceled, "The request was given up")},
	{name: "invalid-request", status: http.StatusBadRequest, match: of(errdefs.IsInvalidArgument, "The request cannot be accepted"), ours: true},
	{name: "not-found", status: http.StatusNotFound, match: of(errdefs.IsNotFound, "What the request asks for does not exist"), ours: true},
	{name: "conflict", status: http.StatusConflict, match: of(errdefs.IsAlreadyExists, "What the request would create exists already"), ours: true},
	{name: "conflict", status: http.StatusConflict, match: of(errdefs.IsConflict, "The request conflicts with another one; try again"), ours: true},
	{name: "conflict", status: http.StatusConflict, match: of(errdefs.IsFailedPrecondition, "The request is not possible in the current state"), ours: true},
	{name: "no-room", status: http.StatusServiceUnavailable, match: of(errdefs.IsResourceExhausted, "Shepherd has no space left for this; try again later"), ours: true, retryAfter: 30},
	{name: "damaged", status: http.StatusInternalServerError, match: of(errdefs.IsDataLoss, "What the request needs is damaged; the daemon's log names it"), ours: true},
	{name: "unavailable", status: http.StatusServiceUnavailable, match: of(errdefs.IsDeadlineExceeded, "A service that shepherd depends on takes too long; try again later"), ours: true, retryAfter: 5},
	{name: "unavailable", status: http.StatusServiceUnavailable, match: of(errdefs.IsUnavailable, "A service that shepherd depends on is not reachable; try again later"), ours: true, retryAfter: 5},
}

var internal = class{name: "internal", status: http.StatusInternalServerError, ours: true}

const internalMessage = "Internal server error"

// classify returns err's class and the message for the client.
func classify(err error) (class, string) {
	for _, c := range classes {
		if message, ok := c.match(err); ok {
			if item, ok := asError[*job.ItemError](err); ok {
				message = item.Text(message)
			}
			return c, message
		}
	}
	return internal, internalMessage
}

// is matches one error value, with its own text.
func is(target error) func(error) (string, bool) {
	return func(err error) (string, bool) { return target.Error(), errors.Is(err, target) }
}

// asError finds an error of one type.
func asError[E error](err error) (target E, ok bool) {
	ok = errors.As(err, &target)
	return target, ok
}

// as matches one type of error, with its own text.
func as[E error](err error) (string, bool) {
	target, ok := asError[E](err)
	if !ok {
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
