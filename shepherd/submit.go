package shepherd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/internal/crashpoint"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/storage"
)

// commitTime bounds how long a submission continues after it has begun to change state,
// whether its client is still connected or not.
const commitTime = 30 * time.Second

// submitter accepts jobs: it stores a job's inputs in its place in storage, and then creates
// the job in the ledger.
type submitter struct {
	cfg       *Config
	env       *services
	log       *slog.Logger
	admission *admission
	inputs    *inputStore
	uploads   *uploads
	reader    *reader
	remover   *remover
}

// Submit accepts a job. If it returns nil, the job is in the ledger and will run. Otherwise
// the job was not accepted:
//
//   - *job.Invalid, *job.UnknownSheep or *job.UnknownJob (no payload and no place in storage):
//     the request is wrong.
//   - job.ErrSubmitted: the id is in use.
//   - job.ErrRemoving: the files of the last run are being removed.
//   - job.ErrUploading: another request is submitting this id.
//   - job.ErrUploadOver or *job.UploadIncomplete: its uploaded inputs were given up or are
//     incomplete.
//   - *job.AfterError: a job in r.After has ended without outputs.
//   - job.ErrDraining: the daemon is shutting down, and no other live node serves the queue.
//
// Other errors have the class of the ledger or the storage. It is safe to submit again after
// an error. A job with r.After needs neither a payload nor a place in storage: its place is
// created.
func (s *submitter) Submit(ctx context.Context, r job.Request) (err error) {
	if r.Payload == nil && len(r.After) > 0 {
		if err := s.admission.admissible(ctx, r); err != nil {
			return err
		}
		there, err := s.cfg.Store.Exists(ctx, r.ID)
		if err != nil {
			return serviceError("storage", fmt.Errorf("look for the inputs of job %s: %w", r.ID, err))
		}
		if !there {
			return s.SubmitFiles(ctx, r, noFiles)
		}
	}
	trace, done := s.cfg.Tracer.Submit(r)
	defer func() { done(err) }()
	if err := s.admission.admissible(ctx, r); err != nil {
		return err
	}
	if err := s.admission.roomFor(ctx, r.Tenant, 1); err != nil {
		return err
	}
	submitted, err := s.remover.submit(r.ID)
	if err != nil {
		return err
	}
	defer submitted()
	if r.Payload == nil {
		uploaded, err := s.uploads.take(ctx, &r)
		if err != nil {
			return err
		}
		there, err := s.cfg.Store.Exists(ctx, r.ID)
		if err != nil {
			return serviceError("storage", fmt.Errorf("look for the inputs of job %s: %w", r.ID, err))
		}
		if !there {
			return &job.UnknownJob{ID: string(r.ID)}
		}
		if !uploaded {
			if err := s.checkPlaceOwner(ctx, r); err != nil {
				return err
			}
		}
	}

	// From here on a client that disconnects must not leave half a submission.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTime)
	defer cancel()
	if r.Payload != nil {
		if err := s.checkNotRemoving(ctx, r.ID); err != nil {
			return err
		}
		err := s.cfg.Store.Init(ctx, r.ID, r.Payload)
		if errors.Is(err, storage.ErrExists) {
			return job.ErrSubmitted
		}
		if err != nil {
			return serviceError("storage", fmt.Errorf("store the payload of job %s: %w", r.ID, err))
		}
		crashpoint.Reached(crashpoint.PayloadStored)
	}
	return s.enter(ctx, r, trace)
}

// SubmitFiles is Submit for a job whose inputs are sent with the request: the given files,
// and those that r.Copies names. The id must be new. The inputs are stored before the job is
// created, and removed again if that fails; what a daemon killed meanwhile leaves in storage
// is removed by the next SubmitFiles of the same id. Errors of files are returned wrapped.
func (s *submitter) SubmitFiles(ctx context.Context, r job.Request, files job.Files) (err error) {
	trace, done := s.cfg.Tracer.Submit(r)
	defer func() { done(err) }()
	if err := s.admission.admissible(ctx, r); err != nil {
		return err
	}
	if err := s.admission.roomFor(ctx, r.Tenant, 1); err != nil {
		return err
	}
	free, err := s.remover.upload(r.ID)
	if err != nil {
		return err
	}
	defer free()
	reserved, err := s.reservePlace(ctx, r)
	if err != nil {
		return err
	}
	if err := s.inputs.storeInputs(ctx, r, files, reserved); err != nil {
		s.inputs.abandon(ctx, r.ID)
		return err
	}

	// From here on a client that disconnects must not leave half a submission.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTime)
	defer cancel()
	err = s.enter(ctx, r, trace)
	var after *job.AfterError
	if errors.As(err, &after) { // the other job ended during the upload
		s.inputs.abandon(ctx, r.ID)
	}
	return err
}

// enter creates a job whose inputs are in storage in the ledger.
func (s *submitter) enter(ctx context.Context, r job.Request, trace job.Trace) error {
	if len(r.After) == 0 {
		s.env.payloads.keep(r.ID, r.Payload) // before a lane can see the job
	} else {
		s.env.payloads.keep(r.ID, nil)
	}
	_, err := s.create(ctx, s.record(r, trace))
	if err != nil {
		return s.createError(r, err)
	}
	crashpoint.Reached(crashpoint.RecordCreated)
	s.logQueued(r)
	return nil
}

