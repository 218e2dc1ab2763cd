package shepherd

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/storage"
)

// services are the dependencies that all lanes share.
type services struct {
	node        string
	dataRoot    string
	ledger      ledger.Ledger
	peers       Peers // nil for none
	fleet       Fleet // nil for none
	store       storage.Store
	fencer      storage.Fencer // nil if no other node shares the ledger
	hub         *hub
	flock       *flock
	payloads    *payloads
	budget      *budget
	room        func(bytes int64) error // checks the disk's room for inputs; nil for no check
	forecaster  *forecaster
	observer    Observer
	tracer      Tracer
	trust       job.Trust
	placement   Placement
	limits      LimitDefaults
	maxAttempts int
	stageAhead  int
	maxTurn     time.Duration
	clock       clock
	log         *slog.Logger
	// tokens holds the tokens of the claims in progress.
	tokens tokens
	// background runs f outside any lane, with a context that ends when the daemon shuts
	// down.
	background func(f func(context.Context))
}

// clock is the wall clock, which may jump. It is used for the times in records; timers and
// timeouts of this process use the monotonic clock instead.
type clock func() time.Time

// now returns the time in the records' form: UTC, truncated to microseconds.
func (c clock) now() time.Time { return c().UTC().Truncate(time.Microsecond) }

// until returns the duration from now until a record's time.
func (c clock) until(t time.Time) time.Duration { return t.Sub(c.now()) }

// lane moves jobs through one sheep. Its feeder claims and prepares jobs; its worker runs
// the sheep's runner and gives it one job at a time; its concluder stores results and ends
// attempts while the runner runs the next job.
type lane struct {
	Member
	*services
	log   *slog.Logger
	dirs  workdirs
	share share // of the machine's devices

	state *laneState
	rests *rests
	// modelRests are the models that the sheep does not try for a while after a fault.
	modelRests modelRests
	turns      *turns
	known      *knownModels
	feeder     *feeder
	worker     *worker
	concluder  *concluder

	life *life
}

// life is the lifetime of a lane: the contexts and goroutines from its start to its end. A
// lane that is stopped and started again gets new contexts.
type life struct {
	leaving chan struct{} // closed when the daemon ends and leaves the runner up
	leave   func()        // closes leaving
	running sync.WaitGroup

	// transition is held while the lane is stopped or started.
	transition sync.Mutex
	over       bool // the lane must not start again; guarded by transition

	mu   sync.Mutex
	ends ends
}

// ends cancels a lane's work.
type ends struct {
	feed  context.CancelCauseFunc // no more jobs are started
	work  context.CancelCauseFunc // running jobs are handed back
	ended <-chan struct{}         // closed when the feed has ended
}

func newLife() *life {
	leaving := make(chan struct{})
	nothing := func(error) {}
	return &life{leaving: leaving, leave: sync.OnceFunc(func() { close(leaving) }), ends: ends{feed: nothing, work: nothing, ended: context.Background().Done()}}
}

// begin creates the contexts of a new run of the lane.
func (l *life) begin() (feed, work context.Context) {
	var e ends
	feed, e.feed = context.WithCancelCause(context.Background())
	work, e.work = context.WithCancelCause(context.Background())
	e.ended = feed.Done()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ends = e
	return feed, work
}

func (l *life) present() ends {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ends
}

func (l *life) closeFeed(why error) { l.present().feed(why) }

func (l *life) interrupt(why error) { l.present().work(why) }

func newLane(m Member, env *services) *lane {
	l := &lane{
		Member: m, services: env, log: env.log.With("sheep", m.Name),
		dirs:  workdirs{dataRoot: env.dataRoot, sheep: m.Name},
		share: share{m.Devices}, state: newLaneState(), rests: new(rests), turns: newTurns(env.maxTurn), known: newKnownModels(),
		life: newLife(),
	}
	l.feeder = newFeeder(l)
	l.worker = newWorker(l)
	l.concluder = newConcluder(l)
	return l
}

// start starts the lane's goroutines: the worker adopts what recover found, and the feeder
// claims jobs unless closing is not nil.
func (l *lane) start(closing error) {
	feed, work := l.life.begin()
	if closing != nil {
		l.life.closeFeed(closing)
	}
	l.life.running.Go(func() { l.feeder.run(feed, work) })
	l.life.running.Go(func() { l.worker.run(feed, work) })
}

// wait returns when the lane has ended: no more jobs are claimed, the running job has ended,
// was handed back or was left to the runner, and the runner has stopped or was left up.
func (l *lane) wait() {
	l.life.running.Wait()
	l.life.closeFeed(errOver)
	l.life.interrupt(errOver)
}

