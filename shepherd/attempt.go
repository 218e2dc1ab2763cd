package shepherd

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/storage"
)

// Causes of the cancellation of an attempt's contexts.
var (
	errCancelled = errors.New("the job was cancelled")
	errFenced    = errors.New("the claim on the job was lost")
	errTakenOver = errors.New("an idle sheep runs the job")
	errOver      = errors.New("the attempt is over")
)

// attempt is one claim on its way through a sheep. The feeder creates and prepares it; the
// feeder or the worker ends it, exactly once, through concluder.end.
//
//	claimed ─► offered ─► taken ─► (sent ─► answered) ─► ended
//	              └─► surrendered ─────────────────────────┘
//
// The feeder owns the attempt until the worker takes it. Preparation runs concurrently with
// both, until prepared is closed.
type attempt struct {
	ledger.Claim // as the ledger answered; it is not updated
	limits       limits
	// ahead is set if the job was claimed only to prepare it, while another one runs.
	ahead bool
	// adopted is set if an earlier daemon gave the job to the runner.
	adopted bool

	stopper stopper
	// unwatch ends the subscription to the job's events.
	unwatch func()
	// yield gives back the devices that were requested for the attempt.
	yield func()

	owner       atomic.Int32  // ownedByFeeder, ownedByWorker or ownedByNobody
	surrendered chan struct{} // closed when the sheep will not run the job; givenUp says why
	givenUp     error
	taken       chan struct{} // closed when the worker has taken the job
	fetched     atomic.Bool   // the model was fetched ahead of the job

	// prepared is closed when preparation has ended; the fields below are set by then.
	prepared chan struct{}
	dir      *workdir // nil if it could not be created
	staged   storage.Staged
	reserved atomic.Int64 // bytes reserved from the budget for jobs prepared ahead
	trouble  *ending      // why preparation failed

	// Set by the worker: when it began to load the model, when the runner was given the
	// job, whether the runner answered, and the connection on which the answer has to be
	// acknowledged.
	loadBegan time.Time
	sent      time.Time
	starting  chan struct{} // closed when Ledger.Start has returned; nil if nothing waits for it
	unstarted bool          // the ledger may not have the start yet; set before starting is closed
	answered  bool
	conn      messenger.Conn
	log       string       // the span of the runner's log, see runtime.JobLogger
	warnings  []string     // incidents reported by the runner during the job
	phases    job.Phases   // each written by the goroutine in that phase, except Load:
	load      atomic.Int64 // the runner's goroutine may set it at any time
}

// Owners of an attempt: only the owner may take or end it.
const (
	ownedByFeeder int32 = iota
	ownedByWorker
	ownedByNobody // it was surrendered
)

// tokens holds the tokens of the claims that this process handles. A claim that could not be
// ended in the ledger stays in the set, so that only the next daemon ends it.
type tokens = set[ledger.Token]

// set is a set for several goroutines. The zero value is empty.
type set[T comparable] struct {
	mu    sync.Mutex
	known map[T]struct{}
}

func (s *set[T]) add(x T) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil {
		s.known = make(map[T]struct{})
	}
	s.known[x] = struct{}{}
}

func (s *set[T]) remove(x T) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.known, x)
}

func (s *set[T]) has(x T) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.known[x]
	return ok
}

// newAttempt creates an attempt for a claim of this lane.
func (l *lane) newAttempt(c ledger.Claim) *attempt {
	l.tokens.add(c.Token)
	return newAttempt(c, resolve(l.limits.apply(c.Limits, c.Model, l.Limits)))
}

// newAttempt creates an attempt for a new claim.
func newAttempt(c ledger.Claim, l limits) *attempt {
	return &attempt{
		Claim: c, limits: l, ahead: c.State == job.Queued,
		surrendered: make(chan struct{}), taken: make(chan struct{}), prepared: make(chan struct{}),
		unwatch: func() {}, yield: func() {},
	}
}

// due is the deadline for an answer to the job if it is sent now; zero for none.
func (a *attempt) due() time.Time {
	due := a.Deadline
	if a.limits.run > 0 {
		over := a.sent.Add(a.limits.load + a.limits.run) // the runner may still be loading
		if due.IsZero() || over.Before(due) {
			due = over
		}
	}
	return due
}

// endLog records which part of the sheep's log belongs to the attempt: the span in the
// runner's answer or, without an answer, everything written so far.
func (a *attempt) endLog(l *lane) {
	span := l.state.span(a.ID, nil)
	if logger, ok := l.Sheep.(runtime.JobLogger); ok && a.log == "" && span != "" {
		a.log = logger.EndSpan(span)
	}
	l.state.endLog(a.log)
}

// loadTook records how long loading the model for the attempt took.
func (a *attempt) loadTook(d time.Duration) { a.load.Store(int64(d)) }

