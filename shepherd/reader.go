package shepherd

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/storage"
)

// reader answers what is known of jobs, their files, logs and events, and changes
// nothing. What the ledger does not know it looks for in storage.
type reader struct {
	cfg *Config
	env *services
	log *slog.Logger
}

// Owner is the tenant whose job it is, empty for nobody's in particular: that a
// job was a tenant's is forgotten with its record in the ledger. The errors are
// those of Job.
func (r *reader) Owner(ctx context.Context, id job.ID) (string, error) {
	rec, err := r.cfg.Ledger.Get(ctx, id)
	switch {
	case err == nil:
		return rec.Tenant, nil
	case !errors.Is(err, ledger.ErrNotFound): // what it would say is not known
		return "", away("ledger", fmt.Errorf("read whose job %s is: %w", id, err))
	}
	_, err = r.Job(ctx, id)
	return "", err
}

// Job is the state of a job, from the ledger or, where its record has expired or
// is the original shepherd's, from storage. The error is *job.UnknownJob or has
// the class its part gave it.
func (r *reader) Job(ctx context.Context, id job.ID) (job.Status, error) {
	rec, err := r.cfg.Ledger.Get(ctx, id)
	if err == nil {
		return rec.Status(), nil
	}
	if !errors.Is(err, ledger.ErrNotFound) {
		return job.Status{}, fmt.Errorf("read job %s: %w", id, err)
	}
	if r.cfg.Store.CheckID(id) != nil {
		return job.Status{}, &job.UnknownJob{ID: string(id)}
	}
	status, err := r.cfg.Store.Status(ctx, id)
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
func (r *reader) Wait(ctx context.Context, id job.ID) (job.Status, error) {
	events, stop := r.env.hub.subscribe(id) // before the ledger is read, so that no change falls between
	defer stop()
	status, run, err := r.standing(ctx, id)
	for err == nil && !status.State.Final() {
		select {
		case <-ctx.Done():
			if now, again, err := r.standing(context.WithoutCancel(ctx), id); err == nil && again == run {
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
func (r *reader) standing(ctx context.Context, id job.ID) (job.Status, int, error) {
	type answer struct {
		status job.Status
		run    int
		err    error
	}
	read := make(chan answer, 1)
	go func() {
		rec, err := r.cfg.Ledger.Get(ctx, id)
		if errors.Is(err, ledger.ErrNotFound) {
			status, err := r.Job(ctx, id)
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
func (r *reader) Input(ctx context.Context, id job.ID, name string, part *job.Range) (*job.File, error) {
	return r.open(ctx, id, job.InputDir+"/"+name, part)
}

// Output opens one of a job's outputs. Before the job has ended it answers
// job.ErrNotReady; of a failed job the *job.Failure; else it is as Input.
func (r *reader) Output(ctx context.Context, id job.ID, name string, part *job.Range) (*job.File, error) {
	status, err := r.Job(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := withoutResult(status); err != nil {
		return nil, err
	}
	return r.open(ctx, id, job.OutputDir+"/"+name, part)
}

// Outputs yields the files that a job has stored, by name, and one error at most, as the
// last thing: before the job has ended job.ErrNotReady; of a job that ended without a
// result the *job.Failure.
func (r *reader) Outputs(ctx context.Context, id job.ID) iter.Seq2[job.FileInfo, error] {
	return r.files(ctx, id, job.OutputDir+"/", withoutResult)
}

// Inputs yields the files that a job was submitted with, by name, and one error at most,
// as the last thing: *job.UnknownJob, or one of the storage's class.
func (r *reader) Inputs(ctx context.Context, id job.ID) iter.Seq2[job.FileInfo, error] {
	return r.files(ctx, id, job.InputDir+"/", func(job.Status) error { return nil })
}

// Presign gives each of a job's files below a directory, job.InputDir or job.OutputDir, an
// address that is valid for a time. The error is job.ErrNoAddresses, or the storage's.
func (r *reader) Presign(ctx context.Context, id job.ID, dir string, files []job.FileInfo, valid time.Duration) error {
	if r.cfg.Presigner == nil {
		return job.ErrNoAddresses
	}
	for i := range files {
		address, err := r.cfg.Presigner.Presign(ctx, id, dir+"/"+files[i].Name, valid)
		if err != nil {
			return away("storage", err)
		}
		files[i].Address = address
	}
	return nil
}

// files is list of a job that there is, whose state check allows.
func (r *reader) files(ctx context.Context, id job.ID, prefix string, check func(job.Status) error) iter.Seq2[job.FileInfo, error] {
	return func(yield func(job.FileInfo, error) bool) {
		status, err := r.Job(ctx, id)
		if err == nil {
			err = check(status)
		}
		if err != nil {
			yield(job.FileInfo{}, err)
			return
		}
		r.list(ctx, id, prefix)(yield)
	}
}

// list yields a job's files below prefix, without it; none where they were removed. It
// yields one error at most, as the last thing.
func (r *reader) list(ctx context.Context, id job.ID, prefix string) iter.Seq2[job.FileInfo, error] {
	return func(yield func(job.FileInfo, error) bool) {
		for f, err := range r.cfg.Store.List(ctx, id, prefix) {
			if errdefs.IsNotFound(err) { // its files were removed
				return
			}
			if err != nil {
				yield(job.FileInfo{}, away("storage", fmt.Errorf("list %s of job %s: %w", prefix, id, err)))
				return
			}
			name := strings.TrimPrefix(f.Name, prefix)
			if name == "" || strings.HasSuffix(name, "/") {
				continue // another program's mark of a directory
			}
			if !yield(job.FileInfo{Name: name, Size: f.Size, ETag: quoted(f.ETag), Modified: f.Modified}, nil) {
				return
			}
		}
	}
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

func (r *reader) open(ctx context.Context, id job.ID, name string, part *job.Range) (*job.File, error) {
	if r.cfg.Store.CheckID(id) != nil {
		return nil, &job.UnknownJob{ID: string(id)}
	}
	file, err := r.cfg.Store.Open(ctx, id, name, part)
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
	if _, err := r.cfg.Ledger.Get(ctx, id); err == nil {
		return nil, job.ErrNoFile
	}
	there, err := r.cfg.Store.Exists(ctx, id)
	if err != nil {
		return nil, away("storage", fmt.Errorf("look for job %s: %w", id, err))
	}
	if !there {
		return nil, &job.UnknownJob{ID: string(id)}
	}
	return nil, job.ErrNoFile
}
