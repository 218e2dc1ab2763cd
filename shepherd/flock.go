package shepherd

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// flock is the set of all lanes. It decides in which order lanes look into the ledger when a
// job becomes claimable.
//
// Each change that may make a job claimable begins a round. In a round the sleeping lane
// that suits the job best looks first. After it has looked, whatever it found, it wakes the
// next lane that has not looked in this round. So no job is left while any lane could take
// it, and the best lane comes first.
type flock struct {
	mu    sync.Mutex
	lanes []*lane // in configured order; replaced as a whole, never modified
	round int64
	slots map[*lane]*sleepSlot
	order []*sleepSlot // of lanes, in their order
	// declined holds the models that no sheep of this node could run and that another node
	// may run, each with the time until which it is left to that node; see decline.
	declined     map[job.Model]time.Time
	deferrals    deferrals
	waitingCache waitingCache
	drained      atomic.Bool // the node is drained: no lane claims
}

// sleepSlot is the sleep state of one lane.
type sleepSlot struct {
	lane   *lane
	asleep bool
	looked int64 // the last round in which the lane looked
	woken  chan struct{}
}

func newFlock() *flock {
	return &flock{slots: make(map[*lane]*sleepSlot), declined: make(map[job.Model]time.Time)}
}

// all returns the current lanes. Callers must not change the slice.
func (f *flock) all() []*lane {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lanes
}

// set replaces the lanes.
func (f *flock) set(lanes []*lane) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lanes = lanes
	for l := range f.slots {
		if !contains(lanes, l) {
			delete(f.slots, l)
		}
	}
	f.order = make([]*sleepSlot, len(lanes))
	for i, l := range lanes {
		if f.slots[l] == nil {
			f.slots[l] = &sleepSlot{lane: l, woken: make(chan struct{}, 1)}
		}
		f.order[i] = f.slots[l]
	}
}

func contains(lanes []*lane, l *lane) bool {
	for _, other := range lanes {
		if other == l {
			return true
		}
	}
	return false
}

// named returns the lane with that name, or nil.
func (f *flock) named(name string) *lane {
	for _, l := range f.all() {
		if l.Name == name {
			return l
		}
	}
	return nil
}

// takes reports whether jobs may be addressed to the sheep.
func (f *flock) takes(name string) bool {
	l := f.named(name)
	return l != nil && !l.state.isRemoved()
}

// offer begins a round because a job with this model and address became claimable.
func (f *flock) offer(m job.Model, address string) {
	f.begin(func(l *lane) int {
		if may, _ := l.answers(address); !may || !l.admits(address) {
			return -1
		}
		return l.suits(m)
	})
}

// wakeFirst begins a round in which l looks first, because l can claim more than before.
func (f *flock) wakeFirst(l *lane) {
	f.begin(func(other *lane) int {
		if other == l {
			return 1
		}
		return 0
	})
}

// released begins a round in which idle lanes look first, because a job was released and
// jobs that waited for a limit may be claimable.
func (f *flock) released() {
	f.begin(func(l *lane) int {
		if l.state.busy() {
			return 0
		}
		return 1
	})
}

// prepared begins a round for the idle lanes, because l offers a job that it has only
// prepared. An idle lane that looked while the claim was under way found the job neither in
// the ledger nor with l.
func (f *flock) prepared(l *lane) {
	f.begin(func(other *lane) int {
		if other == l || other.state.busy() {
			return -1
		}
		return 1
	})
}

// begin begins a round and wakes the sleeping lane with the highest rank. Lanes with a rank
// below 0 are not woken.
func (f *flock) begin(rank func(*lane) int) {
	f.mu.Lock()
	f.round++
	lanes := f.sleeping()
	f.mu.Unlock()
	f.wakeBest(lanes, rank)
}

// pass records that l has looked in the round and wakes the next lane.
func (f *flock) pass(l *lane, round int64) {
	f.mu.Lock()
	if s := f.slots[l]; s != nil {
		s.looked = max(s.looked, round)
	}
	lanes := f.sleeping()
	f.mu.Unlock()
	f.wakeBest(lanes, func(other *lane) int {
		if other.state.busy() {
			return 0
		}
		return 1
	})
}

// sleeping returns the sleeping lanes that have not looked in this round. The caller holds
// f.mu.
func (f *flock) sleeping() []*lane {
	var lanes []*lane
	for _, s := range f.order {
		if s.asleep && s.looked < f.round {
			lanes = append(lanes, s.lane)
		}
	}
	return lanes
}

// skipRound records that no job waits, so that sleeping lanes need not look in the round.
func (f *flock) skipRound(round int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.order {
		if s.asleep {
			s.looked = max(s.looked, round)
		}
	}
}

// wakeBest ranks the lanes without holding f.mu, because ranking may take other locks.
func (f *flock) wakeBest(lanes []*lane, rank func(*lane) int) {
	var best *lane
	bestRank := -1
	for _, l := range lanes {
		if r := rank(l); r > bestRank {
			best, bestRank = l, r
		}
	}
	if best == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.slots[best]; s != nil {
		s.asleep = false
		select {
		case s.woken <- struct{}{}:
		default:
		}
	}
}

// currentRound returns the current round, for pass and sleep.
func (f *flock) currentRound() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.round
}

// sleep puts the lane to sleep, unless a round has begun since the one it looked in: then ok
// is false. woken receives when the lane has to look.
func (f *flock) sleep(l *lane, round int64) (woken <-chan struct{}, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.slots[l]
	if s == nil { // the lane was removed from the flock: nobody wakes it
		return nil, true
	}
	if f.round != round {
		return nil, false
	}
	select {
	case <-s.woken: // left from an earlier sleep
	default:
	}
	s.asleep = true
	return s.woken, true
}

