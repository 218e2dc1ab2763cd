package shepherd

import (
	"context"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/runtime"
)

// deferTime is how long the jobs of a model are left to nodes that are closer to the model:
// the shortest turn. After that, a sheep that has to load or fetch the model claims one, so
// that a queue that those nodes cannot keep up with is shared.
const deferTime = minTurn

// recheckInterval is how often a deferring sheep checks whether those nodes still have free sheep.
const recheckInterval = time.Second

// nearTime bounds the search for a model on this machine.
const nearTime = 3 * time.Second

// deferrals holds the models whose jobs the sheep of this node leave to other nodes, each
// with its oldest job and the start of the deferral.
type deferrals struct {
	mu     sync.Mutex
	models map[job.Model]deferral
}

type deferral struct{ oldest, since time.Time }

// since returns when the model's oldest job was first left to others. oldest, the job's time
// of submission, only identifies the job, so clocks do not matter.
func (l *deferrals) since(m job.Model, oldest, now time.Time) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	for other, known := range l.models {
		if now.Sub(known.since) > 2*deferTime {
			delete(l.models, other)
		}
	}
	known, ok := l.models[m]
	if !ok || !known.oldest.Equal(oldest) {
		known = deferral{oldest, now}
		if l.models == nil {
			l.models = make(map[job.Model]deferral)
		}
		l.models[m] = known
	}
	return known.since
}

// rest returns how long the model's jobs are still left to others; 0 if they are not.
func (l *deferrals) rest(m job.Model, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if known, ok := l.models[m]; ok {
		return max(deferTime-now.Sub(known.since), 0)
	}
	return 0
}

// deferred returns how long the lane leaves waiting jobs to other nodes that can run them
// sooner; 0 if it may claim them. It is at most deferTime by this machine's clock, and 0
// once the oldest job has waited that long by the ledger's clock.
func (f *flock) deferred(ctx context.Context, l *lane, w ledger.Waiting) time.Duration {
	if l.fleet == nil || l.clock.now().Sub(w.Oldest) >= deferTime || l.nextModel() == w.Model {
		return 0
	}
	there, err := l.fleet.Nearest(ctx, w.Model, job.ParseAddress(w.Sheep))
	if err != nil || there == job.ModelAway || there <= l.near(ctx, w.Model) {
		return 0
	}
	now := time.Now()
	return min(deferTime-now.Sub(f.deferrals.since(w.Model, w.Oldest, now)), recheckInterval)
}

// near returns how close a model is that the sheep has not loaded. Unknown counts as on
// disk.
func (l *lane) near(ctx context.Context, m job.Model) job.Nearness {
	if _, ok := l.Sheep.(runtime.Owner); !ok {
		return job.ModelOnDisk
	}
	ctx, cancel := context.WithTimeout(ctx, nearTime)
	defer cancel()
	if _, err := l.owner(ctx, m); errdefs.IsNotFound(err) {
		return job.ModelAway
	}
	return job.ModelOnDisk
}
