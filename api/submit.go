package api

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/job"
)

// Submissions takes jobs in.
type Submissions interface {
	// Submit accepts a job; when it returns nil the job is durable. It returns
	// *job.Invalid, *job.UnknownSheep, *job.UnknownJob (no payload, and the
	// job's place in storage is not there), job.ErrSubmitted (the id is in use),
	// job.ErrRemoving (the last job's files are being removed), job.ErrUploading,
	// *job.QueueFull and job.ErrDraining. r.Copies is empty.
	Submit(ctx context.Context, r job.Request) error

	// SubmitFiles is Submit for a job that has no payload, whose inputs are the files,
	// which are read to their end or the first error, and those that r.Copies names.
	// The id must be new. An error of files is returned, wrapped.
	SubmitFiles(ctx context.Context, r job.Request, files job.Files) error

	// SubmitAll is Submit for several jobs, all of them or none; r.Copies may not be
	// empty. An error about one of them is a *job.ItemError with one of Submit's or
	// SubmitFiles'.
	SubmitAll(ctx context.Context, rs []job.Request) error
}

// submitter completes requests for jobs, and submits what is sent again only once.
type submitter struct {
	service interface {
		Submissions
		View(ctx context.Context, id job.ID) (job.View, error)
	}
	webhooks Webhooks // nil where none are sent
}

// submitServer serves the operations that submit one job.
type submitServer struct {
	answers
	views
	bodyLimits
	formLimits
	waiter
	submitter
}

// maxIdempotencyKey bounds an Idempotency-Key, in bytes.
const maxIdempotencyKey = 255

