package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/job"
)

type errorTest struct {
	err     error
	status  int
	message string
	retry   string
	logged  bool
}

// TestErrorTable has one row for every class, and errors wrapped as they arrive.
func TestErrorTable(t *testing.T) {
	wrap := func(err error) error { return fmt.Errorf("open /var/lib/shepherd/secret: %w", err) }
	tests := []errorTest{
		{wrap(&job.UnknownJob{ID: "a"}), 400, "Data for job `a` does not exist", "", false},
		{wrap(&job.UnknownSheep{Name: "s"}), 400, "Unknown sheep id `s`", "", false},
		{wrap(&job.UnknownNode{Name: "n"}), 404, "Unknown node `n`", "", false},
		{wrap(errNoFleet), 404, string(errNoFleet), "", false},
		{wrap(&job.NodeInUse{Problem: "node n is up"}), 409, "node n is up", "", false},
		{wrap(&job.Invalid{Field: "f", Problem: "is bad"}), 400, "f: is bad", "", false},
		{wrap(&job.Failure{Message: "KeyError: 'key'", Traceback: "/srv"}), 500, "KeyError: 'key'", "", false},
		{wrap(&http.MaxBytesError{Limit: 5}), 413, "The body is larger than 5 bytes, the most that is accepted; put large inputs into storage and start the job without a payload", "", false},
		{wrap(job.ErrSubmitted), 409, "A job with this ID was already submitted", "", false},
		{wrap(job.ErrRemoving), 409, job.ErrRemoving.Error(), "2", false},
		{wrap(job.ErrRemovalStopped), 503, job.ErrRemovalStopped.Error(), "1", false},
		{wrap(job.ErrEnded), 409, "the job has ended already", "", false},
		{wrap(job.ErrNotEnded), 409, job.ErrNotEnded.Error(), "", false},
		{wrap(&job.QueueFull{Limit: 3, Tenant: "wool"}), 429, "The queue of tenant `wool` is full: 3 of its jobs wait already, and no more may (max_queued); try again later", "30", false},
		{wrap(&job.QueueFull{Limit: 3}), 429, "The queue is full: 3 jobs wait already; try again later", "30", false},
		{wrap(job.ErrNotReady), 409, "the job has not ended yet", "", false},
		{wrap(job.ErrNoFile), 404, "Requested file does not exist", "", false},
		{wrap(job.ErrUploading), 409, job.ErrUploading.Error(), "2", false},
		{wrap(job.ErrNoMessage), 404, job.ErrNoMessage.Error(), "", false},
		{wrap(errNoWebhooks), 404, string(errNoWebhooks), "", false},
		{wrap(job.ErrNothingToRetry), 409, job.ErrNothingToRetry.Error(), "", false},
		{wrap(job.ErrFilesRemoved), 409, job.ErrFilesRemoved.Error(), "", false},
		{wrap(job.ErrForgotten), 409, job.ErrForgotten.Error(), "", false},
		{wrap(job.ErrEventsGone), 410, job.ErrEventsGone.Error(), "", false},
		{wrap(errKeyReused), 422, errKeyReused.Error(), "", false},
		{wrap(errMediaType), 415, errMediaType.Error(), "", false},
		{wrap(job.ErrRange), 416, "the requested range lies outside the file", "", false},
		{wrap(job.ErrNoLog), 404, "This sheep keeps no log", "", false},
		{wrap(job.ErrNoJobLog), 404, "No log of this job is kept", "", false},
		{wrap(job.ErrNoModels), 409, job.ErrNoModels.Error(), "", false},
		{wrap(&job.ModelNeeded{Model: someModel, Sheep: "s"}), 409, "Model `emloop-test:test2` is loaded by sheep `s`; it can be removed when that has loaded another", "", false},
		{wrap(&job.ModelError{Problem: "no such image", Class: errdefs.ErrNotFound}), 404, "no such image", "", false},
		{wrap(&job.ModelError{Problem: "no name", Class: errdefs.ErrInvalidArgument}), 400, "no name", "", false},
		{wrap(&job.ModelError{Problem: "in use", Class: errdefs.ErrFailedPrecondition}), 409, "in use", "", false},
		{wrap(&job.ModelError{Problem: "refused", Class: errdefs.ErrPermissionDenied}), 502, "refused", "", false},
		{wrap(&job.ModelError{Problem: "disk full", Class: errdefs.ErrResourceExhausted}), 503, "disk full", "30", false},
		{wrap(&job.ModelError{Problem: "away", Class: errdefs.ErrUnavailable}), 503, "away", "5", false},
		{wrap(&job.ModelError{Problem: "strange", Class: errdefs.ErrInternal}), 500, "strange", "", true},
		{wrap(job.ErrNeeded), 409, job.ErrNeeded.Error(), "", false},
		{wrap(&job.AfterError{ID: "a", Problem: "Job `a` has failed"}), 409, "Job `a` has failed", "", false},
		{wrap(&job.ItemError{Index: 2, Err: &job.Invalid{Field: "model", Problem: "is missing"}}), 400, "jobs[2]: model: is missing", "", false},
		{wrap(&job.NoUploads{Problem: "Set storage.public_url"}), 409, "Set storage.public_url; until then send the inputs with the request (POST /jobs)", "", false},
		{wrap(job.ErrNoUpload), 404, job.ErrNoUpload.Error(), "", false},
		{wrap(job.ErrUploadOver), 410, job.ErrUploadOver.Error(), "", false},
		{wrap(&job.UploadIncomplete{Path: "a", Problem: "is missing"}), 409, `The upload is not complete: the file "a" is missing (POST /uploads/ID/addresses says where to put what is missing)`, "", false},
		{wrap(job.ErrReserved), 409, job.ErrReserved.Error(), "", false},
		{wrap(job.ErrNoAddresses), 409, job.ErrNoAddresses.Error(), "", false},
		{wrap(job.ErrNoGroup), 404, "There is no such group", "", false},
		{wrap(job.ErrDraining), 503, "shepherd is shutting down and takes no more jobs; try again when it is back", "5", false},
		{wrap(&job.Unavailable{Service: "storage", Problem: "is not reachable", Cause: errdefs.ErrUnavailable}), 503, "The storage is not reachable; try again later", "5", true},
		{wrap(&access.Unknown{Reason: "who?"}), 401, "who?", "", false},
		{wrap(&access.Refused{Reason: "not you"}), 403, "not you", "", false},
		{wrap(&job.Untrusted{Model: someModel, Reason: "is not trusted"}), 403, "Model `emloop-test:test2` is not trusted", "", false},
		{wrap(&access.TooMany{After: 2500 * time.Millisecond}), 429, "Too many requests; try again later", "3", false},
		{errSlowBody, 408, "The body of the request took too long to arrive", "", false},
		{errNoRoom, 503, "Too many large requests come at once; try again, or put large inputs into storage and start the job without a payload", "2", false},
		{errNoRoute, 404, "There is nothing at this address; /ui shows what there is", "", false},
		{errMethod, 405, "This address does not know this method", "", false},
		{errPrecondition, 412, "The file is not the one this request asks for", "", false},
		{errStillRunning, 503, "The job has not ended yet; wait again", "1", false},
		{wrap(context.Canceled), 499, "The request was given up", "", false},
		{wrap(errdefs.ErrInvalidArgument), 400, "The request cannot be accepted", "", true},
		{wrap(errdefs.ErrNotFound), 404, "What the request asks for does not exist", "", true},
		{wrap(errdefs.ErrAlreadyExists), 409, "What the request would create exists already", "", true},
		{wrap(errdefs.ErrConflict), 409, "The request conflicts with another one; try again", "", true},
		{wrap(errdefs.ErrFailedPrecondition), 409, "The request is not possible in the current state", "", true},
		{wrap(errdefs.ErrResourceExhausted), 503, "Shepherd has no space left for this; try again later", "30", true},
		{wrap(context.DeadlineExceeded), 503, "A service that shepherd depends on takes too long; try again later", "5", true},
		{wrap(errdefs.ErrUnavailable), 503, "A service that shepherd depends on is not reachable; try again later", "5", true},
		{wrap(errdefs.ErrDataLoss), 500, "What the request needs is damaged; the daemon's log names it", "", true},
		{wrap(errdefs.ErrPermissionDenied), 500, "Internal server error", "", true},
		{wrap(errors.New("nil pointer")), 500, "Internal server error", "", true},
		// What a job error says counts, whatever class it is wrapped with.
		{errors.Join(errdefs.ErrNotFound, &job.UnknownJob{ID: "b"}), 400, "Data for job `b` does not exist", "", false},
	}
	tests = append(tests, errorTest{wrap(noSheep{&job.UnknownSheep{Name: "s"}}), 404, "Unknown sheep id `s`", "", false})
	for _, is := range job.SheepTroubles {
		state := &job.SheepState{Sheep: "s", Is: is}
		tests = append(tests, errorTest{wrap(state), 409, state.Error(), "", false})
	}
	for i := range classes {
		if !slices.ContainsFunc(tests, func(test errorTest) bool {
			return i == slices.IndexFunc(classes, func(c class) bool { _, ok := c.match(test.err); return ok })
		}) {
			t.Errorf("no row is answered by class %d, a %d", i, classes[i].status)
		}
	}
	for _, test := range tests {
		for _, debug := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v debug=%v", test.err, debug), func(t *testing.T) {
				log := &logRecorder{}
				s := answers{debug: debug, log: slog.New(slog.NewJSONHandler(log, nil))}
				w := httptest.NewRecorder()
				s.fail(w, httptest.NewRequest("GET", "/x", nil), test.err)
				if w.Code != test.status {
					t.Errorf("status %d, want %d", w.Code, test.status)
				}
				if got := w.Header().Get("Retry-After"); got != test.retry {
					t.Errorf("Retry-After %q, want %q", got, test.retry)
				}
				want := fmt.Sprintf("{\"message\": %q}", test.message)
				if test.logged && debug {
					want = fmt.Sprintf("{\"message\": %q, \"detail\": %q}", test.message, test.err)
				}
				if !sameJSON(t, w.Body.String(), want) {
					t.Errorf("body %s\nwant %s", w.Body, want)
				}
				if strings.Contains(log.String(), "/var/lib/shepherd/secret") != test.logged {
					t.Errorf("log: %q", log)
				}
			})
		}
	}
}
