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
//
// # Working directories
//
// A runner is not trusted, has write access to its job's working directory, and
// may still be using it. Stage and Collect get the directory as an os.Root: they
// read, write and remove only through it, follow no link while they write, and
// open nothing that could block them.
//
// Collect uploads regular files. A symbolic link that leads to a regular file
// or a directory within outputs/ is stored as what it points to, under the
// link's name. One that leads anywhere else or nowhere, that is absolute, or that
// leads back to a directory it lies in, and sockets, pipes and devices, are left
// out and named in the warnings; so is what the runner replaces by one of these
// while it is read. A file that goes away meanwhile is left out; one that changes
// while it is sent may be an error of class errdefs.ErrUnavailable.
//
// Outputs that cannot be stored are the job's failure: a name that storage does not
// allow, a file without read permission, a file larger than MaxFile or than the
// storage's whole disk, and an outputs that is not a directory are errors of class
// errdefs.ErrInvalidArgument without ErrWorkDir.
//
// # Errors
//
// Every implementation retries what may succeed on another try, with backoff and
// within the context; the errors that it returns have one of these classes:
//
//	errdefs.ErrNotFound          the place or the file is not there
//	errdefs.ErrAlreadyExists     the place is taken
//	errdefs.ErrPermissionDenied  the credentials are refused
//	errdefs.ErrInvalidArgument   the id or name can never work here
//	errdefs.ErrOutOfRange        the requested range lies outside the file
//	errdefs.ErrResourceExhausted no space, here or in storage
//	errdefs.ErrUnavailable       not reachable, or overloaded, after all retries
//	errdefs.ErrDataLoss          a stored file is damaged
//	context errors               unchanged
//
// With ErrWorkDir the class is the directory's: errdefs.ErrResourceExhausted when
// space, quota, inodes or file descriptors are used up, errdefs.ErrPermissionDenied
// when this process may not write there, errdefs.ErrInvalidArgument when the disk
// is too small, and errdefs.ErrUnavailable for the rest (read-only, input/output
// errors, a directory that is gone or has something else in its place).
package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
)