// createError translates the ledger's refusal of a job for clients.
func (s *submitter) createError(r job.Request, err error) error {
	if errors.Is(err, ledger.ErrOthers) && r.Payload == nil {
		return &job.UnknownJob{ID: string(r.ID)}
	}
	told := error(nil)
	var after *ledger.AfterError
	switch {
	case errors.Is(err, ledger.ErrExists), errors.Is(err, ledger.ErrOthers):
		told = job.ErrSubmitted
	case errors.Is(err, ledger.ErrRemoving): // a daemon was killed during the removal
		told = job.ErrRemoving
	case errors.Is(err, ledger.ErrUploadOver):
		told = job.ErrUploadOver
	case errors.Is(err, ledger.ErrNeeded):
		told = job.ErrNeeded
	case errors.As(err, &after):
		told = afterProblem(after)
	default:
		return serviceError("ledger", fmt.Errorf("enter job %s in the ledger: %w", r.ID, err))
	}
	s.env.payloads.keep(r.ID, nil)
	return told
}

// checkNotRemoving returns job.ErrRemoving while another node removes the job's files, which
// would remove new inputs too.
func (s *submitter) checkNotRemoving(ctx context.Context, id job.ID) error {
	if s.cfg.Peers == nil {
		return nil
	}
	rec, err := s.cfg.Ledger.Get(ctx, id)
	switch {
	case errors.Is(err, ledger.ErrNotFound):
		return nil
	case err != nil:
		return serviceError("ledger", fmt.Errorf("look for job %s: %w", id, err))
	case rec.Removing:
		return job.ErrRemoving
	}
	return nil
}

// record builds the record of a request, including its WaitUntil.
func (s *submitter) record(r job.Request, trace job.Trace) job.Record {
	to := s.admission.addressOf(r)
	rec := job.Record{
		ID: r.ID, Model: r.Model, Sheep: to.String(), Priority: r.Priority, Trace: trace, Tenant: r.Tenant,
		Limits: r.Limits, NotBefore: r.NotBefore, Deadline: r.Deadline, Keep: r.Keep,
		Labels: r.Labels, After: r.After, Group: r.Group, Idempotency: r.Idempotency, Webhook: r.Webhook,
	}
	var sheep job.Limits
	if l := s.env.flock.named(to.Sheep); l != nil && to.Fits(s.cfg.Node, l.Name, s.cfg.Placement.Labels) {
		sheep = l.Limits
	}
	if wait := value(s.cfg.Limits.apply(r.Limits, r.Model, sheep).WaitTimeout); wait > 0 {
		from := s.env.clock.now()
		if r.NotBefore.After(from) {
			from = r.NotBefore
		}
		rec.WaitUntil = from.Add(wait)
	}
	return rec
}

// create creates a record. If the job's last run is being cancelled, it waits for the end of
// that run first.
func (s *submitter) create(ctx context.Context, rec job.Record) (job.Record, error) {
	events, stop := s.env.hub.subscribe(rec.ID)
	defer stop()
	for {
		kept, err := s.cfg.Ledger.Create(ctx, rec)
		if !errors.Is(err, ledger.ErrExists) {
			return kept, err
		}
		last, getErr := s.cfg.Ledger.Get(ctx, rec.ID)
		if getErr != nil || !last.Cancelling && !last.State.Final() || rec.Idempotency != "" && last.Idempotency == rec.Idempotency {
			return kept, err
		}
		if last.State.Final() { // it ended after Create
			continue
		}
		select {
		case <-events:
		case <-ctx.Done():
			return kept, err
		}
	}
}

// checkPlaceOwner returns *job.UnknownJob if a tenant submits a job whose place belonged to an
// earlier job, unless the ledger knows that job as the tenant's.
func (s *submitter) checkPlaceOwner(ctx context.Context, r job.Request) error {
	if r.Tenant == "" {
		return nil
	}
	owner, err := s.reader.Owner(ctx, r.ID)
	var unknown *job.UnknownJob
	if errors.As(err, &unknown) {
		return nil // the place has inputs and no job yet
	}
	if err != nil {
		return err
	}
	if owner != r.Tenant {
		return &job.UnknownJob{ID: string(r.ID)}
	}
	return nil
}

// reservePlace creates the place of a new job and returns the state written there.
func (s *submitter) reservePlace(ctx context.Context, r job.Request) (job.Status, error) {
	switch _, err := s.cfg.Ledger.Get(ctx, r.ID); {
	case err == nil:
		return job.Status{}, job.ErrSubmitted
	case !errors.Is(err, ledger.ErrNotFound):
		return job.Status{}, serviceError("ledger", fmt.Errorf("look for job %s: %w", r.ID, err))
	}
	if err := s.uploads.checkNotReserved(ctx, r); err != nil {
		return job.Status{}, err
	}
	return s.inputs.makePlace(ctx, r.ID, r.Model)
}

// serviceError adds the name of the failed service for clients, if the error is the service's fault.
func serviceError(service string, err error) error {
	var problem string
	switch {
	case errdefs.IsUnavailable(err), errors.Is(err, context.DeadlineExceeded):
		problem = "is not reachable"
	case errdefs.IsPermissionDenied(err):
		problem = "refuses shepherd's credentials"
	case errdefs.IsResourceExhausted(err):
		problem = "is full"
	default:
		return err
	}
	return &job.Unavailable{Service: service, Problem: problem, Cause: err}
}
