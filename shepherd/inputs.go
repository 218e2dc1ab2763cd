package shepherd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
)

const (
	// abandonTime bounds the removal of what an upload that failed has stored.
	abandonTime = 30 * time.Second
	// smallInput is the most that an uploaded file takes in memory, in bytes.
	smallInput = 64 << 10
	// spoolStep is how many bytes are spooled between two looks at the disk's room.
	spoolStep = 16 << 20
)

// uploadUnderWay is the failure in the job_status.json of a place whose inputs are
// not all there.
const uploadUnderWay = "The inputs of this job are being uploaded, or their upload was cut short; submit it again"

// inputStore makes the place of a job that is being submitted, and stores its inputs
// there, before the ledger knows the job.
type inputStore struct {
	cfg    *Config
	env    *services
	log    *slog.Logger
	reader *reader
}

// writeErrors tells an error of the writer from one of the reader.
type writeErrors struct {
	to  io.Writer
	err error
}

// noFiles are those of a job to which no files are sent.
func noFiles() (string, io.Reader, error) { return "", nil, io.EOF }

// makePlace makes the place of a job that the ledger does not know, and returns the state
// that it has. A place that an upload which was cut short has left is made again.
func (in *inputStore) makePlace(ctx context.Context, id job.ID, m job.Model) (job.Status, error) {
	status := job.Status{
		State: job.Queued, Accepted: true, Failure: &job.Failure{Message: uploadUnderWay}, Model: m, EnqueuedAt: in.env.clock.now(),
	}
	err := in.cfg.Store.Reserve(ctx, id, status)
	if errors.Is(err, storage.ErrExists) {
		if err := in.removeCutShort(ctx, id); err != nil {
			return job.Status{}, err
		}
		err = in.cfg.Store.Reserve(ctx, id, status)
	}
	if errors.Is(err, storage.ErrExists) {
		return job.Status{}, job.ErrSubmitted
	}
	if err != nil {
		return job.Status{}, away("storage", fmt.Errorf("make the place of job %s: %w", id, err))
	}
	return status, nil
}

// removeCutShort removes a place that an upload that was cut short has left, or
// returns job.ErrSubmitted where it is another.
func (in *inputStore) removeCutShort(ctx context.Context, id job.ID) error {
	status, err := in.cfg.Store.Status(ctx, id)
	switch {
	case errdefs.IsNotFound(err), errdefs.IsDataLoss(err):
		return job.ErrSubmitted
	case err != nil:
		return away("storage", fmt.Errorf("read the state of job %s: %w", id, err))
	case !isCutShort(status):
		return job.ErrSubmitted
	}
	in.log.Info("Removing what an upload that was cut short has left", "job", id)
	if err := in.cfg.Store.Remove(ctx, id); err != nil {
		return away("storage", fmt.Errorf("remove what an upload of job %s has left: %w", id, err))
	}
	return nil
}

// isCutShort reports whether a place whose job the ledger does not know is that of
// an upload.
func isCutShort(status job.Status) bool {
	return status.Accepted && status.Failure != nil && status.Failure.Message == uploadUnderWay
}

// abandon removes what an upload has stored.
func (in *inputStore) abandon(ctx context.Context, id job.ID) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abandonTime)
	defer cancel()
	if err := in.cfg.Store.Remove(ctx, id); err != nil {
		in.log.Warn("What an upload that failed has stored stays in storage until its job is submitted again", "job", id, "error", err)
	}
}

// storeInputs writes the job's inputs to its place, whose state is reserved.
func (in *inputStore) storeInputs(ctx context.Context, r job.Request, files job.Files, reserved job.Status) error {
	var names job.InputNames
	for _, c := range r.Copies {
		if err := in.copyInputs(ctx, r, c, &names); err != nil {
			return err
		}
	}
	for {
		name, content, err := files()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := names.Add(name); err != nil {
			return err
		}
		if err := notOfOthers(r, name); err != nil {
			return err
		}
		if err := in.storeInput(ctx, r.ID, name, content); err != nil {
			return err
		}
	}
	if names.Len() == 0 && len(r.After) == 0 {
		return &job.Invalid{Field: "inputs", Problem: "the request has no file; a job needs at least one input"}
	}
	// Another daemon may have taken this upload for one that was cut short.
	status, err := in.cfg.Store.Status(ctx, r.ID)
	if err != nil && !errdefs.IsNotFound(err) {
		return away("storage", fmt.Errorf("read the state of job %s: %w", r.ID, err))
	}
	if err != nil || !isCutShort(status) || !status.EnqueuedAt.Equal(reserved.EnqueuedAt) {
		return job.ErrUploading
	}
	return nil
}

// notOfOthers returns an error for an input below the name of a job whose outputs are to
// be there.
func notOfOthers(r job.Request, name string) error {
	first, _, _ := strings.Cut(name, "/")
	if slices.Contains(r.After, job.ID(first)) {
		return &job.Invalid{Field: "inputs", Problem: fmt.Sprintf("the file name %q is in the way of the outputs of job `%s`, which become inputs below %s/", name, first, first)}
	}
	return nil
}

// storeInput writes one file, of a size that is not known, to storage.
func (in *inputStore) storeInput(ctx context.Context, id job.ID, name string, content io.Reader) error {
	body, size, err := in.spool(content)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := in.cfg.Store.Put(ctx, id, path.Join(job.InputDir, name), body, size); err != nil {
		return inputError(id, name, err)
	}
	return nil
}

// inputError is the client's where its file cannot be stored under its name, or at
// all, else the storage's.
func inputError(id job.ID, name string, err error) error {
	if errdefs.IsInvalidArgument(err) {
		return &job.Invalid{Field: "inputs", Problem: fmt.Sprintf("the file %q cannot be stored: %v", name, err)}
	}
	return away("storage", fmt.Errorf("store input %s of job %s: %w", name, id, err))
}

