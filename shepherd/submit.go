package shepherd

import (
	"context"
	"errors"
	"fmt"
	"strings"
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
func (s *Shepherd) Submit(ctx context.Context, r job.Request) (err error) {
	if r.Payload == nil && len(r.After) > 0 {
		if err := s.admissible(ctx, r); err != nil {
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
	if err := s.admissible(ctx, r); err != nil {
		return err
	}
	if err := s.roomFor(ctx, r.Tenant, 1); err != nil {
		return err
	}
	submitted, err := s.remover.submit(r.ID)
	if err != nil {
		return err
	}
	defer submitted()
	if r.Payload == nil {
		uploaded, err := s.takeUpload(ctx, &r)
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

// enter enters a job whose inputs are in storage in the ledger.
func (s *Shepherd) enter(ctx context.Context, r job.Request, trace job.Trace) error {
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
func (s *Shepherd) notEntered(r job.Request, err error) error {
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

// afterProblem tells a client why a job cannot be after another one.
func afterProblem(e *ledger.AfterError) error {
	switch e.State {
	case "":
		return &job.Invalid{Field: "after", Problem: fmt.Sprintf("there is no job `%s` to wait for", e.Job)}
	case job.Done:
		return &job.AfterError{ID: e.Job, Problem: fmt.Sprintf("The outputs of job `%s`, which this one needs, have been removed; submit that one again, and then this one", e.Job)}
	}
	how := "has failed"
	if e.State == job.Cancelled {
		how = "was cancelled"
	}
	return &job.AfterError{ID: e.Job, Problem: fmt.Sprintf("Job `%s`, whose outputs this one needs, %s; run that again first (POST /jobs/%s/retry)", e.Job, how, e.Job)}
}

// mayBeAfter looks whether the ledger takes a job that is after others, before anything is
// stored for it. Those that are submitted with it are given.
func (s *Shepherd) mayBeAfter(ctx context.Context, r job.Request, with ...job.Request) error {
	if len(r.After) == 0 {
		return nil
	}
	if err := job.CheckAfter(r.After); err != nil {
		return &job.Invalid{Field: "after", Problem: err.Error()}
	}
	var unread error
	_, err := ledger.CheckAfter(job.Record{ID: r.ID, Tenant: r.Tenant, After: r.After}, func(id job.ID) *job.Record {
		for _, other := range with {
			if other.ID == id {
				return &job.Record{ID: id, Tenant: other.Tenant, State: job.Queued}
			}
		}
		rec, err := s.cfg.Ledger.Get(ctx, id)
		if errors.Is(err, ledger.ErrNotFound) {
			return nil
		}
		if err != nil {
			unread = away("ledger", fmt.Errorf("look for job %s: %w", id, err))
		}
		return &rec
	})
	var after *ledger.AfterError
	if errors.As(err, &after) && unread == nil {
		return afterProblem(after)
	}
	return unread
}

// removedElsewhere answers job.ErrRemoving while another node removes the job's files:
// what is put where they were would go with them.
func (s *Shepherd) removedElsewhere(ctx context.Context, id job.ID) error {
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
func (s *Shepherd) record(r job.Request, trace job.Trace) job.Record {
	to := s.addressOf(r)
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
func (s *Shepherd) create(ctx context.Context, rec job.Record) (job.Record, error) {
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
func (s *Shepherd) ownPlace(ctx context.Context, r job.Request) error {
	if r.Tenant == "" {
		return nil
	}
	owner, err := s.Owner(ctx, r.ID)
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

// Owner is the tenant whose job it is, empty for nobody's in particular: that a
// job was a tenant's is forgotten with its record in the ledger. The errors are
// those of Job.
func (s *Shepherd) Owner(ctx context.Context, id job.ID) (string, error) {
	rec, err := s.cfg.Ledger.Get(ctx, id)
	switch {
	case err == nil:
		return rec.Tenant, nil
	case !errors.Is(err, ledger.ErrNotFound): // what it would say is not known
		return "", away("ledger", fmt.Errorf("read whose job %s is: %w", id, err))
	}
	_, err = s.Job(ctx, id)
	return "", err
}

// admissible checks what can be checked before anything is stored. The jobs that are
// submitted before it, together with it, are given.
func (s *Shepherd) admissible(ctx context.Context, r job.Request, with ...job.Request) error {
	if err := s.admitting(); err != nil && !s.admitsForOthers(ctx) {
		return err
	}
	if err := s.cfg.Store.CheckID(r.ID); err != nil {
		return &job.Invalid{Field: "job_id", Problem: err.Error()}
	}
	if err := r.Model.Validate(); err != nil {
		return &job.Invalid{Field: "model", Problem: err.Error()}
	}
	if err := r.NodeLabels.Validate(); err != nil {
		return &job.Invalid{Field: "node_labels", Problem: reasonOf(err)}
	}
	if err := job.CheckGroup(r.Group); err != nil {
		return &job.Invalid{Field: "group", Problem: err.Error()}
	}
	if err := s.mayBeAfter(ctx, r, with...); err != nil {
		return err
	}
	if err := s.checkAddress(ctx, r); err != nil {
		return err
	}
	if objection := s.checkModel(r); objection != nil && !s.leftToOthers(ctx, r, objection) {
		return objection
	}
	return nil
}

// roomFor refuses a tenant's jobs for which there is no room: *job.QueueFull, or an
// error of the ledger's disk. Submissions at the same moment may pass together.
func (s *Shepherd) roomFor(ctx context.Context, tenant string, jobs int) error {
	if most := s.cfg.Policy.Tenant(tenant).MaxQueued; most > 0 {
		queued, err := s.cfg.Ledger.Queued(ctx, tenant, most)
		if err != nil {
			return away("ledger", fmt.Errorf("count the jobs of tenant %s that wait: %w", tenant, err))
		}
		if queued > most-jobs {
			return &job.QueueFull{Limit: most, Tenant: tenant}
		}
	}
	if most := s.cfg.MaxQueued; most > 0 {
		counts, err := s.cfg.Ledger.Count(ctx)
		if err != nil {
			return away("ledger", fmt.Errorf("count the jobs that wait: %w", err))
		}
		if counts[job.Queued] > most-jobs {
			return &job.QueueFull{Limit: most}
		}
	}
	if s.cfg.StateRoom != nil {
		if err := s.cfg.StateRoom(); err != nil {
			return &job.Unavailable{Service: "disk of the ledger", Problem: "is nearly full", Cause: err}
		}
	}
	return nil
}

// cancelPatience is how long Cancel waits for a sheep to let go of a job.
const cancelPatience = 5 * time.Second

// Cancel asks for the end of a job that has not ended. One that no sheep has ends
// at once. A sheep that has it stops its runner and then ends the job; Cancel
// waits for that for a few seconds, and until ctx ends, but what was asked stays
// asked. The error is *job.UnknownJob or job.ErrEnded, or has the ledger's class.
func (s *Shepherd) Cancel(ctx context.Context, id job.ID) error {
	events, stop := s.env.hub.subscribe(id)
	defer stop()
	rec, err := s.cfg.Ledger.Cancel(ctx, id)
	switch {
	case errors.Is(err, ledger.ErrNotFound):
		return &job.UnknownJob{ID: string(id)}
	case errors.Is(err, ledger.ErrFinal):
		return job.ErrEnded
	case err != nil:
		return away("ledger", fmt.Errorf("cancel job %s: %w", id, err))
	case rec.State.Final():
		crashpoint.Reached(crashpoint.CancelRecorded)
		s.log.Info("Job cancelled", "job", id)
		return nil
	}
	crashpoint.Reached(crashpoint.CancelRecorded)
	s.log.Info("Job is being cancelled", "job", id, "sheep", rec.Holder)
	patience := time.NewTimer(cancelPatience)
	defer patience.Stop()
	for {
		select {
		case e := <-events:
			if e.Kind == job.EventEnded && e.Run == rec.Run || e.Run > rec.Run {
				return nil
			}
		case <-patience.C:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// Job is the state of a job, from the ledger or, where its record has expired or
// is the original shepherd's, from storage. The error is *job.UnknownJob or has
// the class its part gave it.
func (s *Shepherd) Job(ctx context.Context, id job.ID) (job.Status, error) {
	rec, err := s.cfg.Ledger.Get(ctx, id)
	if err == nil {
		return rec.Status(), nil
	}
	if !errors.Is(err, ledger.ErrNotFound) {
		return job.Status{}, fmt.Errorf("read job %s: %w", id, err)
	}
	if s.cfg.Store.CheckID(id) != nil {
		return job.Status{}, &job.UnknownJob{ID: string(id)}
	}
	status, err := s.cfg.Store.Status(ctx, id)
	if errdefs.IsNotFound(err) {
		return job.Status{}, &job.UnknownJob{ID: string(id)}
	}
	if err != nil {
		return job.Status{}, away("storage", fmt.Errorf("read the state of job %s: %w", id, err))
	}
	return status, nil
}

// Wait is Job, once the job has ended or ctx has. When ctx ends first, Wait
// returns the state of the job so far with the context's error. A job that only
// storage knows will not change any more: its state is returned at once.
func (s *Shepherd) Wait(ctx context.Context, id job.ID) (job.Status, error) {
	events, stop := s.env.hub.subscribe(id) // before the ledger is read, so that no change falls between
	defer stop()
	status, run, err := s.standing(ctx, id)
	for err == nil && !status.State.Final() {
		select {
		case <-ctx.Done():
			if now, again, err := s.standing(context.WithoutCancel(ctx), id); err == nil && again == run {
				status = now
			}
			return status, ctx.Err()
		case e := <-events:
			switch {
			case e.Kind == job.EventEnded && e.Run >= run && e.Status != nil:
				status = *e.Status
			case e.Run > run: // the end of the run was missed: this one's counts
				run = e.Run
			}
		}
	}
	return status, err
}

// standing is Job with the number of the job's run, for callers that go on to wait. The
// ledger is read on a goroutine of its own: it needs a deep stack, and the waiting one
// would keep it.
func (s *Shepherd) standing(ctx context.Context, id job.ID) (job.Status, int, error) {
	type answer struct {
		status job.Status
		run    int
		err    error
	}
	read := make(chan answer, 1)
	go func() {
		rec, err := s.cfg.Ledger.Get(ctx, id)
		if errors.Is(err, ledger.ErrNotFound) {
			status, err := s.Job(ctx, id)
			read <- answer{status, 0, err}
			return
		}
		if err != nil {
			err = fmt.Errorf("read job %s: %w", id, err)
		}
		read <- answer{rec.Status(), rec.Run, err}
	}()
	a := <-read
	return a.status, a.run, a.err
}

// Input opens one of a job's inputs. The error is job.ErrNoFile, job.ErrRange or
// *job.UnknownJob, or has the storage's class.
func (s *Shepherd) Input(ctx context.Context, id job.ID, name string, part *job.Range) (*job.File, error) {
	return s.open(ctx, id, job.InputDir+"/"+name, part)
}

// Output opens one of a job's outputs. Before the job has ended it answers
// job.ErrNotReady; of a failed job the *job.Failure; else it is as Input.
func (s *Shepherd) Output(ctx context.Context, id job.ID, name string, part *job.Range) (*job.File, error) {
	status, err := s.Job(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := withoutResult(status); err != nil {
		return nil, err
	}
	return s.open(ctx, id, job.OutputDir+"/"+name, part)
}

// Outputs lists the files that a job has stored. Before the job has ended it answers
// job.ErrNotReady; of a job that ended without a result the *job.Failure.
func (s *Shepherd) Outputs(ctx context.Context, id job.ID) ([]job.FileInfo, error) {
	status, err := s.Job(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := withoutResult(status); err != nil {
		return nil, err
	}
	return s.list(ctx, id, job.OutputDir+"/")
}

// Inputs lists the files that a job was submitted with. The error is *job.UnknownJob,
// or has the storage's class.
func (s *Shepherd) Inputs(ctx context.Context, id job.ID) ([]job.FileInfo, error) {
	if _, err := s.Job(ctx, id); err != nil {
		return nil, err
	}
	return s.list(ctx, id, job.InputDir+"/")
}

// Presign gives each of a job's files below a directory, job.InputDir or job.OutputDir, an
// address that is valid for a time. The error is job.ErrNoAddresses, or the storage's.
func (s *Shepherd) Presign(ctx context.Context, id job.ID, dir string, files []job.FileInfo, valid time.Duration) error {
	if s.cfg.Presigner == nil {
		return job.ErrNoAddresses
	}
	for i := range files {
		address, err := s.cfg.Presigner.Presign(ctx, id, dir+"/"+files[i].Name, valid)
		if err != nil {
			return away("storage", err)
		}
		files[i].Address = address
	}
	return nil
}

// list returns a job's files below prefix, without it; none where they were removed.
func (s *Shepherd) list(ctx context.Context, id job.ID, prefix string) ([]job.FileInfo, error) {
	listed, err := s.cfg.Store.List(ctx, id, prefix)
	if errdefs.IsNotFound(err) { // its files were removed
		return nil, nil
	}
	if err != nil {
		return nil, away("storage", fmt.Errorf("list %s of job %s: %w", prefix, id, err))
	}
	files := make([]job.FileInfo, 0, len(listed))
	for _, f := range listed {
		name := strings.TrimPrefix(f.Name, prefix)
		if name == "" || strings.HasSuffix(name, "/") {
			continue // another program's mark of a directory
		}
		files = append(files, job.FileInfo{Name: name, Size: f.Size, ETag: quoted(f.ETag), Modified: f.Modified})
	}
	return files, nil
}

func quoted(etag string) string {
	if etag == "" || strings.HasSuffix(etag, `"`) {
		return etag
	}
	return `"` + etag + `"`
}

// withoutResult is why a job has no result; nil where it has one.
func withoutResult(status job.Status) error {
	switch status.State {
	case job.Done:
		return nil
	case job.Failed:
		if status.Failure == nil {
			return &job.Failure{Message: "the job failed"}
		}
		return status.Failure
	case job.Cancelled:
		return &job.Failure{Message: "The job was cancelled"}
	}
	return job.ErrNotReady
}

func (s *Shepherd) open(ctx context.Context, id job.ID, name string, part *job.Range) (*job.File, error) {
	if s.cfg.Store.CheckID(id) != nil {
		return nil, &job.UnknownJob{ID: string(id)}
	}
	file, err := s.cfg.Store.Open(ctx, id, name, part)
	switch {
	case err == nil:
		return file, nil
	case errdefs.IsOutOfRange(err):
		return nil, job.ErrRange
	case errors.Is(err, storage.ErrBadName):
		return nil, job.ErrNoFile
	case !errdefs.IsNotFound(err):
		return nil, away("storage", fmt.Errorf("open %s of job %s: %w", name, id, err))
	}
	if _, err := s.cfg.Ledger.Get(ctx, id); err == nil {
		return nil, job.ErrNoFile
	}
	there, err := s.cfg.Store.Exists(ctx, id)
	if err != nil {
		return nil, away("storage", fmt.Errorf("look for job %s: %w", id, err))
	}
	if !there {
		return nil, &job.UnknownJob{ID: string(id)}
	}
	return nil, job.ErrNoFile
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
