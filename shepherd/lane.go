package shepherd

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/storage"
)

// finishing is how many answered jobs of a sheep may be put away while its
// runner goes on with the next. It stays below messenger.MaxKept.
const finishing = 4

// lane is the way of jobs through one sheep. Its feeder claims and stages them;
// its worker sees to the runner and gives it one job at a time; what was
// answered is finished beside them, so that the runner need not wait for storage.
type lane struct {
	name     string
	typ      string
	dir      string // io_data_root: a directory per job
	sheep    runtime.Sheep
	devices  Devices // nil: it has none
	shepherd *Shepherd
	log      *slog.Logger

	open     context.Context // ends when no more jobs are to be started
	shut     context.CancelCauseFunc
	work     context.Context // ends when running jobs are to be handed back
	stopWork context.CancelCauseFunc
	parting  chan struct{} // closed when the runner is to be left up
	part     func()        // closes it

	feeder, worker pulse

	next    chan *assignment           // feeder → worker
	offered atomic.Pointer[assignment] // what the feeder holds out, for giveUp
	woken   chan struct{}
	idled   chan struct{}
	asleep  bool        // guarded by flock.mu
	waiting atomic.Bool // what is offered waits for devices

	runner      *runner // the worker's; nil when none is up
	crashes     crashes
	freed       time.Time     // when the runner had answered its last job; zero where it has had none
	idleTimeout time.Duration // 0: never
	idleSince   time.Time     // the worker's
	finishers   sync.WaitGroup
	slots       chan struct{} // one per job being finished
	running     sync.WaitGroup

	mu      sync.Mutex
	ending  map[job.ID]chan struct{} // jobs being finished; closed when nothing of one is left
	busy    bool                     // the worker has a job
	job     job.ID                   // the one the runner has
	tenant  string                   // whose that is
	loaded  job.Model                // what the runner has loaded, or is loading
	up      bool                     // the runner is up
	planned job.Model                // what it will have loaded when all claimed jobs are done
	detail  string
	removed bool          // the sheep is configured no more
	resting bool          // it was told to stop
	told    runtime.Stage // of loading, as the log was last told it
	toldAt  time.Time

	adopted *adoption // set by recover, taken by the worker
}

// assignment is a job claimed for a lane, on its way through it.
type assignment struct {
	ledger.Claim        // the worker's, once it has taken the job
	id           job.ID // what others may read of it meanwhile
	free         bool   // any sheep may run it
	dir          string // working directory
	ahead        bool
	owner        atomic.Int32  // offered, taken or given up
	gone         chan struct{} // closed when given up
	turn         chan struct{} // closed when the worker has taken it
	staged       chan struct{} // closed when staging has ended, as result and err say
	cancel       context.CancelFunc
	done         func()    // gives up the devices asked for; nil where there are none
	sent         time.Time // when the runner was given it
	result       storage.Staged
	err          error
	bytes        int64 // counted in the flock's budget
}

const (
	offeredByFeeder int32 = iota
	takenByWorker
	givenUp
)

func newLane(m Member, s *Shepherd) *lane {
	parting := make(chan struct{})
	return &lane{
		name: m.Name, typ: m.Type, sheep: m.Sheep, devices: m.Devices, idleTimeout: m.IdleTimeout, shepherd: s,
		parting: parting, part: sync.OnceFunc(func() { close(parting) }),
		dir:   filepath.Join(s.cfg.DataRoot, m.Name),
		log:   s.log.With("sheep", m.Name),
		next:  make(chan *assignment),
		woken: make(chan struct{}, 1),
		idled: make(chan struct{}, 1),
		slots: make(chan struct{}, finishing),

		ending: make(map[job.ID]chan struct{}),
	}
}

// enter gives the lane its part of the daemon's time. It comes before recover and
// start.
func (l *lane) enter(feed, work context.Context) {
	l.open, l.shut = context.WithCancelCause(feed)
	l.work, l.stopWork = context.WithCancelCause(work)
}

func (l *lane) start() {
	if l.devices != nil {
		l.devices.Notify(func() { l.shepherd.flock.stir(l) })
	}
	l.begins()
}

// begins lets feeder and worker go.
func (l *lane) begins() {
	l.running.Go(func() { l.feed(l.open) })
	l.running.Go(l.toil)
}

// wait returns when the lane has ended: its feed is over, the job that ran is
// finished, handed back or left to the runner, and the runner is gone or let go.
func (l *lane) wait() {
	l.running.Wait()
	l.shut(nil)
	l.stopWork(nil)
}

// isParting says that the runner is to be left up, with the job it has.
func (l *lane) isParting() bool {
	select {
	case <-l.parting:
		return true
	default:
		return false
	}
}

// feed claims jobs and holds each out to the worker, staged or being staged,
// until ctx ends.
func (l *lane) feed(ctx context.Context) {
	defer l.feeder.waits()
	for {
		if l.shepherd.cfg.StageAhead == 0 && !l.awaitIdle(ctx) {
			return
		}
		l.feeder.works()
		claim, err := l.shepherd.flock.next(ctx, l)
		if err != nil {
			return
		}
		a := l.assign(claim)
		l.offered.Store(a)
		if !l.offer(ctx, a) {
			return
		}
	}
}

func (l *lane) awaitIdle(ctx context.Context) bool {
	for l.isBusy() {
		l.feeder.waits()
		select {
		case <-ctx.Done():
			return false
		case <-l.idled:
		}
	}
	return ctx.Err() == nil
}