func (f *flock) awake(l *lane) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.slots[l]; s != nil {
		s.asleep = false
	}
}

// yieldTime is how long a lane that handed a job over waits, so that others look first.
const yieldTime = 100 * time.Millisecond

// next waits for a job for the lane and claims it. With yields, other lanes look first. The
// error is ctx's.
func (f *flock) next(ctx context.Context, l *lane, yields bool) (*ledger.Claim, error) {
	failures := 0
	for {
		if err := l.rests.wait(ctx); err != nil {
			return nil, err
		}
		round := f.currentRound()
		var found claimResult
		var err error
		if !yields {
			found, err = f.claim(ctx, l)
		}
		if found.claim != nil || ctx.Err() != nil {
			f.pass(l, round)
			if found.claim == nil {
				err = ctx.Err()
			} else {
				err = nil
			}
			return found.claim, err
		}
		if found.noneWaiting {
			f.skipRound(round)
		} else {
			f.pass(l, round)
		}
		var again <-chan time.Time
		switch {
		case err != nil:
			failures++
			pause := min(time.Second<<min(failures-1, 5), 30*time.Second)
			l.log.Error("Cannot claim a job; retrying", "error", err, "pause", pause)
			again = time.After(pause)
		case yields:
			again = time.After(yieldTime)
		default:
			failures = 0
		}
		woken, ok := f.sleep(l, round)
		if !ok && again == nil {
			continue
		}
		if found.again > 0 && again == nil { // excluded models become claimable
			again = time.After(found.again)
		}
		yields = false
		l.feeder.pulse.waits()
		select {
		case <-ctx.Done():
		case <-woken:
		case <-l.state.freed: // the lane was busy and could only prepare a job; now it may take one over
		case <-again:
		}
		l.feeder.pulse.works()
		select {
		case <-l.state.freed: // the next iteration looks anyway
		default:
		}
		f.awake(l)
		if ctx.Err() != nil {
			f.pass(l, round) // leave what the lane was woken for to the others
			return nil, ctx.Err()
		}
	}
}

// claimResult is what a lane found when it looked for a job.
type claimResult struct {
	claim *ledger.Claim // nil for none
	again time.Duration // until the lane may claim jobs of excluded models; 0 if unknown
	// noneWaiting is set if no job waits, so that no other lane has to look in this round:
	// an idle node then reads the ledger once for a job that another node takes.
	noneWaiting bool
}

// claim claims the next job in the ledger's order. If there is none for an idle lane, it
// asks a busy lane to hand back a job that is only prepared; an event wakes the idle lane
// when that is done.
func (f *flock) claim(ctx context.Context, l *lane) (claimResult, error) {
	if f.drained.Load() || l.state.isDrained() {
		return claimResult{}, nil
	}
	now := time.Now()
	next := l.nextModel()
	slot := ledger.Slot{Node: l.node, Sheep: l.Name, Prefer: l.turns.prefer(next, now), Ahead: l.state.busy()}
	switch l.share.admission() {
	case job.NoJobs:
		return claimResult{}, nil
	case job.OwnJobs:
		slot.Addressed, slot.Ahead = true, true
	case job.AnyJobs: // the devices may not be free yet: claim to prepare only, so that an idle sheep may take the job over
		slot.Ahead = true
	}
	waiting, known, err := f.waiting(ctx, l)
	if err != nil {
		return claimResult{}, err
	}
	if known && len(waiting) == 0 && !l.feeder.unsure && !f.anyPrepared() {
		return claimResult{noneWaiting: true}, nil
	}
	var found claimResult
	slot.Except, found.again = f.except(ctx, l, waiting)
	slot.Own, slot.Open = l.addresses(waiting)
	if !known || l.feeder.unsure || anyFor(slot, waiting) {
		if found.claim, err = l.feeder.claim(ctx, slot); found.claim == nil {
			f.waitingCache.invalidate() // another lane or node was faster
		}
	}
	if err != nil || found.claim != nil {
		if found.claim != nil && slot.Prefer.IsZero() {
			l.turns.claimed(found.claim.Model, now)
		}
		return found, err
	}
	if slot.Ahead {
		return found, nil
	}
	for _, other := range f.all() {
		if other == l {
			continue
		}
		a := other.feeder.holds()
		if a == nil || !other.state.busy() && !other.feeder.waitsForDevices() || l.cannot(a.Model) != nil {
			continue
		}
		if left, _ := l.modelRests.left(a.Model, now); left > 0 {
			continue
		}
		if a.surrender() {
			break
		}
	}
	return found, nil
}

// anyPrepared reports whether a lane offers a job that another lane may take over.
func (f *flock) anyPrepared() bool {
	for _, l := range f.all() {
		if l.feeder.holds() != nil {
			return true
		}
	}
	return false
}

// budget counts the bytes that jobs prepared ahead take on disk.
type budget struct {
	limit int64 // 0 for no limit
	mu    sync.Mutex
	used  int64
}

// reserve reserves bytes for a job that is prepared ahead. The error is errBudget.
func (b *budget) reserve(bytes int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.limit > 0 && b.used+bytes > b.limit {
		return errBudget
	}
	b.used += bytes
	return nil
}

// free returns reserved bytes.
func (b *budget) free(bytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= bytes
}

func (b *budget) state() (used, limit int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used, b.limit
}

// errBudget is why a job's inputs are not staged ahead. Its class is errdefs.ErrResourceExhausted.
var errBudget = errdefs.ErrResourceExhausted.WithMessage("the inputs do not fit the budget for jobs prepared ahead")
