// Package runtime defines the contract of a sheep: one supervised runner with one model
// loaded. A sheep type (bare, docker, …) is a Driver, which makes sheep.
//
// # The life of a sheep
//
//	NewSheep ─► [Recover] ─► Load ─► Run ─► Load ─► Run ─► … ─► Close
//
// NewSheep only reads configuration. Recover, if the type implements it, is called once,
// before the first Load: it adopts a runner that outlived an earlier daemon, or removes
// what is left of one. Load makes a model ready to start; Run starts a runner with it and
// blocks as long as the runner is up; ending Run's context stops the runner. To load
// another model the caller ends Run, waits for it, and calls Load and Run again. Only one
// Load or Run may be under way at a time; Conn may be used from other goroutines meanwhile.
//
// When Run has returned, nothing is left of the runner: no process that it forked, no
// container, no open port, no mount. The exception is Detach, which ends Run without
// stopping the runner, so that a later daemon can Recover it.
package runtime

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/iterait/shepherd/internal/logtext"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
)

// Sheep is one supervised runner. See the package comment.
type Sheep interface {
	// Load makes the model ready to start. It is idempotent and may be slow (it
	// pulls and unpacks images); it reports progress. A model that can never be
	// loaded is a *LoadError.
	Load(ctx context.Context, m job.Model, observe Observer) error

	// Run starts a runner with the model loaded last, or attaches to the one that
	// Recover found, and blocks until it has ended and nothing of it is left. A runner
	// that it starts gets ctx's trace (see WithTrace). Ending ctx stops the runner: TERM,
	// then KILL after the grace. The error is never nil: an *Exit says how the runner
	// ended; a *LoadError why it could not be started; ErrDetached is returned after
	// Detach.
	Run(ctx context.Context, observe Observer) error

	// Conn returns the connection to the runner of the present Run. It is valid from
	// the first Starting event that Run reports (also when it attaches) until Run
	// returns; then its methods return messenger.ErrClosed. Each Run has a new one.
	Conn() messenger.Conn

	// Detach makes the present Run return ErrDetached and leaves the runner up.
	// Without a Run, or if the type cannot leave a runner up, it does nothing.
	Detach()

	// Close releases the resources of NewSheep and Recover. It does not stop a
	// detached runner. It may be called twice.
	Close(ctx context.Context) error
}

// Recoverer is a Sheep whose runner can outlive the daemon.
type Recoverer interface {
	// Recover searches for what an earlier daemon has left of this sheep. If there is
	// nothing to adopt it removes what it finds and returns nil.
	Recover(ctx context.Context) (*Recovered, error)
}

// Owner is a Sheep that knows which user its runners run as.
type Owner interface {
	// Owner returns the numeric user and group that a runner of model m runs as.
	// What is in a job's working directory must belong to them for the runner to
	// write its outputs.
	//
	// It fetches nothing: call it after Load of m has returned. If m is not on this
	// machine the error is of class errdefs.ErrNotFound; with ErrUnavailable a later
	// call may succeed.
	Owner(ctx context.Context, m job.Model) (uid, gid int, err error)
}

// Recovered is the result of Recover.
type Recovered struct {
	// Model is the model that the runner has loaded.
	Model job.Model
	// Running is true if the runner is up: the next Run attaches to it. Otherwise no
	// process of it is left.
	Running bool
	// Job is the job that was sent to the runner and is not answered, if any. With
	// Running its answer will be received by Conn; otherwise there will be none, and
	// Exit says why.
	Job job.ID
	// Answers are the unacknowledged answers, oldest first. With Running they are also
	// received and acknowledged by Conn; otherwise they need no acknowledgement, and
	// Forget removes them.
	Answers []messenger.Answer
	// Exit says how the runner ended, if it is not running.
	Exit *Exit
	// Forget removes the state of a runner that is not running, after the caller has
	// stored the Answers. It is nil with Running.
	Forget func() error
}

// Driver is a sheep type. NewSheep validates the sheep's configuration, which decode
// decodes strictly into the driver's own struct; it starts and changes nothing. The error
// is decode's, or joins *FieldError values.
type Driver interface {
	NewSheep(name string, decode func(any) error) (Sheep, error)
}

// Stage is a stage of Load or Run.
type Stage string

// The stages.
const (
	Pulling   Stage = "pulling"   // an image is being fetched
	Unpacking Stage = "unpacking" // an image is being unpacked
	Starting  Stage = "starting"  // the runner's process exists
	Connected Stage = "connected" // the runner's socket has answered: it accepts jobs
)

// Event reports the progress of Load or Run.
type Event struct {
	Stage Stage
	PID   int    // with Starting
	Text  string // for people
	// With Pulling, Done of Total bytes are fetched, at Rate bytes a second; Total is 0
	// while it is not known.
	Done, Total int64
	Rate        float64
}

// Observer receives events. It must return quickly, and must not be nil; Discard ignores
// events.
type Observer func(Event)

// Discard ignores events.
func Discard(Event) {}

// ErrDetached is Run's error after Detach.
var ErrDetached = errors.New("detached from the runner, which stays up")

// ErrSuperseded is Run's error when another daemon has taken over the runner together with
// its job. It wraps ErrDetached. Run starts no other runner until that one has ended.
var ErrSuperseded = fmt.Errorf("%w with another daemon", ErrDetached)

// Exit describes how a runner ended.
type Exit struct {
	// Code is the exit code, or -1 if a signal ended it or the code is not known.
	Code int
	// Signal is the name of the signal that ended it ("SIGKILL"), or empty.
	Signal string
	// OutOfMemory is true if the kernel killed it for lack of memory.
	OutOfMemory bool
	// Stopped is true if shepherd stopped it.
	Stopped bool
	// Lost is true if the runner ended because its shim or containerd did; its job may
	// be tried again.
	Lost bool
	// Detail is a further description of the cause, or empty.
	Detail string
	// LastLog is the end of the runner's log: a few lines without control sequences, if
	// possible those that say why it ended.
	LastLog string
}

// Error describes the exit in one line.
func (e *Exit) Error() string {
	var parts []string
	switch {
	case e.OutOfMemory:
		parts = append(parts, "out of memory")
	case e.Signal != "":
		parts = append(parts, "killed by "+e.Signal)
	case e.Code >= 0:
		parts = append(parts, fmt.Sprintf("exit code %d", e.Code))
	}
	if e.Detail != "" {
		parts = append(parts, e.Detail)
	}
	if len(parts) == 0 {
		parts = append(parts, "cause unknown")
	}
	if cause := logtext.Cause(e.LastLog); cause != "" {
		parts = append(parts, "last log line: "+cause)
	}
	return strings.Join(parts, "; ")
}

// LoadError is the error when a model cannot be loaded or started. Clients see its text.
// Class is an errdefs class; with ErrUnavailable a later attempt may succeed.
type LoadError struct {
	Message string
	Class   error
}

func (e *LoadError) Error() string { return e.Message }
func (e *LoadError) Unwrap() error { return e.Class }

// FieldError names a configuration key, with dots, relative to the sheep ("env.PATH"), and
// says what is wrong with its value.
type FieldError struct{ Field, Problem string }

func (e *FieldError) Error() string { return e.Field + ": " + e.Problem }
