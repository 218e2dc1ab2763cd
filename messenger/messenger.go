// Package messenger is what shepherd and a runner say to each other: a job's
// input is ready; it is done; it failed. The wire format is the original
// shepherd's and is exact to the byte: runners reject a message with any field
// more.
package messenger

import (
	"context"
	"errors"
	"time"

	"github.com/iterait/shepherd/job"
)

// Input tells a runner that io_data_root/ID/inputs is complete and
// io_data_root/ID/outputs exists and is empty.
type Input struct {
	JobID      job.ID
	IODataRoot string
	// Deadline is when the job must have been answered, zero for never. The
	// runner is not told of it: whoever keeps the job while this process is away
	// holds it to it, and answers in the runner's place with a failure of type
	// TimeoutType. A Conn that cannot do that ignores it.
	Deadline time.Time
}

// ExitLoad is what a runner exits with, before it binds its socket, to say that its
// model cannot be loaded; the end of what it printed says why.
const ExitLoad = 78 // EX_CONFIG of sysexits.h

// Types of failures that do not come from a model's own code.
const (
	TimeoutType   = "TimeoutError" // the job was not done by its deadline
	CancelledType = "Cancelled"    // the runner gave it up because it was asked to
)

// Answer is a runner's answer about one job: done where Failure is nil.
type Answer struct {
	JobID   job.ID
	Failure *job.Failure
	// Log is where the lines are that the runner wrote meanwhile, for
	// runtime.JobLogger; empty where that is not known. It is opaque, some hundred
	// bytes at most, and good as long as the log is kept.
	Log string
	// Warnings is what happened to the runner meanwhile that its answer may not say,
	// in words: a process of its own that the kernel ended for memory.
	Warnings []string
}

// ErrClosed is what a Conn returns once it, or the sheep behind it, has ended.
var ErrClosed = errors.New("connection to the runner has ended")

// MaxKept is how many answers a Conn's other side keeps at least until they are
// acknowledged.
const MaxKept = 8

// Conn carries jobs to one sheep's runner and answers back. A sent message
// counts for nothing until its answer is received; an answer is kept on the
// other side until it is acknowledged, so it survives the end of this process.
//
// Send may be called before the runner has bound its socket: the message is
// delivered when it has. One job at a time is under way: the next may be sent as
// soon as the answer to the last was received, acknowledged or not, so that the
// runner need not wait while an earlier job's results are put away. Sending the
// job that is under way, or whose answer is kept, again does nothing. At most
// MaxKept answers are kept; Send fails beyond that.
type Conn interface {
	Send(ctx context.Context, in Input) error
	// Recv waits for the next answer; each is received once by one Conn, in
	// order. Answers that are not acknowledged are received again, oldest first,
	// by a later Conn to the same runner. Answers that were there before the
	// runner ended are received before ErrClosed.
	Recv(ctx context.Context) (Answer, error)
	// Ack says that the answer to the job is safe and may be forgotten.
	Ack(ctx context.Context, id job.ID) error
}
