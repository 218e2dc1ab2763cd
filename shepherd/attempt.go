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

// Why the contexts of an attempt end before the attempt has.
var (
	errCancelled = errors.New("the job was cancelled")
	errFenced    = errors.New("the claim on the job was lost")
	errTakenOver = errors.New("an idle sheep runs the job")
	errOver      = errors.New("the attempt is over")
)

// attempt is one claim on its way through a sheep. The feeder makes it and
// prepares it; the feeder or the worker ends it, through concluder.end, once.
//
//	claimed ─► offered ─► taken ─► (sent ─► answered) ─► ended
//	              └─► surrendered ─────────────────────────┘
//
// Until it is taken it is the feeder's, from then on the worker's. Preparing goes
// on beside both, until prepared is closed.
type attempt struct {
	// Claim is as it was claimed, but that State and StartedAt follow Start.
	ledger.Claim
	limits limits
	// ahead says that the job was claimed to be prepared only.
	ahead bool
	// adopted says that an earlier daemon gave the job to the runner.
	adopted bool

	stopper stopper
	// unwatch ends the subscription to the job's events.
	unwatch func()
	// yield gives up the devices that were requested for it.
	yield func()

	owner       atomic.Int32  // one of the owners below
	surrendered chan struct{} // closed when its sheep is not to run the job, for givenUp
	givenUp     error
	taken       chan struct{} // closed when the worker has taken the job
	fetched     atomic.Bool   // the model was fetched ahead of the job

	// prepared is closed when preparing has ended; what follows is set by then.
	prepared chan struct{}
	dir      *workdir // nil where it could not be made
	staged   storage.Staged
	reserved atomic.Int64 // bytes of the budget for jobs prepared ahead
	trouble  *ending      // why it could not be prepared

	// What the worker notes on the way: when it began to load the model, when the
	// runner was given the job, that it answered, and the connection by which the
	// answer is to be acknowledged.
	loadBegan time.Time
	sent      time.Time
	answered  bool
	conn      messenger.Conn
	log       string       // where the runner's lines are, see runtime.JobLogger
	warnings  []string     // what happened to the runner meanwhile
	phases    job.Phases   // each by whoever is at it, but for Load:
	load      atomic.Int64 // which the runner's goroutine may note at any time
}

// Who may take or end an attempt.
const (
	ownedByFeeder int32 = iota
	ownedByWorker
	ownedByNobody // it was surrendered
)

// tokens are those of the claims that somebody in this daemon sees to. One that
// could not be ended in the ledger stays: it is the next daemon's. The zero value is empty.
type tokens struct {
	mu    sync.Mutex
	known map[ledger.Token]struct{}
}

func (t *tokens) add(token ledger.Token) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known == nil {
		t.known = make(map[ledger.Token]struct{})
	}
	t.known[token] = struct{}{}
}

func (t *tokens) remove(token ledger.Token) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.known, token)
}

func (t *tokens) has(token ledger.Token) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.known[token]
	return ok
}

// newAttempt makes an attempt of a claim of the lane's.
func (l *lane) newAttempt(c ledger.Claim) *attempt {
	l.tokens.add(c.Token)
	return newAttempt(c, resolve(l.limits.apply(c.Limits, c.Model, l.Limits)))
}

// newAttempt makes an attempt of a claim that was just made.
func newAttempt(c ledger.Claim, l limits) *attempt {
	return &attempt{
		Claim: c, limits: l, ahead: c.State == job.Queued,
		surrendered: make(chan struct{}), taken: make(chan struct{}), prepared: make(chan struct{}),
		unwatch: func() {}, yield: func() {},
	}
}

// due is when the job, sent now, must have been answered; zero for never.
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

// endLog notes which part of the sheep's log is the attempt's: as the runner's answer
// says or, where there was none, what was written up to now.
func (a *attempt) endLog(l *lane) {
	span := l.state.span(a.ID, nil)
	if logger, ok := l.Sheep.(runtime.JobLogger); ok && a.log == "" && span != "" {
		a.log = logger.EndSpan(span)
	}
	l.state.endLog(a.log)
}

