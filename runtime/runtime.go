// Package runtime is what a sheep is: one supervised runner with one model
// loaded. A sheep type (bare, docker, …) is a plugin that makes sheep.
//
// # The life of a sheep
//
//	NewSheep ─► [Recover] ─► Load ─► Run ─► Load ─► Run ─► … ─► Close
//
// NewSheep only reads configuration. Recover, where the type has it, comes
// once, before the first Load: it adopts a runner that outlived an earlier
// daemon, or removes what is left of one. Load makes a model ready to start; Run
// starts a runner with it and blocks for as long as the runner lives; ending
// Run's context stops the runner. To load another model the caller ends Run,
// waits for it, and calls Load and Run again. One Load or Run is under way at a
// time; Conn may be used from other goroutines meanwhile.
//
// When Run has returned, nothing is left of the runner: no process it forked, no
// container, no open port, no mount. The exception is a daemon that leaves its
// sheep up on purpose: Detach ends Run without stopping the runner, for a later
// Recover.
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

	// Run starts a runner with the model loaded last, or attaches to the one
	// that Recover found, and blocks until it has ended and nothing of it is
	// left. A runner that it starts is told of ctx's trace (see WithTrace). Ending ctx stops it: TERM, grace, KILL. The error is never nil: an
	// *Exit says how the runner ended; a *LoadError says that it could not be
	// started; ErrDetached that Detach was called.
	Run(ctx context.Context, observe Observer) error

	// Conn is the connection to the runner of the present Run. It is valid from
	// the first Starting event that Run reports (it reports one when it attaches,
	// too) until Run returns; then its methods answer messenger.ErrClosed. Each
	// Run has a new one.
	Conn() messenger.Conn

	// Detach makes the present Run return ErrDetached and leaves the runner up.
	// Without a Run, or where the type cannot leave a runner up, it does
	// nothing.
	Detach()

	// Close releases what NewSheep and Recover took. It does not stop a detached
	// runner. It may be called twice.
	Close(ctx context.Context) error
}

// Recoverer is a Sheep whose runner can outlive the daemon.
type Recoverer interface {
	// Recover looks for what an earlier daemon left of this sheep. When there
	// is nothing to adopt it removes what it finds and returns nil.
	Recover(ctx context.Context) (*Recovered, error)
}

// Owner is a Sheep that knows which user its runners run as.
type Owner interface {
	// Owner returns the numeric user and group that a runner of model m runs as.
	// What is in a job's working directory must belong to them for the runner to
	// write its outputs.
	//
	// It fetches nothing: call it after Load of m has returned. While m is not on
	// this machine the error is of class errdefs.ErrNotFound; ErrUnavailable says
	// that calling again later may help.
	Owner(ctx context.Context, m job.Model) (uid, gid int, err error)
}

// Recovered is what Recover found.
type Recovered struct {
	// Model is what the runner has loaded.
	Model job.Model
	// Running says that the runner is alive: the next Run attaches to it.
	// Otherwise no process of it is left.
	Running bool
	// Job is the job that was given to the runner and is not answered, if any.
	// With Running, its answer comes by Conn; without, Exit says why there will
	// be none.
	Job job.ID
	// Answers are those not acknowledged yet, oldest first. With Running, they
	// come by Conn as well, and are acknowledged there; without, there is nobody
	// left to acknowledge them to, and what kept them is removed by Forget.
	Answers []messenger.Answer
	// Exit says how the runner ended, where it is not running.
	Exit *Exit
	// Forget removes the last traces of a runner that is not running, once its
	// Answers are safe. It is nil with Running.
	Forget func() error
}

// Driver is a sheep type. NewSheep checks the sheep's configuration, which
// decode reads strictly into the driver's own struct; it starts nothing and
// changes nothing. What is wrong with the configuration it returns as
// *FieldError values, joined, or as decode returned it.
type Driver interface {
	NewSheep(name string, decode func(any) error) (Sheep, error)
}

// Stage says how far a Load or Run has come.
type Stage string

// The stages a sheep reports.
const (
	Pulling   Stage = "pulling"   // an image is fetched
	Unpacking Stage = "unpacking" // an image is unpacked
	Starting  Stage = "starting"  // the runner's process exists
	Connected Stage = "connected" // the runner's socket answered: it takes jobs
)

// Event is something that happened to a sheep that its watchers may want to
// show.
type Event struct {
	Stage Stage
	PID   int    // with Starting
	Text  string // for people
	// With Pulling, Done of Total bytes are here, and Rate come in a second; Total is 0
	// while it is not known.
	Done, Total int64
	Rate        float64
}

// Observer is told events. It returns quickly and never nil-checks: Discard is
// the one that ignores them.
type Observer func(Event)

// Discard ignores events.
func Discard(Event) {}

// ErrDetached is what Run returns after Detach.
var ErrDetached = errors.New("detached from the runner, which goes on")

// ErrSuperseded is what Run returns when another daemon has taken the runner over,
// with the job it has: that job is the other's. It is an ErrDetached. Until the
// runner has ended, Run starts no other.
var ErrSuperseded = fmt.Errorf("%w with another daemon", ErrDetached)

// Exit says how a runner ended.
type Exit struct {
	// Code is the exit code, or -1 when it ended by a signal or is not known.
	Code int
	// Signal is the name of the signal that ended it ("SIGKILL"), or empty.
	Signal string
	// OutOfMemory says that the kernel ended it for memory.
	OutOfMemory bool
	// Stopped says that we ended it.
	Stopped bool
	// Lost says that the runner did not end by itself but went down with what
	// supervises it (its shim, containerd); a job it had may be tried again.
	Lost bool
	// Detail is a cause in words where there is more to say than the above.
	Detail string
	// LastLog is the end of what the runner wrote: at most a few lines, cleaned,
	// those that say why it ended among them.
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

// LoadError says that a model cannot be loaded or started. Its text is shown to
// clients as it is. Class, an errdefs class, says whether trying again makes
// sense (ErrUnavailable) or not.
type LoadError struct {
	Message string
	Class   error
}

func (e *LoadError) Error() string { return e.Message }
func (e *LoadError) Unwrap() error { return e.Class }

// FieldError names a configuration key of a sheep, dotted below the sheep
// ("env.PATH"), and what is wrong with its value.
type FieldError struct{ Field, Problem string }

func (e *FieldError) Error() string { return e.Field + ": " + e.Problem }