// Errors that callers match.
var (
	ErrExists   = fmt.Errorf("the job's place in storage is taken: %w", errdefs.ErrAlreadyExists)
	ErrNotFound = fmt.Errorf("not in storage: %w", errdefs.ErrNotFound)
	// ErrWorkDir marks failures of the working directory: they are not storage's.
	ErrWorkDir = errors.New("the job's working directory")
	ErrBadName = fmt.Errorf("file name not allowed: %w", errdefs.ErrInvalidArgument)
	// ErrFenced says that a later attempt has the job's place.
	ErrFenced = fmt.Errorf("a later attempt at the job has removed this one's outputs: %w", errdefs.ErrAborted)
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

// Collected is what Collect stored.
type Collected struct {
	Files int
	Bytes int64
	// Warnings name what was left out, and why, in words for clients; at most
	// MaxWarnings of them, the last of which counts the rest.
	Warnings []string
}

// MaxWarnings bounds Collected.Warnings.
const MaxWarnings = 20

// MaxFile bounds a stored file, in bytes, as S3 does.
const MaxFile = 5 << 40

// Options say how Stage works.
type Options struct {
	// Admit is asked before anything is copied whether there is room for so many
	// bytes; an error it returns is Stage's. Nil admits all.
	Admit func(bytes int64) error
	// After are jobs whose outputs are staged as well, below inputs/ID/, which is made also
	// for one without outputs. One of which storage has nothing is ErrNotFound where jobs
	// have buckets of their own. An input that is in the way is ErrBadName.
	After []job.ID
	// Owned says that what is written belongs to UID and GID instead of to this
	// process's user.
	Owned    bool
	UID, GID int
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

	// Reserve makes the job's place with status as its job_status.json and nothing
	// else. When the place is there it answers ErrExists and changes nothing, but
	// where an identical Reserve was cut short.
	Reserve(ctx context.Context, id job.ID, status job.Status) error

	// Stage copies inputs/ to dir's inputs/, several files at a time, and creates
	// dir's inputs/ and outputs/ where they are missing. Files of the right size
	// and ETag already in dir (from a Stage that was cut short) may be kept.
	// One listing covers the whole place, so that Staged also says whether an
	// earlier run left outputs. A disk that could not hold the inputs even when
	// empty is an error of class errdefs.ErrInvalidArgument; one that is full now,
	// errdefs.ErrResourceExhausted; both wrap ErrWorkDir, as does every other
	// failure of the directory itself, so that callers can tell a broken disk from
	// storage that is away.
	Stage(ctx context.Context, id job.ID, dir *os.Root, how Options) (Staged, error)

	// Collect copies dir's outputs/ to outputs/, several files at a time. With
	// replace it also removes whatever else lies in outputs/, so that an
	// earlier run's files do not mix with this one's. It may be called again
	// after it failed or was cut short.
	Collect(ctx context.Context, id job.ID, dir *os.Root, replace bool) (Collected, error)

	// Open opens one file, whole (nil range) or in part.
	Open(ctx context.Context, id job.ID, name string, part *job.Range) (*job.File, error)

	// Put writes one file of the given size; a reader that yields another
	// number of bytes is an error and leaves what was there.
	Put(ctx context.Context, id job.ID, name string, r io.Reader, size int64) error

	// List yields the files whose name begins with prefix, in the order of their names,
	// and holds one page of them at a time. It yields one error at most, as the last
	// thing.
	List(ctx context.Context, id job.ID, prefix string) iter.Seq2[Info, error]

	// Status and SetStatus read and write job_status.json. One that is no status,
	// or larger than a status can be, is an error of class errdefs.ErrDataLoss.
	// Whoever reads a status gets what was set last. Where the Store is a StatusSyncer, a
	// loss of power may take that back until it is synced.
	Status(ctx context.Context, id job.ID) (job.Status, error)
	SetStatus(ctx context.Context, id job.ID, status job.Status) error

	// Jobs calls visit with the id of every place there is, in no order that callers
	// may count on, and returns the first error that visit returns. A place that is
	// made or removed meanwhile may be left out. Names that no job can have, as other
	// people's buckets may, are left out.
	Jobs(ctx context.Context, visit func(job.ID) error) error

	// Remove removes the job's place with all it holds, job_status.json last: where
	// Remove fails, what is left is still a job's, and can be removed as one. Removing
	// what is not there is nil.
	Remove(ctx context.Context, id job.ID) error

	// Ping answers nil when storage can be reached with these credentials. It
	// tries once.
	Ping(ctx context.Context) error
}

// StatusSyncer is a Store that does not wait for the disk with each status. A status says
// what the ledger says, so that one that is lost with the machine's power can be written
// again: by whoever remembers which were not synced.
type StatusSyncer interface {
	// SyncStatuses makes durable what SetStatus has set before it is called. After an
	// error it never succeeds again: statuses set since the last success may be lost.
	SyncStatuses(ctx context.Context) error
}

// Presigner makes addresses by which whoever has one fetches a file without credentials,
// from storage itself, as long as it is valid: at most seven days, and while the keys
// are that it was made with. It does not look whether the file is there.
type Presigner interface {
	Presign(ctx context.Context, id job.ID, name string, valid time.Duration) (address string, err error)
}

// Signer is a Presigner that also makes addresses by which whoever has one puts one file
// into storage, or one part of one: exactly so many bytes, in the body of a PUT. The job's
// place has to be there. It sends no request.
type Signer interface {
	Presigner
	// PresignPut is for a whole file, of at most MaxPut bytes.
	PresignPut(ctx context.Context, id job.ID, name string, size int64, valid time.Duration) (address string, err error)
	// PresignPart is for a part, from 1, of a file whose upload Parts.BeginParts began.
	PresignPart(ctx context.Context, id job.ID, name, upload string, part int, size int64, valid time.Duration) (address string, err error)
	// Origin is what all its addresses begin with, up to the first slash after the host, with
	// "*" for a bucket's name in the host.
	Origin() string
}

// Bounds of S3.
const (
	// MaxPut bounds what is stored by one request, in bytes.
	MaxPut = 5 << 30
	// MinPart bounds a part that is not a file's last one from below, in bytes.
	MinPart = 5 << 20
	// MaxParts is how many parts a file has at most.
	MaxParts = 10_000
)

// Parts is a Store with files that clients put there in parts, each by an address of its
// own. What was not joined is no file: it is not listed, and not removed with a place
// whose bucket other jobs share.
type Parts interface {
	// BeginParts begins the upload of one file of a place that is there, and returns what
	// storage calls it.
	BeginParts(ctx context.Context, id job.ID, name string) (upload string, err error)
	// StoredParts returns the parts that are there, by their numbers. It answers ErrNotFound
	// when the upload was joined or dropped.
	StoredParts(ctx context.Context, id job.ID, name, upload string) ([]Part, error)
	// JoinParts makes the file of parts that StoredParts returned, in their order. It
	// answers ErrNotFound when the upload was joined or dropped, and an error of class
	// errdefs.ErrInvalidArgument where a part is another one by now.
	JoinParts(ctx context.Context, id job.ID, name, upload string, parts []Part) error
	// DropParts ends the upload and removes its parts. Dropping what is not there is nil.
	DropParts(ctx context.Context, id job.ID, name, upload string) error
}

// Part is a stored part of a file.
type Part struct {
	Number int // from 1
	Size   int64
	ETag   string
}

// Fencer is a Store that several machines share, of which one may go on with an
// attempt at a job that it has lost, unaware of it, however late. Its attempts store
// their outputs apart, each in a place of its own that clients do not look at, and
// promote them to outputs/.
//
// The caller numbers the attempts that may be told apart, of all runs, and promotes
// only after it has seen, when CollectApart had returned, that the job is still its
// own. An attempt that is not the job's first fences the others before it collects.
// Then outputs/ has the outputs of the last attempt that was promoted, and no file of
// another, but where replace removes one: S3 has no condition for that which all
// servers know. A caller that stands still for longer than a whole attempt between its
// last copy and a removal may remove what the next one has stored under that name.
type Fencer interface {
	// CollectApart is Collect to the place of the attempt.
	CollectApart(ctx context.Context, id job.ID, attempt int64, dir *os.Root) (Apart, error)
	// Fence removes what other attempts have stored apart: from then on their Promote
	// fails, and what it had not copied before is never copied.
	Fence(ctx context.Context, id job.ID, attempt int64) error
}

// Apart are outputs that are stored apart.
type Apart interface {
	Collected() Collected
	// Promote copies the outputs within storage to outputs/; with replace it then
	// removes whatever else lies there. It may be called again after it failed. The
	// error is ErrFenced where another attempt's Fence has removed them.
	Promote(ctx context.Context, replace bool) error
	// Discard removes what is stored apart.
	Discard(ctx context.Context) error
}
