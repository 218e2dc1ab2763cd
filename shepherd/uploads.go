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

// uploads keeps reservations: places of jobs whose inputs clients put into storage by
// themselves, before they submit the job.
type uploads struct {
	cfg       *Config
	env       *services
	log       *slog.Logger
	admission *admission
	inputs    *inputStore
	reader    *reader
	remover   *remover
}

// Uploads is how clients put inputs into storage by themselves, before they submit the job.
type Uploads struct {
	// Ledger knows what is reserved; nil where clients cannot.
	Ledger ledger.Uploads
	// Signer makes addresses for a client that reaches the daemon by the given host, empty
	// for one on the same machine. Its error is a *job.NoUploads that says what to configure.
	Signer func(host string) (storage.Signer, error)
	// Keep is how long what nobody submits is kept since its addresses were last asked for;
	// 0 takes DefaultKeepUploads. It is kept for at least as long as they are valid.
	Keep time.Duration
	// MaxSize bounds what the files of one upload take, in bytes; 0 takes DefaultMaxUpload.
	MaxSize int64
}

// Defaults of Uploads.
const (
	DefaultKeepUploads = 24 * time.Hour
	DefaultMaxUpload   = 1 << 40
)

// How files are divided: one up to wholeFile is sent by one request, a larger one in parts,
// each of which can be sent again by itself. The parts grow with the upload, so that there
// are not more than about mostParts of them.
const (
	wholeFile    = 64 << 20
	smallestPart = 32 << 20
	mostParts    = 5000
	partsOpen    = 8 // requests to storage about parts at a time
)

// roomy is a Store that knows whether its disk has room.
type roomy interface{ Room(bytes int64) error }

// BeginUpload reserves a place for a job that is not submitted yet and says where its inputs
// go. The error is *job.Invalid, *job.NoUploads, *job.QueueFull, job.ErrSubmitted (the id is
// in use), job.ErrRemoving, job.ErrUploading, job.ErrDraining, or has the class its part
// gave it.
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
		return job.UploadPlan{}, away("ledger", fmt.Errorf("reserve the place of job %s: %w", r.ID, err))
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

// signer makes addresses for a client.
func (up *uploads) signer(host string) (storage.Signer, error) {
	if up.cfg.Uploads.Ledger == nil || up.cfg.Uploads.Signer == nil {
		return nil, &job.NoUploads{Problem: "This shepherd takes no uploads straight to storage"}
	}
	return up.cfg.Uploads.Signer(host)
}

// UploadOrigin is what the addresses of uploads begin with, for a client that reaches the
// daemon by the given host; empty where there are none.
func (up *uploads) UploadOrigin(host string) string {
	signer, err := up.signer(host)
	if err != nil {
		return ""
	}
	return signer.Origin()
}

// keep is how long a reservation is kept whose addresses are valid for a time.
func (up *uploads) keep(valid time.Duration) time.Duration {
	return max(cmp.Or(up.cfg.Uploads.Keep, DefaultKeepUploads), valid)
}

// check checks what can be checked before anything is reserved, and divides the files.
func (up *uploads) check(ctx context.Context, r job.UploadRequest) ([]job.UploadFile, error) {
	if err := up.admission.admitting(); err != nil && !up.admission.admitsForOthers(ctx) {
		return nil, err
	}
	if err := up.cfg.Store.CheckID(r.ID); err != nil {
		return nil, &job.Invalid{Field: "id", Problem: err.Error()}
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
			return nil, away("storage", fmt.Errorf("take an upload of %d bytes: %w", total, err))
		}
	}
	_, inParts := up.cfg.Store.(storage.Parts)
	return divide(r.Files, total, inParts)
}

// inFiles is an error about the name of an input as one about the files of an upload.
func inFiles(err error) error {
	var invalid *job.Invalid
	if errors.As(err, &invalid) {
		return &job.Invalid{Field: "files", Problem: invalid.Problem}
	}
	return err
}

// failed is what a client is told of the ledger's error about a reservation.
func (up *uploads) failed(id job.ID, err error) error {
	switch {
	case errors.Is(err, ledger.ErrNotFound):
		return job.ErrNoUpload
	case errors.Is(err, ledger.ErrUploadOver), errors.Is(err, ledger.ErrRemoving):
		return job.ErrUploadOver
	}
	return away("ledger", fmt.Errorf("look for the upload of job %s: %w", id, err))
}

// undo takes a reservation back that came to nothing for the given reason. What it
// cannot remove is removed later.
func (up *uploads) undo(ctx context.Context, u job.Upload, why error) {
	if errors.Is(why, job.ErrNoUpload) || errors.Is(why, job.ErrUploadOver) {
		return // it was given up meanwhile, and the id may be reserved anew
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abandonTime)
	defer cancel()
	_, err := up.cfg.Uploads.Ledger.BeginUploadRemoval(ctx, u.ID, false)
	switch {
	case err != nil:
	case errors.Is(why, job.ErrSubmitted): // the place is another job's
		err = up.cfg.Uploads.Ledger.EndUploadRemoval(ctx, u.ID)
	default:
		err = up.remover.finishUpload(ctx, u)
	}
	if err != nil {
		up.log.Warn("What an upload that could not begin has reserved stays until it expires", "job", u.ID, "error", err)
	}
}

// plan says what is left to be done, with addresses. Stored is what is there, nil for
// nothing.
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
			return job.UploadPlan{}, away("storage", err)
		}
	}
	return p, nil
}

// own is a reservation of a tenant, or of anyone where that is empty.
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

// UploadAddresses says what is left to be done for an upload of a tenant, or of anyone where
// that is empty, and keeps it for some time more. The error is job.ErrNoUpload,
// job.ErrUploadOver or *job.NoUploads, or has the class its part gave it.
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

// CompleteUpload makes the files of an upload that were sent in parts, and sees that all are
// there. It may be called again, and what is submitted is completed by that. The error is
// job.ErrNoUpload, job.ErrUploadOver or *job.UploadIncomplete, or has the class its part gave
// it.
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

// complete joins what was sent in parts, once all of them and all other files are there.
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

// GiveUpUpload removes an upload at once. The error is job.ErrNoUpload, job.ErrUploading (it
// is being submitted) or job.ErrRemovalContinues (it takes long), or has the class its part gave it; then the removal goes on by itself.
func (up *uploads) GiveUpUpload(ctx context.Context, id job.ID, tenant string) error {
	if _, err := up.own(ctx, id, tenant); err != nil && !errors.Is(err, job.ErrUploadOver) {
		return err
	}
	done, ok := up.remover.take(id)
	if !ok {
		return job.ErrUploading
	}
	defer done()
	// What has begun is better ended now, whether the client is still there or not.
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
		return fmt.Errorf("remove the upload of job %s, which goes on by itself: %w", id, err)
	}
	up.log.Info("Upload given up", "job", id)
	return nil
}

// take completes the upload of a job that is submitted, where its inputs came by one,
// and makes the job that of the upload's tenant. taken is false where they did not. The error
// is *job.UnknownJob where the upload is another tenant's, and else one of CompleteUpload's.
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
		if err := notOfOthers(*r, f.Path); err != nil {
			return false, err
		}
	}
	if err := up.complete(ctx, u); err != nil {
		return false, err
	}
	r.Tenant = u.Tenant
	return true, nil
}

// notReserved returns an error where the place of a job that brings its inputs is reserved
// for an upload.
func (up *uploads) notReserved(ctx context.Context, r job.Request) error {
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
