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

// flock is all lanes together. It decides in which order lanes look into the
// ledger when a job can be claimed.
//
// Each change that may let a job be claimed is a round. In a round the sleeping
// lane that suits the job best looks first; when it has looked, whatever it found,
// it wakes the next that has not looked in this round. So a job is not left while
// any lane could have it, and the best lane comes first.
type flock struct {
	mu    sync.Mutex
	lanes []*lane // in configured order; replaced as a whole; see all
	round int64
	seats map[*lane]*seat
	order []*seat // of lanes, in their order
	// declined are the models that no sheep of this node could run and that other
	// nodes have been left a job of; see decline.
	declined     map[job.Model]time.Time
	deferrals    deferrals
	waitingCache waitingCache
	drained      atomic.Bool // no lane claims
}

// seat is a lane's place among the sleeping.
type seat struct {
	lane   *lane
	asleep bool
	looked int64 // the last round in which it looked
	woken  chan struct{}
}

func newFlock() *flock {
	return &flock{seats: make(map[*lane]*seat), declined: make(map[job.Model]time.Time)}
}

// all are the present lanes. Callers must not change the slice.
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
	for l := range f.seats {
		if !contains(lanes, l) {
			delete(f.seats, l)
		}
	}
	f.order = make([]*seat, len(lanes))
	for i, l := range lanes {
		if f.seats[l] == nil {
			f.seats[l] = &seat{lane: l, woken: make(chan struct{}, 1)}
		}
		f.order[i] = f.seats[l]
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

// named returns the lane of that name, nil where there is none.
func (f *flock) named(name string) *lane {
	for _, l := range f.all() {
		if l.Name == name {
			return l
		}
	}
	return nil
}

// takes says whether jobs may be addressed to a sheep.
func (f *flock) takes(name string) bool {
	l := f.named(name)
	return l != nil && !l.state.isRemoved()
}

// offer begins a round: a job with this model and address can be claimed.
func (f *flock) offer(m job.Model, address string) {
	f.begin(func(l *lane) int {
		if may, _ := l.answers(address); !may || !l.admits(address) {
			return -1
		}
		return l.suits(m)
	})
}

// wakeFirst begins a round in which l looks first: it can claim more than before.
func (f *flock) wakeFirst(l *lane) {
	f.begin(func(other *lane) int {
		if other == l {
			return 1
		}
		return 0
	})
}

// released begins a round in which idle lanes look first: a job is held no more, so
// others that waited for a limit can be claimed.
func (f *flock) released() {
	f.begin(func(l *lane) int {
		if l.state.busy() {
			return 0
		}
		return 1
	})
}

// prepared begins a round for the idle lanes: l holds out a job that it only
// prepares. One of them may have looked while the claim was on its way, and have
// found the job neither in the ledger nor with l.
func (f *flock) prepared(l *lane) {
	f.begin(func(other *lane) int {
		if other == l || other.state.busy() {
			return -1
		}
		return 1
	})
}

// begin begins a round. The sleeping lane that rank puts highest is woken, none
// where it is below 0.
func (f *flock) begin(rank func(*lane) int) {
	f.mu.Lock()
	f.round++
	lanes := f.sleeping()
	f.mu.Unlock()
	f.wakeBest(lanes, rank)
}

// pass notes that l has looked in a round, and wakes the next.
func (f *flock) pass(l *lane, round int64) {
	f.mu.Lock()
	if s := f.seats[l]; s != nil {
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

// sleeping are the lanes that sleep and have not looked in this round. The caller
// holds f.mu.
func (f *flock) sleeping() []*lane {
	var lanes []*lane
	for _, s := range f.order {
		if s.asleep && s.looked < f.round {
			lanes = append(lanes, s.lane)
		}
	}
	return lanes
}

// over notes that no job waits, so that no lane that sleeps has to look in the round.
func (f *flock) over(round int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.order {
		if s.asleep {
			s.looked = max(s.looked, round)
		}
	}
}

// wakeBest ranks lanes without the lock: to ask a lane may take others.
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
	if s := f.seats[best]; s != nil {
		s.asleep = false
		select {
		case s.woken <- struct{}{}:
		default:
		}
	}
}

// look is the present round, for pass and sleep.
func (f *flock) look() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.round
}

// sleep puts the lane to sleep unless a round has begun since the one it looked
// in. The channel receives when it is to look.
func (f *flock) sleep(l *lane, round int64) (<-chan struct{}, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.seats[l]
	if s == nil { // it is not of the flock any more: nobody wakes it
		return nil, true
	}
	if f.round != round {
		return nil, false
	}
	select {
	case <-s.woken: // of an earlier sleep
	default:
	}
	s.asleep = true
	return s.woken, true
}

func (f *flock) awake(l *lane) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.seats[l]; s != nil {
		s.asleep = false
	}
}

