// Package messenger defines the messages between shepherd and a runner: a job's input is
// ready; the job is done; it failed. The wire format is byte for byte that of the original
// shepherd: runners reject messages with additional fields.
package messenger

import (
	"context"
	"errors"
	"time"

	"github.com/iterait/shepherd/job"
)

// Input sends a job to a runner: io_data_root/ID/inputs is complete, and
// io_data_root/ID/outputs exists and is empty.
type Input struct {
	JobID      job.ID
	IODataRoot string
	// Deadline is when the job must be answered; zero is no deadline. It is not sent to
	// the runner. The process that keeps the job while this one is down enforces it, and
	// answers instead of the runner with a failure of type TimeoutType. A Conn without
	// such a process ignores it.
	Deadline time.Time
}

// ExitLoad is the exit code of a runner that could not load its model, before it binds its
// socket. The end of its output has the reason.
const ExitLoad = 78 // EX_CONFIG of sysexits.h

// Types of failures that do not come from a model's own code.
const (
	TimeoutType   = "TimeoutError" // the job was not done by its deadline
	CancelledType = "Cancelled"    // the runner cancelled the job on request
)

// Answer is a runner's answer to one job; the job is done if Failure is nil.
type Answer struct {
	JobID   job.ID
	Failure *job.Failure
	// Log is the span of the runner's log that was written during the job, for
	// runtime.JobLogger; empty if it is not known. It is opaque, a few hundred bytes at
	// most, and valid as long as the log is kept.
	Log string
	// Warnings are warnings about the runner during the job, such as that the kernel has
	// killed one of its processes for lack of memory.
	Warnings []string
}

// ErrClosed is the error of a Conn that has ended, or whose runner has.
var ErrClosed = errors.New("connection to the runner has ended")

// MaxKept is how many unacknowledged answers a Conn's peer keeps.
const MaxKept = 8

// Conn sends jobs to one sheep's runner and receives the answers. Delivery of a job is
// certain only when its answer is received. The peer keeps an answer until it is
// acknowledged, so it survives the end of this process.
//
// Send may be called before the runner has bound its socket: the message is delivered
// afterwards. One job at a time is under way. The next may be sent as soon as the answer to
// the last was received, even if it is not acknowledged yet, so that the runner need not
// wait while an earlier job's results are stored. Sending the job that is under way, or
// whose answer is kept, again has no effect. Send fails while MaxKept answers are kept. Where
// it fails with ErrClosed the runner has not got the job.
type Conn interface {
	Send(ctx context.Context, in Input) error
	// Recv waits for the next answer. A Conn receives each answer once, in order. A
	// later Conn to the same runner receives unacknowledged answers again, oldest first.
	// Answers that arrived before the runner ended are received before ErrClosed.
	Recv(ctx context.Context) (Answer, error)
	// Ack acknowledges the answer to the job, so that the peer drops it. The caller has
	// stored it.
	Ack(ctx context.Context, id job.ID) error
}