// spool reads content to its end and returns it with its size. What is small stays
// in memory; the rest is in a file without a name on the disk of data_root.
func (in *inputStore) spool(content io.Reader) (io.ReadCloser, int64, error) {
	head := make([]byte, smallInput+1)
	n, err := io.ReadFull(content, head)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) && n <= smallInput {
		return io.NopCloser(bytes.NewReader(head[:n])), int64(n), nil
	}
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, 0, err
	}
	file, err := spoolFile(filepath.Join(in.cfg.DataRoot, stagingDir))
	if err != nil {
		return nil, 0, spoolError(err)
	}
	size, err := in.fill(file, io.MultiReader(bytes.NewReader(head[:n]), content))
	if err == nil {
		if _, seekErr := file.Seek(0, io.SeekStart); seekErr != nil {
			err = spoolError(seekErr)
		}
	}
	if err != nil {
		file.Close()
		return nil, 0, err
	}
	return file, size, nil
}

// spoolFile makes a file that is gone when it is closed.
func spoolFile(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	file, err := os.CreateTemp(dir, "upload-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(file.Name()); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// fill copies content to the file, as far as there is room on its disk.
func (in *inputStore) fill(file *os.File, content io.Reader) (size int64, err error) {
	for {
		if in.cfg.StageRoom != nil {
			if err := in.cfg.StageRoom(spoolStep); err != nil {
				return 0, spoolError(err)
			}
		}
		to := &writeErrors{to: file}
		n, err := io.Copy(to, io.LimitReader(content, spoolStep))
		size += n
		switch {
		case to.err != nil:
			return 0, spoolError(to.err)
		case err != nil:
			return 0, err
		case n < spoolStep:
			return size, nil
		}
	}
}

func (w *writeErrors) Write(p []byte) (n int, err error) {
	n, w.err = w.to.Write(p)
	return n, w.err
}

func spoolError(err error) error {
	problem := "cannot be written"
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errdefs.IsResourceExhausted(err) {
		problem = "is full"
	}
	return &job.Unavailable{Service: "disk of data_root", Problem: problem, Cause: fmt.Errorf("spool an upload: %w", err)}
}

// copyInputs writes files of another job to the job's place.
func (in *inputStore) copyInputs(ctx context.Context, r job.Request, c job.Copy, names *job.InputNames) error {
	if err := in.mayCopy(ctx, r, c); err != nil {
		return err
	}
	one, below := c.Path, ""
	if strings.HasSuffix(c.Path, "/") {
		one, below = "", c.Path
	}
	found := false
	for file, err := range in.cfg.Store.List(ctx, c.From, c.Path) {
		if errdefs.IsNotFound(err) { // the job has no files
			break
		}
		if err != nil {
			return away("storage", fmt.Errorf("list %s of job %s: %w", c.Path, c.From, err))
		}
		if strings.HasSuffix(file.Name, "/") || one != "" && file.Name != one {
			continue // another program's mark of a directory; a name that begins like this one
		}
		found = true
		name := c.As
		if one == "" {
			name = path.Join(c.As, strings.TrimPrefix(file.Name, below))
		}
		if err := names.Add(name); err != nil {
			return err
		}
		if err := notOfOthers(r, name); err != nil {
			return err
		}
		if err := in.copyInput(ctx, r.ID, name, c.From, file.Name); err != nil {
			return err
		}
	}
	if !found {
		return &job.Invalid{Field: "inputs", Problem: fmt.Sprintf("job `%s` has no file %s", c.From, c.Path)}
	}
	return nil
}

// mayCopy returns an error where the tenant does not see the other job, or where that
// has no results yet. To a tenant, others' jobs are as jobs that are not there.
func (in *inputStore) mayCopy(ctx context.Context, r job.Request, c job.Copy) error {
	unknown := &job.Invalid{Field: "inputs", Problem: fmt.Sprintf("there is no job `%s` to copy files from", c.From)}
	if in.cfg.Store.CheckID(c.From) != nil || c.From == r.ID {
		return unknown
	}
	notThere := new(job.UnknownJob)
	if r.Tenant != "" {
		owner, err := in.reader.Owner(ctx, c.From)
		if errors.As(err, &notThere) || err == nil && owner != r.Tenant {
			return unknown
		}
		if err != nil {
			return err
		}
	}
	if !strings.HasPrefix(c.Path, job.OutputDir+"/") {
		return nil // inputs, of which there may be no job yet
	}
	status, err := in.reader.Job(ctx, c.From)
	switch {
	case errors.As(err, &notThere):
		return unknown
	case err != nil:
		return err
	case !status.State.Final():
		return &job.Invalid{Field: "inputs", Problem: fmt.Sprintf("job `%s` has not ended, so it has no outputs yet; wait until it has", c.From)}
	case status.State != job.Done:
		return &job.Invalid{Field: "inputs", Problem: fmt.Sprintf("job `%s` is %s, so it has no outputs", c.From, status.State)}
	}
	return nil
}

func (in *inputStore) copyInput(ctx context.Context, id job.ID, name string, from job.ID, source string) error {
	file, err := in.cfg.Store.Open(ctx, from, source, nil)
	if errdefs.IsNotFound(err) {
		return &job.Invalid{Field: "inputs", Problem: fmt.Sprintf("%s of job `%s` was removed meanwhile", source, from)}
	}
	if err != nil {
		return away("storage", fmt.Errorf("open %s of job %s: %w", source, from, err))
	}
	defer file.Body.Close()
	if err := in.cfg.Store.Put(ctx, id, path.Join(job.InputDir, name), file.Body, file.Size); err != nil {
		return inputError(id, name, err)
	}
	return nil
}
