package ledger

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
)

// ErrUploadOver says that a reservation has ended without a job: its time was over, or it
// was given up.
var ErrUploadOver = fmt.Errorf("the upload of this job's inputs was given up: %w", errdefs.ErrFailedPrecondition)

// Uploads is the part of a ledger that knows which places in storage are reserved for jobs
// that are not submitted yet, while their clients put the inputs there.
//
//	ReserveUpload ─► reserved ─ Create or CreateAll of the job ─► the job's record
//	                  │    ▲
//	                  │    └─ KeepUpload
//	                  ▼
//	       BeginUploadRemoval ─► removing ─ EndUploadRemoval ─► gone
//
// A job and its reservation are never there together: Create of a reserved id ends the
// reservation in the same transaction. Of a record with another tenant than the
// reservation's it answers ErrOthers, and once the removal has begun ErrUploadOver: a job
// that was acknowledged is never without the inputs that were put into its place.
//
// A reservation has a time, which is measured so that a clock that jumps forward ends none
// early. What is over, is removed by whoever removes files: BeginUploadRemoval, then the
// files, then EndUploadRemoval. What has begun and not ended is among DueUploads, so that
// it is finished after a crash; in a ledger that nodes share it is that of the node that
// began it, until the node's lease has ended.
//
// None of these changes records an event.
type Uploads interface {
	// ReserveUpload keeps u.ID for a job of u.Tenant with u.Files for some time, which is
	// more than 0, and returns the reservation as it is kept. It answers ErrExists where
	// the id has a record, whatever its state, or a reservation.
	ReserveUpload(ctx context.Context, u job.Upload, keep time.Duration) (job.Upload, error)

	// KeepUpload keeps the reservation u, which was returned before, for some time from now
	// on, if that is longer than it is kept already, and returns it. Files that are not nil
	// take the place of its own, unless one of those has Parts: of several who begin the
	// uploads of the parts at the same time, the first decides. It answers ErrNotFound, also
	// where the id has been reserved anew, or ErrUploadOver once its removal has begun.
	KeepUpload(ctx context.Context, u job.Upload, files []job.UploadFile, keep time.Duration) (job.Upload, error)

	// Upload returns a reservation, or ErrNotFound.
	Upload(ctx context.Context, id job.ID) (job.Upload, error)

	// DueUploads returns up to limit reservations that are to be removed now: first those
	// whose removal has begun. next is how long until another one is; 0 for none.
	DueUploads(ctx context.Context, limit int) (due []job.Upload, next time.Duration, err error)

	// BeginUploadRemoval begins the removal of a reservation; with due only where its time
	// is over. It answers ErrNotFound, also for one whose time is not over, and ErrRemoving
	// where another node has begun it. Beginning again is allowed.
	BeginUploadRemoval(ctx context.Context, id job.ID, due bool) (job.Upload, error)

	// EndUploadRemoval says that nothing is left in storage: the id is free again. Where no
	// removal has begun, or another node has, it changes nothing.
	EndUploadRemoval(ctx context.Context, id job.ID) error
}
