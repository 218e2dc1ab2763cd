// Package storage keeps the files of jobs where clients put and fetch them.
//
// # Terms
//
// A job has a place in storage: a bucket of its own, or a prefix in a shared
// one. In it lie inputs/…, outputs/… and job_status.json. A file is named by
// its path below the place, with slashes: "inputs/input". On disk a job has a
// working directory with the same layout.
//
// # Names
//
// A name that could leave the job's directory is never written to disk: an
// empty, "." or ".." element, an absolute name, a NUL, a name that goes
// through a symbolic link. Stage fails with ErrBadName, naming the object.
// Collect uploads regular files only: what a symbolic link points to is never
// read; a link, device, socket or pipe in outputs/ makes it fail with
// ErrBadName.
//
// # Errors
//
// Every implementation tries again by itself, with backoff and within the
// context, what may succeed on another try; what it returns is of one class:
//
//	errdefs.ErrNotFound          the place or the file is not there
//	errdefs.ErrAlreadyExists     the place is taken
//	errdefs.ErrPermissionDenied  the credentials are refused
//	errdefs.ErrInvalidArgument   the id or name can never work here
//	errdefs.ErrOutOfRange        the asked range lies outside the file
//	errdefs.ErrResourceExhausted no space, here or there
//	errdefs.ErrUnavailable       not reachable, or overloaded, in spite of trying
//	context errors               as they are
package storage

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
)

// Errors that callers match.
var (
	ErrExists   = fmt.Errorf("the job's place in storage is taken: %w", errdefs.ErrAlreadyExists)
	ErrNotFound = fmt.Errorf("not in storage: %w", errdefs.ErrNotFound)
	ErrBadName  = fmt.Errorf("file name not allowed: %w", errdefs.ErrInvalidArgument)
)

// Info describes a stored file.
type Info struct {
	Name     string // below the job's place
	Size     int64
	ETag     string
	Modified time.Time
}

// Staged is what Stage found.
type Staged struct {
	Files int   // how many inputs there are
	Bytes int64 // what they take
	// Outputs says that outputs/ is not empty: Collect has to replace it.
	Outputs bool
}

// Store keeps jobs' files. It is safe for any number of goroutines. No method
// holds a whole file in memory.
type Store interface {
	// CheckID answers nil when the id can name a place here, else an error of
	// class errdefs.ErrInvalidArgument that says what is wrong with it.
	CheckID(id job.ID) error

	// Exists reports whether the job has a place. With a prefix per job, a place
	// exists when any file lies in it.
	Exists(ctx context.Context, id job.ID) (bool, error)

	// Init makes the job's place with payload as inputs/input. When the place
	// is there it answers ErrExists and changes nothing; one exception: a place
	// that holds exactly this input and no job_status.json is what an Init cut
	// short left behind, and Init answers nil.
	Init(ctx context.Context, id job.ID, payload []byte) error

	// Stage copies inputs/ to dir/inputs/, several files at a time, and creates
	// dir/inputs and dir/outputs. Files of the right size and ETag already in
	// dir (from a Stage that was cut short) may be kept.
	// A limit, in bytes, that the inputs exceed makes it fail with class
	// errdefs.ErrResourceExhausted before anything is copied; 0 is no limit.
	// One listing covers the whole place, so that Staged also says whether an
	// earlier run left outputs.
	Stage(ctx context.Context, id job.ID, dir string, limit int64) (Staged, error)

	// Collect copies dir/outputs/ to outputs/, several files at a time. With
	// replace it also removes whatever else lies in outputs/, so that an
	// earlier run's files do not mix with this one's. It may be called again
	// after it failed or was cut short.
	Collect(ctx context.Context, id job.ID, dir string, replace bool) error

	// Open opens one file, whole (nil range) or in part.
	Open(ctx context.Context, id job.ID, name string, part *job.Range) (*job.File, error)

	// Put writes one file of the given size; a reader that yields another
	// number of bytes is an error and leaves what was there.
	Put(ctx context.Context, id job.ID, name string, r io.Reader, size int64) error

	// List returns the files whose name begins with prefix.
	List(ctx context.Context, id job.ID, prefix string) ([]Info, error)

	// Status and SetStatus read and write job_status.json.
	Status(ctx context.Context, id job.ID) (job.Status, error)
	SetStatus(ctx context.Context, id job.ID, status job.Status) error

	// Remove removes the job's place with all it holds. Removing what is not
	// there is nil.
	Remove(ctx context.Context, id job.ID) error

	// Ping answers nil when storage can be reached with these credentials. It
	// tries once.
	Ping(ctx context.Context) error
}