// yieldTime is how long a lane that gave a job up for another leaves the others
// the first look.
const yieldTime = 100 * time.Millisecond

// next waits for a job for the lane and claims it. With yields, others look first.
// The error is ctx's.
func (f *flock) next(ctx context.Context, l *lane, yields bool) (*ledger.Claim, error) {
	failures := 0
	for {
		if err := l.rests.wait(ctx); err != nil {
			return nil, err
		}
		round := f.look()
		var found find
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
		if found.nothing {
			f.over(round)
		} else {
			f.pass(l, round)
		}
		var again <-chan time.Time
		switch {
		case err != nil:
			failures++
			pause := min(time.Second<<min(failures-1, 5), 30*time.Second)
			l.log.Error("Cannot claim a job; trying again", "error", err, "pause", pause)
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
		if found.again > 0 && again == nil { // then it may claim more
			again = time.After(found.again)
		}
		yields = false
		l.feeder.pulse.waits()
		select {
		case <-ctx.Done():
		case <-woken:
		case <-l.state.freed: // it was busy and could only prepare; now it may take a job over
		case <-again:
		}
		l.feeder.pulse.works()
		select {
		case <-l.state.freed: // the look that follows answers this, too
		default:
		}
		f.awake(l)
		if ctx.Err() != nil {
			f.pass(l, round) // what it was woken for is for the others
			return nil, ctx.Err()
		}
	}
}

// find is what a lane found when it looked for a job.
type find struct {
	claim *ledger.Claim // nil for none
	again time.Duration // until the lane may claim jobs that it leaves now; 0 where that is not known
	// nothing says that no job waits, so that no other lane has to look in this round: a node
	// of an idle fleet looks once for a job that another node takes.
	nothing bool
}

// claim takes the next job by the ledger's order. An idle lane that the ledger has
// none for asks a busy one to hand back a job that it has only prepared: an event
// wakes the idle lane when that is done.
func (f *flock) claim(ctx context.Context, l *lane) (find, error) {
	if f.drained.Load() || l.state.isDrained() {
		return find{}, nil
	}
	now := time.Now()
	next := l.nextModel()
	slot := ledger.Slot{Node: l.node, Sheep: l.Name, Prefer: l.turns.prefer(next, now), Ahead: l.state.busy()}
	switch l.share.admission() {
	case job.NoJobs:
		return find{}, nil
	case job.OwnJobs:
		slot.Addressed, slot.Ahead = true, true
	case job.AnyJobs: // it may have to wait for its devices: any sheep that would be idle may take the job over
		slot.Ahead = true
	}
	waiting, known, err := f.waiting(ctx, l)
	if err != nil {
		return find{}, err
	}
	if known && len(waiting) == 0 && !l.feeder.unsure && !f.anyPrepared() {
		return find{nothing: true}, nil
	}
	var found find
	slot.Except, found.again = f.except(ctx, l, waiting)
	slot.Own, slot.Open = l.addresses(waiting)
	if !known || l.feeder.unsure || anyFor(slot, waiting) {
		if found.claim, err = l.feeder.claim(ctx, slot); found.claim == nil {
			f.waitingCache.invalidate() // others were quicker
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

// anyPrepared reports whether a lane holds out a job that another may take over.
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
	limit int64 // 0: none
	mu    sync.Mutex
	used  int64
}

// reserve takes room for a job that is prepared ahead. The error is of class
// errdefs.ErrResourceExhausted.
func (b *budget) reserve(bytes int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.limit > 0 && b.used+bytes > b.limit {
		return errBudget
	}
	b.used += bytes
	return nil
}

// free gives back what was reserved.
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

// errBudget is why a job's inputs are not staged ahead of its turn.
var errBudget = errdefs.ErrResourceExhausted.WithMessage("the inputs do not fit the budget for jobs prepared ahead")
