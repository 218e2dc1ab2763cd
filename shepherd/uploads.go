package shepherd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/storage"
)

// uploads manages uploads: places that are reserved for jobs whose inputs clients put into
// storage directly, before they submit the job.
type uploads struct {
	cfg       *Config
	env       *services
	log       *slog.Logger
	admission *admission
	inputs    *inputStore
	reader    *reader
	remover   *remover
}

// Uploads configures how clients put inputs into storage directly.
type Uploads struct {
	// Ledger keeps the reservations; nil disables uploads.
	Ledger ledger.Uploads
	// Signer returns the signer of URLs for a client that reaches the daemon by the given
	// host, empty for a client on the same machine. Its error is a *job.NoUploads that says
	// what to configure.
	Signer func(host string) (storage.Signer, error)
	// Keep is how long an upload that is not submitted is kept after its URLs were last
	// requested; 0 means DefaultKeepUploads. It is kept at least as long as the URLs are
	// valid.
	Keep time.Duration
	// MaxSize bounds the total size of an upload in bytes; 0 means DefaultMaxUpload.
	MaxSize int64
}

// Defaults of Uploads.
const (
	DefaultKeepUploads = 24 * time.Hour
	DefaultMaxUpload   = 1 << 40
)

// Division of files: a file of up to wholeFile bytes is sent in one request, a larger one in
// parts, each of which can be resent by itself. The size of the parts grows with the upload,
// so that an upload has about mostParts parts at most.
const (
	wholeFile    = 64 << 20
	smallestPart = 32 << 20
	mostParts    = 5000
	partsOpen    = 8 // concurrent requests to storage about parts
)

// roomy is a Store that can check whether its disk has room.
type roomy interface{ Room(bytes int64) error }

// BeginUpload reserves a place for a job that is not submitted yet and returns where to put
// its inputs. The error is *job.Invalid, *job.NoUploads, *job.QueueFull, job.ErrSubmitted
// (the id is in use), job.ErrRemoving, job.ErrUploading or job.ErrDraining, or has the class
// of the ledger or the storage.
func (up *uploads) BeginUpload(ctx context.Context, r job.UploadRequest) (job.UploadPlan, error) {
	signer, err := up.signer(r.Host)
	if err != nil {
		return job.UploadPlan{}, err
	}
	files, err := up.check(ctx, r)
	if err != nil {
		return job.UploadPlan{}, err
	}
	free, err := up.remover.upload(r.ID)
	if err != nil {
		return job.UploadPlan{}, err
	}
	defer free()
	u, err := up.cfg.Uploads.Ledger.ReserveUpload(ctx, job.Upload{ID: r.ID, Tenant: r.Tenant, Files: files}, up.keep(r.Valid))
	if errors.Is(err, ledger.ErrExists) {
		return job.UploadPlan{}, job.ErrSubmitted
	}
	if err != nil {
		return job.UploadPlan{}, serviceError("ledger", fmt.Errorf("reserve the place of job %s: %w", r.ID, err))
	}
	if _, err = up.inputs.makePlace(ctx, r.ID, job.Model{}); err == nil {
		u, err = up.beginParts(ctx, u)
	}
	if err != nil {
		up.undo(ctx, u, err)
		return job.UploadPlan{}, err
	}
	up.log.Info("Place reserved for an upload", "job", u.ID, "files", len(u.Files), "expires", u.Expires)
	return up.plan(ctx, u, signer, r.Valid, nil)
}

// signer returns the signer of URLs for a client.
func (up *uploads) signer(host string) (storage.Signer, error) {
	if up.cfg.Uploads.Ledger == nil || up.cfg.Uploads.Signer == nil {
		return nil, &job.NoUploads{Problem: "This daemon does not support uploads straight to storage"}
	}
	return up.cfg.Uploads.Signer(host)
}

// UploadOrigin returns the origin of the upload URLs for a client that reaches the daemon by
// the given host; empty if uploads are disabled.
func (up *uploads) UploadOrigin(host string) string {
	signer, err := up.signer(host)
	if err != nil {
		return ""
	}
	return signer.Origin()
}

// keep returns how long an upload is kept whose URLs are valid for the given time.
func (up *uploads) keep(valid time.Duration) time.Duration {
	return max(cmp.Or(up.cfg.Uploads.Keep, DefaultKeepUploads), valid)
}

