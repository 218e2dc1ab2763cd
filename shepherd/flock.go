package shepherd

import (
	"context"
	"sync"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// flock is all lanes together. It decides which lane is woken for a job, and
// lets a lane that would be idle take over a job that another has only prepared.
type flock struct {
	ledger ledger.Ledger
	node   string
	budget *budget

	// claiming makes claims one after another: what a lane found free, or took
	// over, no other lane has meanwhile.
	claiming sync.Mutex

	mu    sync.Mutex
	lanes []*lane // in configured order; replaced as a whole; see all
	wakes int64   // counts wake calls, so that a lane about to sleep sees those it missed
}

// all are the lanes of the moment. The slice is not to be changed.
func (f *flock) all() []*lane {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lanes
}

// named returns the lane of that name, nil where there is none.
func (f *flock) named(name string) *lane {
	for _, l := range f.all() {
		if l.name == name {
			return l
		}
	}
	return nil
}

// takes says whether jobs may be addressed to a sheep.
func (f *flock) takes(name string) bool {
	l := f.named(name)
	return l != nil && !l.isRemoved()
}

// wake lets the lane that suits the job best look into the ledger. A zero record
// wakes all.
func (f *flock) wake(rec job.Record) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wakes++
	if rec.ID == "" {
		for _, l := range f.lanes {
			l.rouse()
		}
		return
	}
	var best *lane
	bestRank := -1
	for _, l := range f.lanes {
		if rec.Sheep != "" && rec.Sheep != l.name || !l.asleep || !l.admits(rec) {
			continue
		}
		if rank := l.suits(rec.Model); rank > bestRank {
			best, bestRank = l, rank
		}
	}
	if best != nil {
		best.rouse()
	}
}

// stir has the lane look into the ledger: it may take more than it could before.
func (f *flock) stir(l *lane) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wakes++
	l.rouse()
}

// next waits for a job for the lane and claims it. The error is ctx's.
func (f *flock) next(ctx context.Context, l *lane) (*ledger.Claim, error) {
	backoff := time.Second
	for {
		f.mu.Lock()
		seen := f.wakes
		f.mu.Unlock()

		claim, err := f.claim(ctx, l)
		if claim != nil {
			return claim, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		var retry <-chan time.Time
		if err != nil {
			l.log.Error("Cannot claim a job; trying again", "error", err)
			retry = time.After(backoff)
			backoff = min(2*backoff, 30*time.Second)
		} else {
			backoff = time.Second
		}

		f.mu.Lock()
		if err == nil && f.wakes != seen {
			f.mu.Unlock()
			continue
		}
		l.asleep = true
		f.mu.Unlock()
		l.feeder.waits()
		select {
		case <-ctx.Done():
		case <-l.woken:
		case <-l.idled: // it was busy and could only prepare; now it may take over
		case <-retry:
		}
		l.feeder.works()
		f.mu.Lock()
		l.asleep = false
		f.mu.Unlock()
		if ctx.Err() != nil {
			f.wake(job.Record{}) // what it was woken for is for the others
			return nil, ctx.Err()
		}
	}
}

// claim takes the next job by the ledger's order or, for an idle lane that the
// ledger has none for, one that a busy lane has prepared for itself.
func (f *flock) claim(ctx context.Context, l *lane) (*ledger.Claim, error) {
	f.claiming.Lock()
	defer f.claiming.Unlock()
	slot := ledger.Slot{Node: f.node, Sheep: l.name, Loaded: l.willHave(), Ahead: l.isBusy()}
	if !l.narrow(&slot) {
		return nil, nil
	}
	claim, err := f.ledger.Claim(ctx, slot)
	if claim != nil || err != nil || slot.Ahead {
		return claim, err
	}
	for _, other := range f.all() {
		if other == l || !other.mayGiveUp() {
			continue
		}
		if id := other.giveUp(ctx); id != "" {
			slot.Only = id
			return f.ledger.Claim(ctx, slot)
		}
	}
	return nil, nil
}

// budget counts the bytes that jobs prepared ahead take on disk.
type budget struct {
	limit int64 // 0: none
	mu    sync.Mutex
	used  int64
}

func newBudget(limit int64) *budget { return &budget{limit: limit} }

// left is how much one more job may take; 0 means any amount, and ok is false
// when nothing is left.
func (b *budget) left() (bytes int64, ok bool) {
	if b.limit == 0 {
		return 0, true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.limit - b.used, b.limit > b.used
}

func (b *budget) add(bytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used += bytes
}