// CreateJob answers POST /jobs.
func (s *submitServer) CreateJob(w http.ResponseWriter, r *http.Request, params CreateJobParams) {
	request, files, done, err := s.readJob(w, r)
	defer done()
	if err != nil {
		s.fail(w, r, err)
		return
	}
	key, err := idempotencyKey(params.IdempotencyKey)
	if err == nil {
		err = s.prepare(r, &request, files != nil, key)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	if files != nil {
		unbounded(w) // large files may be copied
	}
	again, err := s.submitOnce(r.Context(), request, files, key)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	done() // the body's memory is not needed while the client waits

	wait := preferredWait(r, s.maxWait)
	if !access.From(r.Context()).May(access.Read) {
		wait = 0
	}
	if wait > 0 {
		if _, err := s.wait(w, r, request.ID, wait); err != nil && r.Context().Err() != nil {
			s.fail(w, r, err)
			return
		}
	}
	view, err := s.service.View(r.Context(), request.ID)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	h := w.Header()
	h.Set("Location", "/jobs/"+string(request.ID))
	applied(h, wait)
	status := http.StatusCreated
	if again {
		status = http.StatusOK
	}
	s.answer(w, r, status, s.detailed(view))
}

// readJob reads the description of a job and, where files come with it, the source
// that they are read from. The caller calls done, which is never nil, when the
// request's payload is no longer used.
func (s *submitServer) readJob(w http.ResponseWriter, r *http.Request) (request job.Request, files job.Files, done func(), err error) {
	done = func() {}
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	switch {
	case err == nil && kind == "multipart/form-data":
		form, err := s.openForm(w, r)
		if err != nil {
			return request, nil, done, err
		}
		if request, err = decodeJob(form.description); err == nil && request.Payload != nil {
			err = &job.Invalid{Field: "payload", Problem: "cannot be combined with files; send it as a file named input"}
		}
		return request, form.next, done, err
	case err == nil && kind != "application/json" && kind != "application/x-www-form-urlencoded", // curl's -d
		err != nil && r.Header.Get("Content-Type") != "":
		return request, nil, done, errMediaType
	}
	room := &lease{of: s.bodies}
	done = room.giveBack
	body, err := readBody(w, r, s.maxBody, room)
	if err != nil {
		return request, nil, done, err
	}
	request, err = decodeJob(body)
	if err == nil && len(request.Copies) > 0 {
		files = noFiles
	}
	return request, files, done, err
}

// prepare completes a request: with an id, where it has none, with what is known of
// its caller, and with what it is known by when it is sent again.
func (s submitter) prepare(r *http.Request, request *job.Request, files bool, key string) error {
	caller := access.From(r.Context())
	if !request.Deadline.IsZero() && !request.Deadline.After(job.Now()) {
		return &job.Invalid{Field: "deadline", Problem: "has passed already; it is " + job.Now().Format(time.RFC3339) + " here"}
	}
	if request.ID == "" && !files && request.Payload == nil && len(request.After) == 0 {
		return &job.Invalid{Field: "inputs", Problem: "the job has none; give a payload, files, jobs that it is after, or the job_id whose inputs are in storage"}
	}
	if !request.Webhook.IsZero() {
		if err := s.checkWebhook(); err != nil {
			return err
		}
	}
	if key != "" {
		digest, err := requestDigest(*request, key)
		if err != nil {
			return err
		}
		request.Idempotency = digest
	}
	if request.ID == "" {
		request.ID = newJobID(caller, key)
	}
	request.Trace = traceOf(r)
	request.Tenant = caller.Tenant
	return nil
}

// submitOnce submits a job. again says that the same request has done so before.
func (s submitter) submitOnce(ctx context.Context, request job.Request, files job.Files, key string) (again bool, err error) {
	if key != "" {
		if again, err := s.submitted(ctx, request); again || err != nil {
			return again, err
		}
	}
	if files != nil {
		err = s.service.SubmitFiles(ctx, request, files)
	} else {
		err = s.service.Submit(ctx, request)
	}
	if key != "" && errors.Is(err, job.ErrSubmitted) { // since
		again, lookErr := s.submitted(ctx, request)
		if lookErr != nil {
			err = lookErr
		} else if again {
			return true, nil
		}
	}
	return false, err
}

// submitted reports whether the request has made its job before. The error is
// errKeyReused where another request with the same key has, and job.ErrSubmitted
// where the id is that of another job.
func (s submitter) submitted(ctx context.Context, request job.Request) (bool, error) {
	view, err := s.service.View(ctx, request.ID)
	if _, unknown := asError[*job.UnknownJob](err); unknown {
		return false, nil
	}
	switch {
	case err != nil:
		return false, err
	case request.Tenant != "" && view.Tenant != request.Tenant:
		return false, nil // to this caller it is not there; Submit says that the id is in use
	case sameRequest(view.Idempotency, request.Idempotency):
		return true, nil
	case sameKey(view.Idempotency, request.Idempotency):
		return false, errKeyReused
	}
	return false, nil
}

// requestDigest is a digest of the key, and one of the key and the request. For a group
// the number of its jobs follows. What follows a dot in a record's is the core's.
func requestDigest(request job.Request, key string) (string, error) {
	request.Trace, request.Tenant = job.Trace{}, ""
	if request.Payload != nil {
		sum := sha256.Sum256(request.Payload) // in place of a copy
		request.Payload = sum[:]
	}
	text, err := json.Marshal(request) // fields in order, keys of maps sorted
	if err != nil {
		return "", fmt.Errorf("write a request as JSON: %w", err)
	}
	ofKey := sha256.Sum256([]byte(key))
	ofBoth := sha256.Sum256(append([]byte(key+"\x00"), text...))
	return hex.EncodeToString(ofKey[:8]) + "-" + hex.EncodeToString(ofBoth[:16]), nil
}

// sameRequest and sameKey compare what requestDigest returned.
func sameRequest(kept, sent string) bool {
	kept, _, _ = strings.Cut(kept, ".")
	return kept != "" && kept == sent
}

func sameKey(kept, sent string) bool {
	keptKey, _, _ := strings.Cut(kept, "-")
	sentKey, _, _ := strings.Cut(sent, "-")
	return keptKey != "" && keptKey == sentKey
}

// idempotencyKey checks a key; empty is none.
func idempotencyKey(key *string) (string, error) {
	if key == nil {
		return "", nil
	}
	if *key == "" || len(*key) > maxIdempotencyKey || strings.ContainsFunc(*key, func(c rune) bool { return c < '!' || c > '~' }) {
		return "", &job.Invalid{Field: "Idempotency-Key", Problem: fmt.Sprintf("must have 1 to %d visible ASCII characters", maxIdempotencyKey)}
	}
	return *key, nil
}

// lowerCase writes bytes as what S3 takes in a bucket's name.
var lowerCase = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// newJobID makes an id: from the caller's key, so that the same key leads to the same
// id, or from random bits.
func newJobID(caller access.Caller, key string) job.ID {
	return job.ID("job-" + newID(caller, key, "job"))
}

// newID is newJobID without its beginning, for what is named.
func newID(caller access.Caller, key, what string) string {
	var bits [16]byte
	if key == "" {
		_, _ = rand.Read(bits[:]) // never fails
	} else {
		sum := sha256.Sum256([]byte("shepherd " + what + "\x00" + caller.Tenant + "\x00" + caller.Name + "\x00" + key))
		copy(bits[:], sum[:])
	}
	return lowerCase.EncodeToString(bits[:])
}

// StartJob answers POST /start-job. The Content-Type is not checked: the original's
// clients may omit it.
func (s *submitServer) StartJob(w http.ResponseWriter, r *http.Request) {
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

// traceOf is the trace that a request belongs to.
func traceOf(r *http.Request) job.Trace {
	return job.ParseTrace(r.Header.Get("Traceparent"), strings.Join(r.Header.Values("Tracestate"), ","))
}

// checkWebhook refuses a job that names a receiver where jobs may not.
func (s submitter) checkWebhook() error {
	secret := ""
	if s.webhooks != nil {
		var err error
		if secret, err = s.webhooks.JobSecret(""); err != nil {
			return err
		}
	}
	if secret == "" {
		return &job.Invalid{Field: "webhook", Problem: "jobs may name no receiver here; an operator can allow it with webhooks.secret_file"}
	}
	return nil
}
