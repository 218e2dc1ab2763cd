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

// reader answers queries about jobs, their files, logs and events. It changes nothing. For
// jobs that the ledger does not know it asks storage.
type reader struct {
	cfg *Config
	env *services
	log *slog.Logger
}

// Owner returns the tenant that a job belongs to; empty for none, and for a job whose record
// in the ledger has expired. The errors are those of Job.
func (r *reader) Owner(ctx context.Context, id job.ID) (string, error) {
	rec, err := r.cfg.Ledger.Get(ctx, id)
	switch {
	case err == nil:
		return rec.Tenant, nil
	case !errors.Is(err, ledger.ErrNotFound): // what it would say is not known
		return "", serviceError("ledger", fmt.Errorf("read the tenant of job %s: %w", id, err))
	}
	_, err = r.Job(ctx, id)
	return "", err
}

// Job returns a job's state from the ledger or, if its record has expired or never existed,
// from storage. The error is *job.UnknownJob, or has the class of the ledger or the storage.
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
		return job.Status{}, serviceError("storage", fmt.Errorf("read the state of job %s: %w", id, err))
	}
	return status, nil
}

// Wait is Job, returning when the job or ctx has ended. If ctx ends first, Wait returns the
// current state with ctx's error. A job that only storage knows does not change any more, so
// its state is returned at once.
func (r *reader) Wait(ctx context.Context, id job.ID) (job.Status, error) {
	ended := make(chan job.Status, 1)
	status, stop, err := r.NotifyEnd(ctx, id, func(s job.Status) { ended <- s })
	defer stop()
	if status.State.Final() || err != nil && ctx.Err() == nil {
		return status, err
	}
	select {
	case status = <-ended:
		return status, nil
	case <-ctx.Done():
		if now, err := r.Job(context.WithoutCancel(ctx), id); err == nil {
			status = now
		}
		return status, ctx.Err()
	}
}

// NotifyEnd is Job, and calls f with the final state when a job that has not ended does. f
// is called at most once, on another goroutine, must return at once, and may still be called
// just after stop. stop is never nil.
func (r *reader) NotifyEnd(ctx context.Context, id job.ID, f func(job.Status)) (_ job.Status, stop func(), err error) {
	w := &endWatch{notify: f}
	stop = r.env.hub.watch(id, w.observe) // before reading the ledger, so that no end is missed
	status, run, err := r.statusAndRun(ctx, id)
	if err == nil && !status.State.Final() {
		w.follow(run)
	}
	return status, stop, err
}

// statusAndRun is Job with the number of the job's run. It reads the ledger on another
// goroutine: the read needs a deep stack, which a goroutine that waits afterwards would
// keep.
func (r *reader) statusAndRun(ctx context.Context, id job.ID) (job.Status, int, error) {
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

// Output opens one of a job's outputs. The error is job.ErrNotReady before the job has
// ended, the *job.Failure of a failed job, or one of Input's.
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

// Outputs yields the files that a job has stored, by name. It yields at most one error, as
// the last element: job.ErrNotReady before the job has ended, or the *job.Failure of a job
// that ended without a result.
func (r *reader) Outputs(ctx context.Context, id job.ID) iter.Seq2[job.FileInfo, error] {
	return r.files(ctx, id, job.OutputDir+"/", withoutResult)
}

// Inputs yields a job's inputs, by name. It yields at most one error, as the last element:
// *job.UnknownJob, or one with the storage's class.
func (r *reader) Inputs(ctx context.Context, id job.ID) iter.Seq2[job.FileInfo, error] {
	return r.files(ctx, id, job.InputDir+"/", func(job.Status) error { return nil })
}

// Presign sets the Address of each of a job's files in dir, job.InputDir or job.OutputDir,
// to a URL that is valid for the given time. A file whose name no request can name, which
// another program has stored, gets none. The error is job.ErrNoAddresses, or the storage's.
func (r *reader) Presign(ctx context.Context, id job.ID, dir string, files []job.FileInfo, valid time.Duration) error {
	if r.cfg.Presigner == nil {
		return job.ErrNoAddresses
	}
	for i := range files {
		address, err := r.cfg.Presigner.Presign(ctx, id, dir+"/"+files[i].Name, valid)
		if errors.Is(err, storage.ErrBadName) {
			continue
		}
		if err != nil {
			return serviceError("storage", err)
		}
		files[i].Address = address
	}
	return nil
}

// files is list for a job that exists and whose status passes check.
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

// list yields a job's files below prefix, with the prefix removed; none if they were
// removed. It yields at most one error, as the last element.
func (r *reader) list(ctx context.Context, id job.ID, prefix string) iter.Seq2[job.FileInfo, error] {
	return func(yield func(job.FileInfo, error) bool) {
		for f, err := range r.cfg.Store.List(ctx, id, prefix) {
			if errdefs.IsNotFound(err) { // the job's files were removed
				return
			}
			if err != nil {
				yield(job.FileInfo{}, serviceError("storage", fmt.Errorf("list %s of job %s: %w", prefix, id, err)))
				return
			}
			name := strings.TrimPrefix(f.Name, prefix)
			if name == "" || strings.HasSuffix(name, "/") {
				continue // another program's directory marker
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

// withoutResult returns why a job has no result, or nil if it has one.
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
		return nil, serviceError("storage", fmt.Errorf("open %s of job %s: %w", name, id, err))
	}
	if _, err := r.cfg.Ledger.Get(ctx, id); err == nil {
		return nil, job.ErrNoFile
	}
	there, err := r.cfg.Store.Exists(ctx, id)
	if err != nil {
		return nil, serviceError("storage", fmt.Errorf("look for job %s: %w", id, err))
	}
	if !there {
		return nil, &job.UnknownJob{ID: string(id)}
	}
	return nil, job.ErrNoFile
}
