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

// services are what all lanes work with.
type services struct {
	node        string
	dataRoot    string
	ledger      ledger.Ledger
	peers       Peers // nil for none
	fleet       Fleet // nil for none
	store       storage.Store
	fencer      storage.Fencer // nil where no other node has the ledger
	hub         *hub
	flock       *flock
	payloads    *payloads
	budget      *budget
	room        func(bytes int64) error // for inputs; nil always has some
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
	// tokens are those of the claims under way.
	tokens tokens
	// background runs f beside the lanes, with a context that ends when the daemon
	// has no more time for it.
	background func(f func(context.Context))
}

// clock is the machine's: it tells the times that records have, and may jump. What
// is waited for in this process is not measured by it.
type clock func() time.Time

// now is the time as records keep it: UTC, whole microseconds.
func (c clock) now() time.Time { return c().UTC().Truncate(time.Microsecond) }

// until is how far a record's time is from now.
func (c clock) until(t time.Time) time.Duration { return t.Sub(c.now()) }

// lane is the way of jobs through one sheep. Its feeder claims jobs and prepares
// them; its worker sees to the runner and gives it one job at a time; its
// concluder puts results away and ends attempts, beside the runner's next job.
type lane struct {
	Member
	*services
	log   *slog.Logger
	dirs  workdirs
	share share // of the machine's devices

	state *laneState
	rests *rests
	// modelRests are the models that the sheep does not try for a while.
	modelRests modelRests
	turns      *turns
	known      *knownModels
	feeder     *feeder
	worker     *worker
	concluder  *concluder

	life *life
}

// life is a lane's part of the daemon's time. A lane that is stopped and started again
// has another one.
type life struct {
	leaving chan struct{} // closed when the runner is to be left up
	leave   func()        // closes it
	running sync.WaitGroup

	// transition is held by whoever ends the lane's work or lets it begin again.
	transition sync.Mutex
	over       bool // it does not begin again; guarded by transition

	mu   sync.Mutex
	ends ends
}

// ends end a lane's work.
type ends struct {
	feed  context.CancelCauseFunc // no more jobs are to be started
	work  context.CancelCauseFunc // running jobs are to be handed back
	ended <-chan struct{}         // closed when the feed has ended
}

func newLife() *life {
	leaving := make(chan struct{})
	nothing := func(error) {}
	return &life{leaving: leaving, leave: sync.OnceFunc(func() { close(leaving) }), ends: ends{feed: nothing, work: nothing, ended: context.Background().Done()}}
}

// begin makes the contexts that the ends end.
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

// start lets the lane work: its worker adopts what recover found, and its feeder
// claims jobs unless closing says that there are to be none.
func (l *lane) start(closing error) {
	feed, work := l.life.begin()
	if closing != nil {
		l.life.closeFeed(closing)
	}
	l.life.running.Go(func() { l.feeder.run(feed, work) })
	l.life.running.Go(func() { l.worker.run(feed, work) })
}

// wait returns when the lane has ended: its feed is over, the job that ran is
// ended, handed back or left to the runner, and the runner is gone or left up.
func (l *lane) wait() {
	l.life.running.Wait()
	l.life.closeFeed(errOver)
	l.life.interrupt(errOver)
}

// retire ends the lane: its job may finish for the time of drain. The caller tends the
// lane.
func (l *lane) retire(drain time.Duration, why error) {
	defer l.life.hurry(drain, why)()
	l.wait()
}

// hurry has no more jobs started, and those that run handed back after the time of
// drain, unless stop is called before.
func (l *life) hurry(drain time.Duration, why error) (stop func()) {
	ends := l.present() // the lane may be started again while the timer fires
	ends.feed(why)
	timer := time.AfterFunc(drain, func() { ends.work(why) })
	return func() { timer.Stop() }
}

// beginTransition returns once nobody else ends the lane's work or lets it begin, and done is
// called. Whoever is at it, and would wait longer for a job, waits no longer than drain.
func (l *life) beginTransition(drain time.Duration, why error) (done func()) {
	if !l.transition.TryLock() {
		stop := l.hurry(drain, why)
		l.transition.Lock()
		stop()
	}
	return l.transition.Unlock
}

// isLeaving says that the runner is to be left up, with the job it has.
func (l *lane) isLeaving() bool {
	select {
	case <-l.life.leaving:
		return true
	default:
		return false
	}
}

// nextModel is the model that the sheep will have loaded when what it has claimed
// is done.
func (l *lane) nextModel() job.Model {
	if a := l.feeder.holds(); a != nil {
		return a.Model
	}
	return l.state.model()
}

// admits says whether the lane may claim a job with this address.
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

// suits ranks the lane for a job with the model: idle before busy, and among
// those one with the model loaded, then one with none, then one with another, and
// last one whose devices are another sheep's.
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

// view is the sheep as clients see it.
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

// owner is the user that the runner of a model runs as, where the sheep can tell.
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

// happened tells the observer what happened to the runner.
func (l *lane) happened(event RunnerEvent) { l.observer.Runner(l.Name, event) }

// passed tells the observer of a phase that ends now, of the attempt or, where it
// is nil, of no job's. It reads of the claim only what does not change.
func (l *lane) passed(a *attempt, m job.Model, phase Phase, began time.Time, err error) time.Duration {
	p := Passage{Phase: phase, Sheep: l.Name, Model: m, Began: began, Ended: time.Now(), Err: err}
	if a != nil {
		p.Job, p.Trace, p.Run, p.Attempt = a.ID, a.Trace, a.Run, a.Attempt
	}
	l.observer.Passed(p)
	return p.Ended.Sub(began)
}

// traceOf is what a runner is told of the trace of the job that it has, or that it
// is started for.
func (l *lane) traceOf(a *attempt) job.Trace {
	if a == nil || a.Trace.IsZero() {
		return job.Trace{}
	}
	return l.tracer.Run(a.ID, a.Run, a.Attempt, a.Trace)
}
