package shepherd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/iterait/shepherd/internal/errtext"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/runtime"
)

// missingFor is how long a sheep does not claim jobs of a model that it did not find, while
// another sheep may have the model.
const missingFor = time.Minute

// maxModels bounds how many waiting models a sheep considers before it claims. A job of a
// model beyond the bound that the sheep cannot run is handed back after it was claimed.
const maxModels = 1000

// knownModels remembers which models a sheep searched for and did not find.
type knownModels struct {
	mu      sync.Mutex
	missing map[job.Model]missingModel
}

type missingModel struct {
	why   error
	until time.Time
}

func newKnownModels() *knownModels { return &knownModels{missing: make(map[job.Model]missingModel)} }

// miss records that the sheep does not have the model.
func (k *knownModels) miss(m job.Model, why error, now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for other, known := range k.missing {
		if now.After(known.until) {
			delete(k.missing, other)
		}
	}
	k.missing[m] = missingModel{why, now.Add(missingFor)}
}

// missed returns why the sheep does not have the model, or nil if that is not known.
func (k *knownModels) missed(m job.Model, now time.Time) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if known, ok := k.missing[m]; ok && now.Before(known.until) {
		return known.why
	}
	return nil
}

// cannot returns why the sheep cannot run the model, or nil if it can as far as is known
// without fetching anything.
func (l *lane) cannot(m job.Model) error {
	if err := l.objection(m); err != nil {
		return err
	}
	return l.known.missed(m, time.Now())
}

// objection is cannot without the memory of models that were not found.
func (l *lane) objection(m job.Model) error {
	if err := l.mayRun(m); err != nil {
		return err
	}
	if err := l.placement.check(m); err != nil {
		return err
	}
	if c, ok := l.Sheep.(runtime.ModelChecker); ok {
		if err := c.CheckModel(m); err != nil {
			return err
		}
	}
	if f, ok := l.Sheep.(runtime.ModelFinder); ok {
		if err := f.FindModel(m); err != nil {
			return err
		}
	}
	return nil
}

// elsewhere reports whether a sheep other than l may run an unaddressed job of the model.
// With now, sheep that are drained or whose devices failed do not count.
func (f *flock) elsewhere(l *lane, m job.Model, now bool) bool {
	for _, other := range f.all() {
		if other == l || other.state.isRemoved() || now && (other.state.isDrained() || other.share.admission() == job.NoJobs) {
			continue
		}
		if other.cannot(m) == nil {
			return true
		}
	}
	return false
}

// waitingAge is how long the list of waiting models may be reused by other lanes in the same
// round.
const waitingAge = 500 * time.Millisecond

// waitingCache holds the last list of waiting models read from the ledger. A job that
// becomes claimable later begins another round, so the lanes of one round can share one
// read.
type waitingCache struct {
	mu     sync.Mutex
	groups []ledger.Waiting
	round  int64
	at     time.Time // zero if there is no valid list
}

// get returns the list that was read in this round, if it is younger than waitingAge.
func (c *waitingCache) get(round int64) (groups []ledger.Waiting, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.groups, !c.at.IsZero() && c.round == round && time.Since(c.at) < waitingAge
}

// put stores what was read for the other lanes of the round.
func (c *waitingCache) put(groups []ledger.Waiting, round int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.groups, c.round, c.at = groups, round, time.Now()
}

// invalidate makes the next lane read from the ledger.
func (c *waitingCache) invalidate() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = time.Time{}
}

// waiting returns the waiting models that the lane has to consider before it claims. known
// is false if the lane may claim any job without looking.
func (f *flock) waiting(ctx context.Context, l *lane) (groups []ledger.Waiting, known bool, err error) {
	if l.peers == nil && len(f.all()) < 2 && len(l.placement.Rules) == 0 {
		return nil, false, nil
	}
	round := f.currentRound() // before the ledger is read
	if groups, known = f.waitingCache.get(round); known {
		return groups, true, nil
	}
	if groups, err = l.ledger.Waiting(ctx, maxModels); err != nil {
		return nil, false, err
	}
	f.waitingCache.put(groups, round)
	return groups, true, nil
}

// anyFor reports whether the slot could claim a job of one of the groups.
func anyFor(slot ledger.Slot, groups []ledger.Waiting) bool {
	return slices.ContainsFunc(groups, func(w ledger.Waiting) bool {
		may, own := slot.Answers(w.Sheep)
		return w.Rest || own || may && !slices.Contains(slot.Except, w.Model)
	})
}

// addresses returns the addresses of waiting jobs, besides the sheep's name, that the lane
// serves: own are those that only this sheep serves, open those that other sheep serve too.
func (l *lane) addresses(waiting []ledger.Waiting) (own, open []string) {
	for _, w := range waiting {
		if w.Sheep == "" || w.Sheep == l.Name || slices.Contains(own, w.Sheep) || slices.Contains(open, w.Sheep) {
			continue
		}
		switch may, mine := l.answers(w.Sheep); {
		case may && mine:
			own = append(own, w.Sheep)
		case may:
			open = append(open, w.Sheep)
		}
	}
	return own, open
}

// except returns the models that the lane must not claim: those that rest after a fault,
// those of waiting jobs that this sheep cannot run and another sheep or node may, and those
// that another node can run sooner. A model that nobody can run is not excluded: the lane
// that claims its job fails it with a reason. again is the time until one of the models may
// be claimed; 0 if unknown.
func (f *flock) except(ctx context.Context, l *lane, waiting []ledger.Waiting) (except []job.Model, again time.Duration) {
	except, again = l.modelRests.all(time.Now())
	for _, m := range f.leftToPeers(time.Now()) {
		if l.cannot(m) != nil {
			except = append(except, m)
		}
	}
	for _, w := range waiting {
		if named(w.Sheep) || w.Rest || slices.Contains(except, w.Model) {
			continue
		}
		if l.placement.check(w.Model) != nil || l.cannot(w.Model) != nil && f.elsewhere(l, w.Model, false) {
			except = append(except, w.Model)
			continue
		}
		if left := f.deferred(ctx, l, w); left > 0 {
			except, again = append(except, w.Model), sooner(again, left)
		}
	}
	return except, again
}

// sooner returns the shorter of two durations; 0 stands for never.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b > 0 && b < a {
		return b
	}
	return a
}

// asked lists the other sheep with the reason why each cannot run the model. It is empty if
// every other sheep can, or there is none.
func (f *flock) asked(l *lane, m job.Model) string {
	var others []string
	for _, other := range f.all() {
		if other == l || other.state.isRemoved() {
			continue
		}
		if err := other.cannot(m); err != nil {
			others = append(others, fmt.Sprintf("`%s`: %s", other.Name, reasonOf(err)))
		}
	}
	return strings.Join(others, "; ")
}

// reasonOf returns an error's text for clients.
func reasonOf(err error) string {
	var invalid *job.Invalid
	if errors.As(err, &invalid) {
		return invalid.Problem
	}
	return errtext.Of(err)
}
