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
	// abandonTime bounds the removal of what a failed upload has stored.
	abandonTime = 30 * time.Second
	// smallInput is the size in bytes up to which an uploaded file is kept in memory.
	smallInput = 64 << 10
	// spoolStep is how many bytes are spooled between two checks of the free disk space.
	spoolStep = 16 << 20
)

// uploadUnderWay is the failure in the job_status.json of a place whose inputs are
// incomplete.
const uploadUnderWay = "The inputs of this job are being uploaded, or their upload was cut short; submit it again"

// inputStore creates the place of a job that is being submitted and stores the job's inputs
// there, before the ledger knows the job.
type inputStore struct {
	cfg    *Config
	env    *services
	log    *slog.Logger
	reader *reader
}

// writeErrors tells errors of the writer apart from errors of the reader.
type writeErrors struct {
	to  io.Writer
	err error
}

// noFiles is the job.Files of a request without files.
func noFiles() (string, io.Reader, error) { return "", nil, io.EOF }

// makePlace creates the place of a job that the ledger does not know and returns the state
// written there. A place left by an interrupted upload is replaced.
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
		return job.Status{}, serviceError("storage", fmt.Errorf("make the place of job %s: %w", id, err))
	}
	return status, nil
}

// removeCutShort removes a place left by an interrupted upload, and returns job.ErrSubmitted
// for any other place.
func (in *inputStore) removeCutShort(ctx context.Context, id job.ID) error {
	status, err := in.cfg.Store.Status(ctx, id)
	switch {
	case errdefs.IsNotFound(err), errdefs.IsDataLoss(err):
		return job.ErrSubmitted
	case err != nil:
		return serviceError("storage", fmt.Errorf("read the state of job %s: %w", id, err))
	case !isCutShort(status):
		return job.ErrSubmitted
	}
	in.log.Info("Removing the files of an interrupted upload", "job", id)
	if err := in.cfg.Store.Remove(ctx, id); err != nil {
		return serviceError("storage", fmt.Errorf("remove the files of an interrupted upload of job %s: %w", id, err))
	}
	return nil
}

// isCutShort reports whether a place belongs to an upload, given that the ledger does not
// know its job.
func isCutShort(status job.Status) bool {
	return status.Accepted && status.Failure != nil && status.Failure.Message == uploadUnderWay
}

// abandon removes what a failed upload has stored.
func (in *inputStore) abandon(ctx context.Context, id job.ID) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abandonTime)
	defer cancel()
	if err := in.cfg.Store.Remove(ctx, id); err != nil {
		in.log.Warn("Cannot remove the files of a failed upload; they stay in storage until the job is submitted again", "job", id, "error", err)
	}
}

// storeInputs writes the job's inputs to its place. reserved is the state that makePlace
// wrote there.
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
		if err := checkInputName(r, name); err != nil {
			return err
		}
		if err := in.storeInput(ctx, r.ID, name, content); err != nil {
			return err
		}
	}
	if names.Len() == 0 && len(r.After) == 0 {
		return &job.Invalid{Field: "inputs", Problem: "the request has no file; a job needs at least one input"}
	}
	// Another daemon may have mistaken this upload for an interrupted one and removed it.
	status, err := in.cfg.Store.Status(ctx, r.ID)
	if err != nil && !errdefs.IsNotFound(err) {
		return serviceError("storage", fmt.Errorf("read the state of job %s: %w", r.ID, err))
	}
	if err != nil || !isCutShort(status) || !status.EnqueuedAt.Equal(reserved.EnqueuedAt) {
		return job.ErrUploading
	}
	return nil
}

// checkInputName returns an error if an input's path collides with the outputs of a job in
// r.After, which become inputs below that job's id.
func checkInputName(r job.Request, name string) error {
	first, _, _ := strings.Cut(name, "/")
	if slices.Contains(r.After, job.ID(first)) {
		return &job.Invalid{Field: "inputs", Problem: fmt.Sprintf("the file name %q is in the way of the outputs of job `%s`, which become inputs below %s/", name, first, first)}
	}
	return nil
}

// storeInput writes one file of unknown size to storage.
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

// inputError blames the client if the file cannot be stored under its name, and storage
// otherwise.
func inputError(id job.ID, name string, err error) error {
	if errdefs.IsInvalidArgument(err) {
		return &job.Invalid{Field: "inputs", Problem: fmt.Sprintf("the file %q cannot be stored: %v", name, err)}
	}
	return serviceError("storage", fmt.Errorf("store input %s of job %s: %w", name, id, err))
}

// spool reads content to its end and returns it with its size. Small content stays in
// memory; larger content goes to an unlinked file on the disk of data_root.
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

// spoolFile creates a file that is deleted when it is closed.
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

// fill copies content to the file and checks the free disk space before every spoolStep
// bytes.
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

// copyInputs copies files of another job to the job's place.
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
			return serviceError("storage", fmt.Errorf("list %s of job %s: %w", c.Path, c.From, err))
		}
		if strings.HasSuffix(file.Name, "/") || one != "" && file.Name != one {
			continue // another program's directory marker; or a file whose name only begins with c.Path
		}
		found = true
		name := c.As
		if one == "" {
			name = path.Join(c.As, strings.TrimPrefix(file.Name, below))
		}
		if err := names.Add(name); err != nil {
			return err
		}
		if err := checkInputName(r, name); err != nil {
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

// mayCopy returns an error if the tenant may not see the other job, or if that job has no
// outputs yet. Another tenant's job is reported as unknown.
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
		return nil // inputs may be in storage before their job is submitted
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
		return serviceError("storage", fmt.Errorf("open %s of job %s: %w", source, from, err))
	}
	defer file.Body.Close()
	if err := in.cfg.Store.Put(ctx, id, path.Join(job.InputDir, name), file.Body, file.Size); err != nil {
		return inputError(id, name, err)
	}
	return nil
}
