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

// missingFor is how long a sheep does not claim jobs of a model that it could not
// find, while another sheep may have it.
const missingFor = time.Minute

// maxModels bounds how many waiting models a sheep looks at before it claims. A
// job of one beyond them that it cannot run is handed back once it is claimed.
const maxModels = 1000

// knownModels remembers which models a sheep looked for and did not find.
type knownModels struct {
	mu      sync.Mutex
	missing map[job.Model]missingModel
}

type missingModel struct {
	why   error
	until time.Time
}

func newKnownModels() *knownModels { return &knownModels{missing: make(map[job.Model]missingModel)} }

// miss notes that the sheep does not have the model.
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

// missed says why the sheep does not have the model; nil where that is not known.
func (k *knownModels) missed(m job.Model, now time.Time) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if known, ok := k.missing[m]; ok && now.Before(known.until) {
		return known.why
	}
	return nil
}

// cannot says why the sheep cannot run the model; nil where it can, as far as is
// known without fetching anything.
func (l *lane) cannot(m job.Model) error {
	if err := l.objection(m); err != nil {
		return err
	}
	return l.known.missed(m, time.Now())
}

// objection says why the sheep cannot run the model, apart from models that were not found.
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

// elsewhere says whether a sheep other than l may run a job of the model that is
// addressed to none; with now, one that is not drained and whose devices are not out.
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

// waitingAge is for how long the groups of jobs that wait are good enough for other lanes
// that look in the same round.
const waitingAge = 500 * time.Millisecond

// waitingCache holds what was read of the jobs that wait. What can be claimed later begins another
// round, so the lanes that look in one need not all read it.
type waitingCache struct {
	mu     sync.Mutex
	groups []ledger.Waiting
	round  int64
	at     time.Time // zero where it is to be read
}

// get returns what was read less than waitingAge ago in a round.
func (c *waitingCache) get(round int64) (groups []ledger.Waiting, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.groups, !c.at.IsZero() && c.round == round && time.Since(c.at) < waitingAge
}

// put keeps what was read for the other lanes of the round.
func (c *waitingCache) put(groups []ledger.Waiting, round int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.groups, c.round, c.at = groups, round, time.Now()
}

// invalidate has the next lane read it again.
func (c *waitingCache) invalidate() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = time.Time{}
}

// waiting are the groups of jobs that wait, as far as the lane has to know them before
// it claims; known is false where it takes whatever comes.
func (f *flock) waiting(ctx context.Context, l *lane) (groups []ledger.Waiting, known bool, err error) {
	if l.peers == nil && len(f.all()) < 2 && len(l.placement.Rules) == 0 {
		return nil, false, nil
	}
	round := f.look() // before it is read
	if groups, known = f.waitingCache.get(round); known {
		return groups, true, nil
	}
	if groups, err = l.ledger.Waiting(ctx, maxModels); err != nil {
		return nil, false, err
	}
	f.waitingCache.put(groups, round)
	return groups, true, nil
}

// anyFor reports whether the slot could claim a job of the groups.
func anyFor(slot ledger.Slot, groups []ledger.Waiting) bool {
	return slices.ContainsFunc(groups, func(w ledger.Waiting) bool {
		may, own := slot.Answers(w.Sheep)
		return w.Rest || own || may && !slices.Contains(slot.Except, w.Model)
	})
}

// addresses are those of waiting jobs, beside the sheep's name, that the lane answers
// to: those that are its own, and those that other sheep answer to, too.
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

// except are the models that the sheep does not try now, and the waiting ones that
// it cannot run and another may, as a model of other nodes, or that other nodes can run
// sooner. A model that nobody can run is not among them: whoever claims its job says why
// it fails. The time is that until one of them may be tried; 0 where that is not known.
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

// sooner is the shorter of two times, of which 0 stands for never.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b > 0 && b < a {
		return b
	}
	return a
}

// asked names the other sheep and why each cannot run the model; empty where there
// are no others.
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

// reasonOf is an error's text for clients.
func reasonOf(err error) string {
	var invalid *job.Invalid
	if errors.As(err, &invalid) {
		return invalid.Problem
	}
	return errtext.Of(err)
}