// assign begins to stage a claimed job. Staging ends with the job, not with the
// feeder: a running job's inputs are still wanted while the daemon drains.
func (l *lane) assign(c *ledger.Claim) *assignment {
	ctx, cancel := context.WithCancel(l.work)
	a := &assignment{
		Claim: *c, id: c.ID, free: c.Sheep == "", ahead: c.State == job.Queued, dir: filepath.Join(l.dir, string(c.ID)),
		gone: make(chan struct{}), turn: make(chan struct{}), staged: make(chan struct{}), cancel: cancel,
	}
	l.mu.Lock()
	l.planned = c.Model
	if !a.ahead {
		l.busy = true // the job is the worker's already, but for the hand-over
	}
	l.mu.Unlock()
	if !a.ahead {
		l.shepherd.mirror.note(c.ID)
	}
	l.logAssigned(a)
	l.running.Go(func() {
		defer close(a.staged)
		a.result, a.err = l.stage(ctx, a)
	})
	return a
}

// giveUp hands back the job that the feeder holds out, if any sheep may run it,
// and returns its id. The flock calls it for a lane that would be idle.
func (l *lane) giveUp(ctx context.Context) job.ID {
	a := l.offered.Load()
	if a == nil || !a.ahead || !a.free || !a.owner.CompareAndSwap(offeredByFeeder, givenUp) {
		return ""
	}
	close(a.gone)
	l.abandonWithin(ctx, a, "an idle sheep takes it over")
	return a.ID
}

// abandon hands a job that was not given to the runner back, unspent.
func (l *lane) abandon(a *assignment, why string) {
	ctx, cancel := context.WithTimeout(context.Background(), commitTime)
	defer cancel()
	l.abandonWithin(ctx, a, why)
}

func (l *lane) abandonWithin(ctx context.Context, a *assignment, why string) {
	a.cancel()
	<-a.staged
	l.clear(a)
	l.release(ctx, a, true, why)
}

// toil is the worker: it gives the runner one job after another until the feed
// ends, and then stops the runner.
func (l *lane) toil() {
	defer l.worker.waits()
	defer l.depart()
	l.worker.works()
	l.takeUp()
	for {
		l.becomeIdle()
		var ended <-chan struct{}
		var again <-chan time.Time
		if l.runner != nil {
			ended = l.runner.done
		} else if wait, model, ok := l.crashes.pending(time.Now()); ok && !l.crashes.left {
			l.show("crashed; starting again with " + model.String() + " in " + wait.Round(time.Millisecond).String())
			again = time.After(wait)
		}
		l.worker.waits()
		select {
		case <-l.open.Done():
			l.worker.works()
			return
		case a := <-l.next:
			l.worker.works()
			if a.owner.CompareAndSwap(offeredByFeeder, takenByWorker) {
				close(a.turn)
				l.run(a)
			}
			a.through()
		case <-ended:
			l.worker.works()
			l.lostIdle()
		case <-l.yield():
			l.worker.works()
			l.unload("its devices are needed for another sheep")
		case <-l.tired():
			l.worker.works()
			l.unload("no job for " + l.idleTimeout.String())
		case <-again:
			l.worker.works()
			l.revive()
		}
	}
}

// depart ends the worker: the runner goes, or is left to the next daemon.
func (l *lane) depart() {
	leave := l.runner != nil && l.isParting()
	if !leave {
		l.stopRunner()
	}
	l.worker.waits()
	l.finishers.Wait() // what was answered is acknowledged by the connection that goes
	l.worker.works()
	if leave {
		l.letGo()
	}
}

func (l *lane) becomeIdle() {
	l.mu.Lock()
	was := l.busy
	l.busy, l.job, l.tenant = false, "", ""
	l.mu.Unlock()
	if was {
		l.idleSince = time.Now()
	}
	if was && (l.shepherd.cfg.StageAhead == 0 || len(l.shepherd.flock.all()) > 1) {
		select {
		case l.idled <- struct{}{}:
		default:
		}
	}
}

func (l *lane) isBusy() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.busy
}

// willHave is the model the sheep will have loaded when what is claimed is done.
func (l *lane) willHave() job.Model {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.planned
}

// suits ranks the lane for a job with the model: idle before busy, and among
// those one with the model loaded, then one with none, then one with another, and
// last one whose devices are not at hand.
func (l *lane) suits(m job.Model) int {
	unload := l.admission() < job.AnyNow // another sheep's model goes first
	l.mu.Lock()
	defer l.mu.Unlock()
	rank := 0
	switch {
	case unload:
	case l.planned == m:
		rank = 3
	case l.planned.IsZero():
		rank = 2
	default:
		rank = 1
	}
	if !l.busy {
		rank += 4
	}
	return rank
}

// rouse wakes the feeder. The caller holds flock.mu.
func (l *lane) rouse() {
	l.asleep = false
	select {
	case l.woken <- struct{}{}:
	default:
	}
}

// show sets what the sheep's status says beyond the model and the job.
func (l *lane) show(detail string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.detail = detail
}

// remove says that the sheep is configured no more: no job may be addressed to it.
func (l *lane) remove() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.removed = true
}

func (l *lane) isRemoved() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.removed
}

func (l *lane) view() job.Sheep {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := job.Sheep{Name: l.name, Type: l.typ, Running: l.up, Job: l.job, Tenant: l.tenant, Detail: l.detail}
	if l.resting {
		v.Detail = "told to stop"
	}
	if l.removed {
		v.Detail = "configured no more; it ends with its job"
	}
	if l.up {
		v.Model = l.loaded
	}
	if v.Detail == "" && l.devices != nil {
		v.Detail = l.devices.State()
	}
	return v
}
