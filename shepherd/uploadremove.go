package shepherd

import (
	"context"
	"errors"
	"fmt"
	"path"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/storage"
)

// removeDueUploads removes expired uploads and returns the time until the next one expires;
// 0 if there is none.
func (r *remover) removeDueUploads(ctx context.Context) (next time.Duration, err error) {
	if r.uploads == nil {
		return 0, nil
	}
	due, next, err := r.uploads.DueUploads(ctx, removalBatch)
	if err != nil {
		return 0, err
	}
	for _, u := range due {
		ok, err := r.removeUpload(ctx, u.ID)
		if err != nil {
			return 0, fmt.Errorf("remove the upload of job %s: %w", u.ID, err)
		}
		if ok {
			r.log.Info("Removed an upload that was not submitted", "job", u.ID, "expired", u.Expires)
		} else {
			next = r.cfg.Interval
		}
	}
	return next, nil
}

// removeUpload removes an expired upload. ok is false if it is being submitted or removed by
// someone else.
func (r *remover) removeUpload(ctx context.Context, id job.ID) (ok bool, err error) {
	done, ok := r.take(id)
	if !ok {
		return false, nil
	}
	defer done()
	u, err := r.uploads.BeginUploadRemoval(ctx, id, true)
	if errors.Is(err, ledger.ErrNotFound) || errors.Is(err, ledger.ErrRemoving) { // submitted or renewed since it was listed; or another node removes it
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, r.finishUpload(ctx, u)
}

// finishUpload completes a removal that has begun.
func (r *remover) finishUpload(ctx context.Context, u job.Upload) error {
	if store, ok := r.store.(storage.Parts); ok {
		for _, f := range u.Files {
			if f.Parts == "" {
				continue
			}
			if err := store.DropParts(ctx, u.ID, path.Join(job.InputDir, f.Path), f.Parts); err != nil {
				return serviceError("storage", err)
			}
		}
	}
	if err := r.store.Remove(ctx, u.ID); err != nil {
		return serviceError("storage", err)
	}
	return r.uploads.EndUploadRemoval(ctx, u.ID)
}