// check validates a request before anything is reserved, and divides the files into parts.
func (up *uploads) check(ctx context.Context, r job.UploadRequest) ([]job.UploadFile, error) {
	if err := up.admission.admitting(); err != nil && !up.admission.admitsForOthers(ctx) {
		return nil, err
	}
	if err := up.cfg.Store.CheckID(r.ID); err != nil {
		return nil, &job.Invalid{Field: "job_id", Problem: err.Error()}
	}
	var names job.InputNames
	var total int64
	most := cmp.Or(up.cfg.Uploads.MaxSize, DefaultMaxUpload)
	for _, f := range r.Files {
		if err := names.Add(f.Path); err != nil {
			return nil, inFiles(err)
		}
		switch {
		case f.Size < 0 || f.Size > storage.MaxFile:
			return nil, &job.Invalid{Field: "files", Problem: fmt.Sprintf("the size of %q must be 0 to %d bytes", f.Path, int64(storage.MaxFile))}
		case f.Size > most-total:
			return nil, &job.Invalid{Field: "files", Problem: fmt.Sprintf("the files take more than %d bytes, the most that one upload may (storage.max_upload)", most)}
		}
		total += f.Size
	}
	if len(r.Files) == 0 {
		return nil, &job.Invalid{Field: "files", Problem: "there is no file; a job needs at least one input"}
	}
	if err := up.admission.roomFor(ctx, r.Tenant, 1); err != nil {
		return nil, err
	}
	if store, ok := up.cfg.Store.(roomy); ok {
		if err := store.Room(total); err != nil {
			return nil, serviceError("storage", fmt.Errorf("take an upload of %d bytes: %w", total, err))
		}
	}
	_, inParts := up.cfg.Store.(storage.Parts)
	return divide(r.Files, total, inParts)
}

// inFiles changes an error about the name of an input to one about the field files.
func inFiles(err error) error {
	var invalid *job.Invalid
	if errors.As(err, &invalid) {
		return &job.Invalid{Field: "files", Problem: invalid.Problem}
	}
	return err
}

// failed translates an error of the ledger about an upload for clients.
func (up *uploads) failed(id job.ID, err error) error {
	switch {
	case errors.Is(err, ledger.ErrNotFound):
		return job.ErrNoUpload
	case errors.Is(err, ledger.ErrUploadOver), errors.Is(err, ledger.ErrRemoving):
		return job.ErrUploadOver
	}
	return serviceError("ledger", fmt.Errorf("look for the upload of job %s: %w", id, err))
}

// undo removes a reservation that failed with why. What it cannot remove expires.
func (up *uploads) undo(ctx context.Context, u job.Upload, why error) {
	if errors.Is(why, job.ErrNoUpload) || errors.Is(why, job.ErrUploadOver) {
		return // it was given up meanwhile, and the id may be reserved anew
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abandonTime)
	defer cancel()
	_, err := up.cfg.Uploads.Ledger.BeginUploadRemoval(ctx, u.ID, false)
	switch {
	case err != nil:
	case errors.Is(why, job.ErrSubmitted): // the place belongs to another job
		err = up.cfg.Uploads.Ledger.EndUploadRemoval(ctx, u.ID)
	default:
		err = up.remover.finishUpload(ctx, u)
	}
	if err != nil {
		up.log.Warn("Cannot remove the reservation of a failed upload; it stays until it expires", "job", u.ID, "error", err)
	}
}

// plan returns what is left to be sent, with URLs. stored is what is in storage already, nil
// for nothing.
func (up *uploads) plan(ctx context.Context, u job.Upload, signer storage.Signer, valid time.Duration, stored *storedInputs) (job.UploadPlan, error) {
	p := job.UploadPlan{Upload: u, AddressesExpire: up.env.clock.now().Add(valid), Targets: make([]job.UploadTarget, len(u.Files))}
	for i, f := range u.Files {
		name, target := path.Join(job.InputDir, f.Path), &p.Targets[i]
		var err error
		switch {
		case stored.has(f):
			target.Stored = true
		case f.PartSize == 0:
			target.Address, err = signer.PresignPut(ctx, u.ID, name, f.Size, valid)
		default:
			for n := 1; n <= f.Count() && err == nil; n++ {
				part := partOf(f, n)
				if stored.hasPart(f, part) {
					continue
				}
				part.Address, err = signer.PresignPart(ctx, u.ID, name, f.Parts, n, part.Size, valid)
				target.Parts = append(target.Parts, part)
			}
		}
		if err != nil {
			return job.UploadPlan{}, serviceError("storage", err)
		}
	}
	return p, nil
}

// own returns the upload if it belongs to the tenant; an empty tenant may see all.
func (up *uploads) own(ctx context.Context, id job.ID, tenant string) (job.Upload, error) {
	if up.cfg.Uploads.Ledger == nil || up.cfg.Store.CheckID(id) != nil {
		return job.Upload{}, job.ErrNoUpload
	}
	u, err := up.cfg.Uploads.Ledger.Upload(ctx, id)
	switch {
	case err != nil:
		return u, up.failed(id, err)
	case tenant != "" && u.Tenant != tenant:
		return u, job.ErrNoUpload
	case u.Removing:
		return u, job.ErrUploadOver
	}
	return u, nil
}