// loadTook notes how long it took to load the model for the attempt.
func (a *attempt) loadTook(d time.Duration) { a.load.Store(int64(d)) }

// took is how long the attempt's phases took so far. It is for the concluder.
func (a *attempt) took() job.Phases {
	p := a.phases
	p.Load = time.Duration(a.load.Load())
	return p
}

// take makes the attempt the worker's. It is false where it was surrendered.
func (a *attempt) take() bool {
	if !a.owner.CompareAndSwap(ownedByFeeder, ownedByWorker) {
		return false
	}
	close(a.taken)
	return true
}

// surrender asks the feeder to hand the job back so that another sheep can run
// it. It is false where the job cannot be had.
func (a *attempt) surrender() bool {
	return !named(a.Sheep) && a.giveUp(errTakenOver)
}

// giveUp has the feeder hand the job back, which its sheep has only prepared. It is
// false where the sheep has begun with it.
func (a *attempt) giveUp(why error) bool {
	if !a.ahead || !a.owner.CompareAndSwap(ownedByFeeder, ownedByNobody) {
		return false
	}
	a.givenUp = why
	close(a.surrendered)
	return true
}

// withdraw keeps others from taking the attempt: it is for its feeder, while the
// worker cannot have it.
func (a *attempt) withdraw() { a.owner.Store(ownedByNobody) }

// onEvent stops the attempt when the job was cancelled, or lost to another
// holder. It is called for every event of the job.
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
		a.stopper.stop(errFenced) // not by us: then nobody watches any more
	}
}

// check is onEvent for what happened before anyone watched.
func (a *attempt) check(rec job.Record, err error) {
	switch {
	case errors.Is(err, ledger.ErrNotFound):
		a.stopper.stop(errFenced)
	case err != nil: // the ledger will be asked again when the attempt ends
	case rec.Run != a.Run || rec.Attempt != a.Attempt || rec.State.Final() || rec.Holder == "":
		a.stopper.stop(errFenced)
	case rec.Cancelling:
		a.stopper.stop(errCancelled)
	}
}

// stopper ends the contexts bound to it, those there are and those to come, with
// the cause that it was stopped with first. The zero stopper is ready to use.
type stopper struct {
	mu    sync.Mutex
	cause error
	bound []*bond // the oldest first
}

// bond is a context that is bound to a stopper.
type bond struct{ cancel context.CancelCauseFunc }

// bind returns a context that ends with parent, or when the stopper is stopped.
// The caller calls release.
func (s *stopper) bind(parent context.Context) (_ context.Context, release func()) {
	ctx, cancel := context.WithCancelCause(parent)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause != nil {
		cancel(s.cause)
		return ctx, func() {}
	}
	b := &bond{cancel}
	s.bound = append(s.bound, b)
	return ctx, func() {
		cancel(errOver)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.bound = slices.DeleteFunc(s.bound, func(other *bond) bool { return other == b })
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

// stopped is the cause that it was stopped with, nil where it was not.
func (s *stopper) stopped() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cause
}

// limits are a job's limits with all defaults filled in.
type limits struct {
	retries          int
	pause, load, run time.Duration // 0: none
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

// LimitRule gives defaults to the jobs of some models.
type LimitRule struct {
	Models job.Rule
	Limits job.Limits
}

// LimitDefaults are what a job's limits are where it does not say: the first rule
// that matches its model counts before its sheep's own, and these before All.
type LimitDefaults struct {
	Models []LimitRule
	All    job.Limits
}

// apply fills in what a job's limits leave open; sheep are those of the sheep that
// it is addressed to, or that runs it.
func (d LimitDefaults) apply(own job.Limits, m job.Model, sheep job.Limits) job.Limits {
	for _, rule := range d.Models {
		if rule.Models.Matches(m) {
			own = own.Over(rule.Limits)
			break
		}
	}
	return own.Over(sheep).Over(d.All)
}