// took returns the durations of the attempt's phases so far. Only the concluder calls it.
func (a *attempt) took() job.Phases {
	p := a.phases
	p.Load = time.Duration(a.load.Load())
	return p
}

// take makes the worker the owner. It returns false if the attempt was surrendered.
func (a *attempt) take() bool {
	if !a.owner.CompareAndSwap(ownedByFeeder, ownedByWorker) {
		return false
	}
	close(a.taken)
	return true
}

// surrender asks the feeder to hand the job back so that another sheep can run it. It
// returns false if the job cannot be handed over.
func (a *attempt) surrender() bool {
	return !named(a.Sheep) && a.giveUp(errTakenOver)
}

// giveUp makes the feeder hand back a job that is only prepared. It returns false if the
// sheep has started the job.
func (a *attempt) giveUp(why error) bool {
	if !a.ahead || !a.owner.CompareAndSwap(ownedByFeeder, ownedByNobody) {
		return false
	}
	a.givenUp = why
	close(a.surrendered)
	return true
}

// withdraw prevents others from taking the attempt. The feeder calls it while the worker
// cannot take the attempt.
func (a *attempt) withdraw() { a.owner.Store(ownedByNobody) }

// onEvent stops the attempt when the job was cancelled or lost to another holder. The hub
// calls it for every event of the job.
func (a *attempt) onEvent(e job.Event) {
	if e.Kind == job.EventGiven || e.Kind == job.EventProgress {
		return
	}
	if e.Run != a.Run || e.Attempt != a.Attempt {
		if e.Run > a.Run || e.Run == a.Run && e.Attempt > a.Attempt { // attempts count within a run
			a.stopper.stop(errFenced)
		}
		return
	}
	switch e.Kind {
	case job.EventCancelled:
		a.stopper.stop(errCancelled)
	case job.EventReturned, job.EventEnded:
		a.stopper.stop(errFenced) // ended by someone else: this lane unwatches before it ends an attempt
	}
}

// check does what onEvent does, for events from before the subscription.
func (a *attempt) check(rec job.Record, err error) {
	switch {
	case errors.Is(err, ledger.ErrNotFound):
		a.stopper.stop(errFenced)
	case err != nil: // ending the attempt asks the ledger again
	case rec.Run != a.Run || rec.Attempt != a.Attempt || rec.State.Final() || rec.Holder == "":
		a.stopper.stop(errFenced)
	case rec.Cancelling:
		a.stopper.stop(errCancelled)
	}
}

// stopper cancels all contexts bound to it, present and future, with the first cause that it
// was stopped with. The zero stopper is ready to use.
type stopper struct {
	mu    sync.Mutex
	cause error
	bound []*binding // oldest first
}

// binding is a context bound to a stopper.
type binding struct{ cancel context.CancelCauseFunc }

// bind returns a context that ends with parent or when the stopper is stopped. The caller
// must call release.
func (s *stopper) bind(parent context.Context) (_ context.Context, release func()) {
	ctx, cancel := context.WithCancelCause(parent)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause != nil {
		cancel(s.cause)
		return ctx, func() {}
	}
	b := &binding{cancel}
	s.bound = append(s.bound, b)
	return ctx, func() {
		cancel(errOver)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.bound = slices.DeleteFunc(s.bound, func(other *binding) bool { return other == b })
	}
}

func (s *stopper) stop(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause != nil {
		return
	}
	s.cause = cause
	for _, b := range s.bound {
		b.cancel(cause)
	}
	s.bound = nil
}

// stopped returns the cause given to stop, or nil.
func (s *stopper) stopped() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cause
}

// limits are a job's limits after all defaults are applied.
type limits struct {
	retries          int
	pause, load, run time.Duration // 0 for no limit
}

func resolve(l job.Limits) limits {
	return limits{retries: value(l.Retries), pause: value(l.RetryPause), load: value(l.LoadTimeout), run: value(l.RunTimeout)}
}

func value[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

// LimitRule sets default limits for the jobs of some models.
type LimitRule struct {
	Models job.Rule
	Limits job.Limits
}

// LimitDefaults are the limits of jobs that do not set their own. In order of precedence:
// the first rule that matches the job's model, the sheep's own limits, All.
type LimitDefaults struct {
	Models []LimitRule
	All    job.Limits
}

// apply fills in the limits that a job leaves open. sheep are the limits of the sheep that
// the job is addressed to, or that runs it.
func (d LimitDefaults) apply(own job.Limits, m job.Model, sheep job.Limits) job.Limits {
	for _, rule := range d.Models {
		if rule.Models.Matches(m) {
			own = own.Over(rule.Limits)
			break
		}
	}
	return own.Over(sheep).Over(d.All)
}