// UploadAddresses returns what is left to be sent for an upload and extends its expiry. An
// empty tenant may access all uploads. The error is job.ErrNoUpload, job.ErrUploadOver or
// *job.NoUploads, or has the class of the ledger or the storage.
func (up *uploads) UploadAddresses(ctx context.Context, id job.ID, tenant string, to job.UploadAddressing) (job.UploadPlan, error) {
	signer, err := up.signer(to.Host)
	if err != nil {
		return job.UploadPlan{}, err
	}
	u, err := up.own(ctx, id, tenant)
	if err != nil {
		return job.UploadPlan{}, err
	}
	if u, err = up.cfg.Uploads.Ledger.KeepUpload(ctx, u, nil, up.keep(to.Valid)); err != nil {
		return job.UploadPlan{}, up.failed(id, err)
	}
	if u, err = up.beginParts(ctx, u); err != nil {
		return job.UploadPlan{}, err
	}
	stored, err := up.stored(ctx, u)
	if err != nil {
		return job.UploadPlan{}, err
	}
	return up.plan(ctx, u, signer, to.Valid, stored)
}

// CompleteUpload joins the files that were sent in parts and checks that everything was
// sent. It may be called more than once; submitting the job does the same. The error is
// job.ErrNoUpload, job.ErrUploadOver or *job.UploadIncomplete, or has the class of the
// ledger or the storage.
func (up *uploads) CompleteUpload(ctx context.Context, id job.ID, tenant string) (job.UploadPlan, error) {
	u, err := up.own(ctx, id, tenant)
	if err != nil {
		return job.UploadPlan{}, err
	}
	if err := up.complete(ctx, u); err != nil {
		return job.UploadPlan{}, err
	}
	p := job.UploadPlan{Upload: u, Targets: make([]job.UploadTarget, len(u.Files))}
	for i := range p.Targets {
		p.Targets[i].Stored = true
	}
	return p, nil
}

// complete joins the files sent in parts, once all parts and all other files are in storage.
func (up *uploads) complete(ctx context.Context, u job.Upload) error {
	stored, err := up.stored(ctx, u)
	if err != nil {
		return err
	}
	for _, f := range u.Files {
		if err := stored.missing(f); err != nil {
			return err
		}
	}
	group, within := errgroup.WithContext(ctx)
	group.SetLimit(partsOpen)
	for _, f := range u.Files {
		if !stored.has(f) {
			group.Go(func() error { return up.join(within, u.ID, f, stored.parts[f.Path]) })
		}
	}
	return group.Wait()
}

// GiveUpUpload removes an upload at once. The error is job.ErrNoUpload, job.ErrUploading
// (the job is being submitted) or job.ErrRemovalContinues (it takes long), or has the class
// of the ledger or the storage; in the latter two cases the removal is retried in the
// background.
func (up *uploads) GiveUpUpload(ctx context.Context, id job.ID, tenant string) error {
	if _, err := up.own(ctx, id, tenant); err != nil && !errors.Is(err, job.ErrUploadOver) {
		return err
	}
	done, ok := up.remover.take(id)
	if !ok {
		return job.ErrUploading
	}
	defer done()
	// Complete the removal even if the client disconnects.
	ctx = context.WithoutCancel(ctx)
	u, err := up.cfg.Uploads.Ledger.BeginUploadRemoval(ctx, id, false)
	if err != nil {
		return up.failed(id, err)
	}
	ctx, cancel := context.WithTimeout(ctx, up.remover.cfg.Patience)
	defer cancel()
	err = up.remover.finishUpload(ctx, u)
	if err != nil && ctx.Err() != nil {
		return job.ErrRemovalContinues
	}
	if err != nil {
		return fmt.Errorf("remove the upload of job %s, which continues in the background: %w", id, err)
	}
	up.log.Info("Upload given up", "job", id)
	return nil
}

// take completes the upload of a job that is being submitted, and assigns the job to the
// upload's tenant. taken is false if there is no upload for the job. The error is
// *job.UnknownJob for another tenant's upload, or one of CompleteUpload's.
func (up *uploads) take(ctx context.Context, r *job.Request) (taken bool, err error) {
	if up.cfg.Uploads.Ledger == nil {
		return false, nil
	}
	u, err := up.cfg.Uploads.Ledger.Upload(ctx, r.ID)
	switch {
	case errors.Is(err, ledger.ErrNotFound):
		return false, nil
	case err != nil:
		return false, up.failed(r.ID, err)
	case r.Tenant != "" && u.Tenant != r.Tenant:
		return false, &job.UnknownJob{ID: string(r.ID)}
	case u.Removing:
		return false, job.ErrUploadOver
	}
	for _, f := range u.Files {
		if err := checkInputName(*r, f.Path); err != nil {
			return false, err
		}
	}
	if err := up.complete(ctx, u); err != nil {
		return false, err
	}
	r.Tenant = u.Tenant
	return true, nil
}

// checkNotReserved returns an error if the place of a job that brings its own inputs is reserved
// for an upload.
func (up *uploads) checkNotReserved(ctx context.Context, r job.Request) error {
	if up.cfg.Uploads.Ledger == nil {
		return nil
	}
	u, err := up.cfg.Uploads.Ledger.Upload(ctx, r.ID)
	switch {
	case errors.Is(err, ledger.ErrNotFound):
		return nil
	case err != nil:
		return up.failed(r.ID, err)
	case r.Tenant != "" && u.Tenant != r.Tenant:
		return job.ErrSubmitted
	case u.Removing:
		return job.ErrUploadOver
	}
	return job.ErrReserved
}
