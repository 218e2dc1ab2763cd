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

// commitTime bounds how long a submission goes on once it has begun to change
// things, whether its client is still there or not.
const commitTime = 30 * time.Second

// submitter takes jobs in: what may be submitted gets its place with its inputs in
// storage, and is then entered in the ledger.
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

// Submit takes a job in. When it returns nil the job is in the ledger and will
// be dealt with. Otherwise the job was not taken: *job.Invalid, *job.UnknownSheep
// and *job.UnknownJob (no payload and no place in storage) say what is wrong with
// the request; job.ErrSubmitted that the id is in use; job.ErrRemoving that the files
// of the last run are being removed; job.ErrUploading that another request submits
// this id; job.ErrUploadOver and *job.UploadIncomplete that its inputs were uploaded and are
// given up, or not all there; job.ErrDraining that the daemon is stopping and no other node is up that has the queue; anything else has the class
// its part gave it. Submitting again after an error is safe.
//
// A job that is after others needs no place in storage: where there is none, and no
// payload, it is made. *job.AfterError says that one of the others has ended without
// outputs.
func (s *submitter) Submit(ctx context.Context, r job.Request) (err error) {
	if r.Payload == nil && len(r.After) > 0 {
		if err := s.admission.admissible(ctx, r); err != nil {
			return err
		}
		there, err := s.cfg.Store.Exists(ctx, r.ID)
		if err != nil {
			return away("storage", fmt.Errorf("look for the inputs of job %s: %w", r.ID, err))
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
			return away("storage", fmt.Errorf("look for the inputs of job %s: %w", r.ID, err))
		}
		if !there {
			return &job.UnknownJob{ID: string(r.ID)}
		}
		if !uploaded {
			if err := s.ownPlace(ctx, r); err != nil {
				return err
			}
		}
	}

	// From here on a client that goes away must not leave half a submission.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTime)
	defer cancel()
	if r.Payload != nil {
		if err := s.removedElsewhere(ctx, r.ID); err != nil {
			return err
		}
		err := s.cfg.Store.Init(ctx, r.ID, r.Payload)
		if errors.Is(err, storage.ErrExists) {
			return job.ErrSubmitted
		}
		if err != nil {
			return away("storage", fmt.Errorf("store the payload of job %s: %w", r.ID, err))
		}
		crashpoint.Reached(crashpoint.PayloadStored)
	}
	return s.enter(ctx, r, trace)
}

// SubmitFiles is Submit for a job whose inputs come with the request: the files, and
// those that r.Copies names. The id must be new. They are in storage before the job
// is entered; where that fails they are removed again, and what a daemon that is
// killed meanwhile leaves in storage, the next SubmitFiles of the same id removes.
// Errors of files are returned as they are, wrapped.
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

	// From here on a client that goes away must not leave half a submission.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTime)
	defer cancel()
	err = s.enter(ctx, r, trace)
	var after *job.AfterError
	if errors.As(err, &after) { // it ended while the files came
		s.inputs.abandon(ctx, r.ID)
	}
	return err
}

// enter enters a job whose inputs are in storage in the ledger.
func (s *submitter) enter(ctx context.Context, r job.Request, trace job.Trace) error {
	if len(r.After) == 0 {
		s.env.payloads.keep(r.ID, r.Payload) // before a lane can see the job
	} else {
		s.env.payloads.keep(r.ID, nil)
	}
	_, err := s.create(ctx, s.record(r, trace))
	if err != nil {
		return s.notEntered(r, err)
	}
	crashpoint.Reached(crashpoint.RecordCreated)
	s.logQueued(r)
	return nil
}

// notEntered is what a client is told of a job that the ledger has not taken.
func (s *submitter) notEntered(r job.Request, err error) error {
	if errors.Is(err, ledger.ErrOthers) && r.Payload == nil {
		return &job.UnknownJob{ID: string(r.ID)}
	}
	told := error(nil)
	var after *ledger.AfterError
	switch {
	case errors.Is(err, ledger.ErrExists), errors.Is(err, ledger.ErrOthers):
		told = job.ErrSubmitted
	case errors.Is(err, ledger.ErrRemoving): // by a daemon that was killed
		told = job.ErrRemoving
	case errors.Is(err, ledger.ErrUploadOver):
		told = job.ErrUploadOver
	case errors.Is(err, ledger.ErrNeeded):
		told = job.ErrNeeded
	case errors.As(err, &after):
		told = afterProblem(after)
	default:
		return away("ledger", fmt.Errorf("enter job %s in the ledger: %w", r.ID, err))
	}
	s.env.payloads.keep(r.ID, nil)
	return told
}

// removedElsewhere answers job.ErrRemoving while another node removes the job's files:
// what is put where they were would go with them.
func (s *submitter) removedElsewhere(ctx context.Context, id job.ID) error {
	if s.cfg.Peers == nil {
		return nil
	}
	rec, err := s.cfg.Ledger.Get(ctx, id)
	switch {
	case errors.Is(err, ledger.ErrNotFound):
		return nil
	case err != nil:
		return away("ledger", fmt.Errorf("look for job %s: %w", id, err))
	case rec.Removing:
		return job.ErrRemoving
	}
	return nil
}

// record is the record of a request, with what bounds its waiting.
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

// create enters a record. Where the last run of the job is being cancelled, the
// new one is entered when that has ended.
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
		if last.State.Final() { // it ended since
			continue
		}
		select {
		case <-events:
		case <-ctx.Done():
			return kept, err
		}
	}
}

// ownPlace returns *job.UnknownJob where a tenant asks for a job to be run in a
// place that was a job's before, unless the ledger knows that it was its own.
func (s *submitter) ownPlace(ctx context.Context, r job.Request) error {
	if r.Tenant == "" {
		return nil
	}
	owner, err := s.reader.Owner(ctx, r.ID)
	var unknown *job.UnknownJob
	if errors.As(err, &unknown) {
		return nil // inputs, and no job yet
	}
	if err != nil {
		return err
	}
	if owner != r.Tenant {
		return &job.UnknownJob{ID: string(r.ID)}
	}
	return nil
}

// reservePlace makes a place for the job's inputs and returns the state that it has.
func (s *submitter) reservePlace(ctx context.Context, r job.Request) (job.Status, error) {
	switch _, err := s.cfg.Ledger.Get(ctx, r.ID); {
	case err == nil:
		return job.Status{}, job.ErrSubmitted
	case !errors.Is(err, ledger.ErrNotFound):
		return job.Status{}, away("ledger", fmt.Errorf("look for job %s: %w", r.ID, err))
	}
	if err := s.uploads.notReserved(ctx, r); err != nil {
		return job.Status{}, err
	}
	return s.inputs.makePlace(ctx, r.ID, r.Model)
}

// away tells a client which service is to blame, where that is not the client.
func away(service string, err error) error {
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
