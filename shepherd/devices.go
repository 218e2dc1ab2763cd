package shepherd

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/internal/errtext"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/runtime"
)

// Devices is a sheep's share of the machine's devices (its GPUs), leased from their keeper.
// Other sheep may share the same devices.
//
// # The protocol
//
//	Request ─► granted ─► [Prepare ─► Started] ─► Begin ─► End ─► done
//	                                    │
//	                                    └─ idle ─► [Yield] ─► Stopped
//
// A sheep with a job requests its devices with Request or Hold, and holds them from the
// grant until it calls done. Before it starts a runner for the job it calls Prepare. The
// runner may stay up idle after done, until Yield asks to stop it in favour of another
// sheep; Stopped releases what it occupied. Devices are not reclaimed while the sheep holds
// them.
//
// All methods but Prepare and Fault return at once. All may be called from many goroutines.
type Devices interface {
	// Admission returns which jobs the sheep may claim now.
	Admission() job.Admission

	// Notify registers changed, which is called whenever Admission allows more than before.
	// Notify is called once, before the other methods; changed must return at once.
	Notify(changed func())

	// Request requests the devices for a job. granted receives nil when the sheep holds
	// them, or an error if it cannot because a device failed. A request made while an
	// earlier one of the same sheep is not done is granted after that one. The caller calls
	// done once, whether the request was granted or not.
	Request() (granted <-chan error, done func())

	// Hold is a Request that is granted at once or refused: always granted to a sheep whose
	// runner is up, to another only if no one else holds or wants the devices.
	Hold() (done func(), ok bool)

	// Yield receives when the sheep's idle runner has to stop.
	Yield() <-chan struct{}

	// Prepare waits, for a bounded time, until the part of the devices that the sheep needs
	// is free: a runner that has ended may release them a moment later. The error, of class
	// errdefs.ErrUnavailable, names who occupies them; or it is ctx's.
	Prepare(ctx context.Context) error

	// Started reports that a runner with the model is up as process pid, 0 if not known
	// yet; Stopped that nothing is left of the runner.
	Started(m job.Model, pid int)
	Stopped()

	// Fault waits until a device has failed and returns the reason as a sentence without a
	// full stop, or until ctx ends and returns its error.
	Fault(ctx context.Context) error

	// Begin reports that the runner was given the job, End that the sheep has finished it.
	// End's channel receives the account at once or, for a job that failed, when it is
	// known whether the devices caused it.
	Begin(id job.ID, at time.Time)
	End(id job.ID, at time.Time, failed bool) <-chan job.Account

	// State describes what keeps the sheep from its devices; empty if nothing does.
	State() string

	// Close gives the share back after the sheep has ended.
	Close()
}

// share wraps a sheep's Devices. The zero value is the share of a sheep without devices.
type share struct{ devices Devices }

// has reports whether the sheep has devices.
func (s share) has() bool { return s.devices != nil }

// admission returns which jobs the sheep may claim.
func (s share) admission() job.Admission {
	if s.devices == nil {
		return job.AnyNow
	}
	return s.devices.Admission()
}

// notify registers a callback for when admission allows more than before.
func (s share) notify(changed func()) {
	if s.devices != nil {
		s.devices.Notify(changed)
	}
}

// request requests the devices for a job. granted is nil if the sheep has no devices.
func (s share) request() (granted <-chan error, done func()) {
	if s.devices == nil {
		return nil, func() {}
	}
	return s.devices.Request()
}

// hold takes the devices for a runner without a job, unless others need them.
func (s share) hold() (done func(), ok bool) {
	if s.devices == nil {
		return func() {}, true
	}
	return s.devices.Hold()
}

// prepare waits until the devices are free for the runner. The error is *runtime.LoadError,
// or the cause of ctx's end.
func (s share) prepare(ctx context.Context) error {
	if s.devices == nil {
		return nil
	}
	err := s.devices.Prepare(ctx)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errdefs.IsUnavailable(err):
		return &runtime.LoadError{Message: errtext.Of(err), Class: errdefs.ErrUnavailable}
	}
	return &runtime.LoadError{Message: errtext.Of(err), Class: errdefs.ErrInternal}
}

// started and stopped report the start and end of the runner, begin and end those of a job.
func (s share) started(m job.Model, pid int) {
	if s.devices != nil {
		s.devices.Started(m, pid)
	}
}

func (s share) stopped() {
	if s.devices != nil {
		s.devices.Stopped()
	}
}

func (s share) begin(id job.ID, at time.Time) {
	if s.devices != nil {
		s.devices.Begin(id, at)
	}
}

func (s share) end(id job.ID, at time.Time, failed bool) <-chan job.Account {
	if s.devices == nil {
		none := make(chan job.Account, 1)
		none <- job.Account{}
		return none
	}
	return s.devices.End(id, at, failed)
}

// watch stops the attempt when a device fails. It returns when ctx has ended.
func (s share) watch(ctx context.Context, a *attempt) {
	if s.devices == nil {
		return
	}
	if err := s.devices.Fault(ctx); ctx.Err() == nil {
		a.stopper.stop(&deviceError{err})
	}
}

// yield receives when the idle runner has to stop in favour of another sheep.
func (s share) yield() <-chan struct{} {
	if s.devices == nil {
		return nil
	}
	return s.devices.Yield()
}

// state describes what keeps the sheep from its devices.
func (s share) state() string {
	if s.devices == nil {
		return ""
	}
	return s.devices.State()
}

func (s share) close() {
	if s.devices != nil {
		s.devices.Close()
	}
}

// deviceError stops an attempt when a device of its sheep has failed.
type deviceError struct{ cause error }

func (e *deviceError) Error() string { return e.cause.Error() }

// explain appends to a failure what the devices reported.
func explain(failure *job.Failure, account job.Account) *job.Failure {
	if failure == nil || account.Cause == "" || strings.Contains(failure.Message, account.Cause) {
		return failure
	}
	explained := *failure
	explained.Message = fmt.Sprintf("%s (%s)", failure.Message, account.Cause)
	return &explained
}
