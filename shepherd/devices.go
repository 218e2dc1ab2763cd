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

// Devices is a sheep's share of the machine's devices (its GPUs), as whoever
// keeps them lends it. Other sheep may have a share of the same devices.
//
// # The protocol
//
//	Request ─► granted ─► [Prepare ─► Started] ─► Begin ─► End ─► done
//	                                    │
//	                                    └─ idle ─► [Yield] ─► Stopped
//
// A sheep with a job asks for its devices by Request, or Hold, and has them from
// the grant until it calls done. When it has to start a runner for that it calls
// Prepare first. The runner may stay up after done, idle, until Yield asks to
// have it stopped for another sheep; Stopped gives up what it took. While the
// sheep has its devices they are not asked back.
//
// All methods but Prepare and Fault return at once, and may be called from many
// goroutines.
type Devices interface {
	// Admission says which jobs the sheep may claim now.
	Admission() job.Admission

	// Notify has changed called whenever Admission has become more. It is called
	// once, before the other methods; changed returns at once.
	Notify(changed func())

	// Request asks for the devices for a job. Granted receives nil when the
	// sheep has them, or an error when it cannot have them because one is out.
	// A request that is made while an earlier one of the same sheep is not done
	// is granted after that at the earliest. The caller calls done once, granted
	// or not.
	Request() (granted <-chan error, done func())

	// Hold is a Request that is granted at once, or not made: a sheep whose
	// runner is up always gets it, another only where nobody else has or wants
	// the devices.
	Hold() (done func(), ok bool)

	// Yield receives when the sheep's runner, idle, is to be stopped.
	Yield() <-chan struct{}

	// Prepare waits, for a bounded time, until what the sheep needs of its
	// devices is free: a runner that has ended may leave them a moment later. The
	// error, of class errdefs.ErrUnavailable, says who has it; or it is ctx's.
	Prepare(ctx context.Context) error

	// Started tells that a runner with the model is up as a process, 0 where that
	// is not known yet, and Stopped that nothing is left of it.
	Started(m job.Model, pid int)
	Stopped()

	// Fault waits until a device is out and says why in a sentence without a
	// full stop, or until ctx ends and returns its error.
	Fault(ctx context.Context) error

	// Begin tells that the runner has been given the job, End that the sheep is
	// through with it: its account comes at once or, for a job that failed, as
	// soon as what its devices may have to say of that is known.
	Begin(id job.ID, at time.Time)
	End(id job.ID, at time.Time, failed bool) <-chan job.Account

	// State says in words what keeps the sheep from its devices; empty when
	// nothing does.
	State() string

	// Close gives the share back, when the sheep has ended.
	Close()
}

// share is a sheep's share of the machine's devices; its zero value is that of a
// sheep that has none.
type share struct{ devices Devices }

// has reports whether there are devices.
func (s share) has() bool { return s.devices != nil }

// admission is what the sheep may claim.
func (s share) admission() job.Admission {
	if s.devices == nil {
		return job.AnyNow
	}
	return s.devices.Admission()
}

// notify has changed called whenever admission has become more.
func (s share) notify(changed func()) {
	if s.devices != nil {
		s.devices.Notify(changed)
	}
}

// request asks for the devices for a job; granted is closed at once where there
// are none.
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

// prepare makes sure that what the runner needs of its devices is free. The error
// is *runtime.LoadError, or the cause of ctx's end.
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

// started and stopped tell of the runner's life, begin and end of a job's.
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

// watch stops the attempt when a device is out. It returns when ctx has ended.
func (s share) watch(ctx context.Context, a *attempt) {
	if s.devices == nil {
		return
	}
	if err := s.devices.Fault(ctx); ctx.Err() == nil {
		a.stopper.stop(&deviceError{err})
	}
}

// yield receives when the idle runner is to be stopped for another sheep.
func (s share) yield() <-chan struct{} {
	if s.devices == nil {
		return nil
	}
	return s.devices.Yield()
}

// state says in words what keeps the sheep from its devices.
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

// deviceError is why an attempt is stopped when a device of its sheep is out.
type deviceError struct{ cause error }

func (e *deviceError) Error() string { return e.cause.Error() }

// explain adds to a failure what the devices reported.
func explain(failure *job.Failure, account job.Account) *job.Failure {
	if failure == nil || account.Cause == "" || strings.Contains(failure.Message, account.Cause) {
		return failure
	}
	explained := *failure
	explained.Message = fmt.Sprintf("%s (%s)", failure.Message, account.Cause)
	return &explained
}
