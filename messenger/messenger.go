// Package messenger is what shepherd and a runner say to each other: a job's
// input is ready; it is done; it failed. The wire format is the original
// shepherd's and is exact to the byte: runners reject a message with any field
// more.
package messenger

import (
	"context"
	"errors"

	"github.com/iterait/shepherd/job"
)

// Input tells a runner that io_data_root/ID/inputs is complete and
// io_data_root/ID/outputs exists and is empty.
type Input struct {
	JobID      job.ID
	IODataRoot string
}

// Answer is a runner's answer about one job: done where Failure is nil.
type Answer struct {
	JobID   job.ID
	Failure *job.Failure
}

// ErrClosed is what a Conn returns once it, or the sheep behind it, has ended.
var ErrClosed = errors.New("connection to the runner has ended")

// Conn carries jobs to one sheep's runner and answers back. A sent message
// counts for nothing until its answer is received; an answer is kept on the
// other side until it is acknowledged, so it survives the end of this process.
//
// Send may be called before the runner has bound its socket: the message is
// delivered when it has. One job at a time is under way; sending the job that
// is under way again does nothing.
type Conn interface {
	Send(ctx context.Context, in Input) error
	// Recv waits for the next answer that is not acknowledged. Without Ack, the
	// same answer may be received again by a later Conn to the same runner.
	Recv(ctx context.Context) (Answer, error)
	// Ack says that the answer to the job is safe and may be forgotten.
	Ack(ctx context.Context, id job.ID) error
}