// retire ends the lane and waits for that. Its job may finish within drain. The caller holds
// life.transition.
func (l *lane) retire(drain time.Duration, why error) {
	defer l.life.endWithin(drain, why)()
	l.wait()
}

// endWithin stops the start of further jobs, and hands running jobs back after drain unless stop
// is called first.
func (l *life) endWithin(drain time.Duration, why error) (stop func()) {
	ends := l.present() // the lane may be started again while the timer fires
	ends.feed(why)
	timer := time.AfterFunc(drain, func() { ends.work(why) })
	return func() { timer.Stop() }
}

// beginTransition locks life.transition; done unlocks it. If another transition is waiting
// for a job, that wait is cut down to drain.
func (l *life) beginTransition(drain time.Duration, why error) (done func()) {
	if !l.transition.TryLock() {
		stop := l.endWithin(drain, why)
		l.transition.Lock()
		stop()
	}
	return l.transition.Unlock
}

// isLeaving reports whether the runner will be left up, with its job.
func (l *lane) isLeaving() bool {
	select {
	case <-l.life.leaving:
		return true
	default:
		return false
	}
}

// nextModel returns the model that the sheep will have loaded after the jobs that it has
// claimed.
func (l *lane) nextModel() job.Model {
	if a := l.feeder.holds(); a != nil {
		return a.Model
	}
	return l.state.model()
}

// admits reports whether the lane may claim a job with this address.
func (l *lane) admits(address string) bool {
	if l.state.isDrained() {
		return false
	}
	switch l.share.admission() {
	case job.NoJobs:
		return false
	case job.OwnJobs:
		_, own := l.answers(address)
		return own
	}
	return true
}

// suits ranks the lane for a job of the model: idle before busy; among those, in this order:
// the model loaded, no model loaded, another model loaded, devices held by another sheep.
func (l *lane) suits(m job.Model) int {
	rank := 0
	next := l.nextModel()
	switch {
	case l.share.admission() < job.AnyNow: // another sheep's model goes first
	case next == m:
		rank = 3
	case next.IsZero():
		rank = 2
	default:
		rank = 1
	}
	if !l.state.busy() {
		rank += 4
	}
	return rank
}

// view returns the sheep's state for clients.
func (l *lane) view() job.Sheep {
	v := l.state.view()
	v.Name, v.Type = l.Name, l.Type
	now := time.Now()
	if m, ends := l.turns.turn(); v.Running && m == v.Model && ends.After(now) {
		v.TurnEnds = ends.UTC()
	}
	left, why := l.rests.left(now)
	switch {
	case v.Condition != job.Able:
	case l.share.admission() == job.NoJobs:
		v.Condition = job.Blocked
	case left > 0:
		v.Condition = job.Resting
	}
	if v.Detail == "" {
		if left > 0 {
			v.Detail = "rests for " + left.Round(time.Second).String() + ": " + why
		} else if models, _ := l.modelRests.all(now); len(models) > 0 && v.Job == "" {
			left, why := l.modelRests.left(models[0], now)
			v.Detail = fmt.Sprintf("rests for %s with the model %s: %s", left.Round(time.Second), models[0], why)
		} else {
			v.Detail = l.share.state()
		}
	}
	if v.Condition == job.Drained && v.Detail == "" {
		v.Detail = "told to take no more jobs"
	}
	return v
}

// owner returns the user that the runner of a model runs as, if the sheep can tell.
func (l *lane) owner(ctx context.Context, m job.Model) (owner, error) {
	o, ok := l.Sheep.(runtime.Owner)
	if !ok {
		return owner{}, nil
	}
	uid, gid, err := o.Owner(ctx, m)
	if err != nil || uid == os.Geteuid() && gid == os.Getegid() {
		return owner{}, err
	}
	return owner{set: true, uid: uid, gid: gid}, nil
}

// happened passes an event of the runner to the observer.
func (l *lane) happened(event RunnerEvent) { l.observer.Runner(l.Name, event) }

// passed reports to the observer that a phase ends now. a is nil for a phase without a job.
// It reads only fields of the claim that do not change.
func (l *lane) passed(a *attempt, m job.Model, phase Phase, began time.Time, err error) time.Duration {
	p := PhaseResult{Phase: phase, Sheep: l.Name, Model: m, Began: began, Ended: time.Now(), Err: err}
	if a != nil {
		p.Job, p.Trace, p.Run, p.Attempt = a.ID, a.Trace, a.Run, a.Attempt
	}
	l.observer.PhaseEnded(p)
	return p.Ended.Sub(began)
}

// traceOf returns the trace context that the runner is given for a job.
func (l *lane) traceOf(a *attempt) job.Trace {
	if a == nil || a.Trace.IsZero() {
		return job.Trace{}
	}
	return l.tracer.Run(a.ID, a.Run, a.Attempt, a.Trace)
}
