package shepherd

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/iterait/shepherd/job"
)

// How long a sheep rests after its first fault, and at most.
const (
	firstRest   = 250 * time.Millisecond
	longestRest = 30 * time.Second
)

// rests keeps a sheep from claiming after it could not prepare or start a job for
// a reason that is not the job's, for longer after each such fault in a row.
type rests struct {
	mu     sync.Mutex
	row    int // faults in a row
	until  time.Time
	reason string
	ended  chan struct{} // closed when the rest is cut short
}

// fault notes a fault and returns how long the sheep rests.
func (r *rests) fault(reason string, now time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Before(r.until) { // of a job that was claimed before the last fault
		r.reason = reason
		return r.until.Sub(now)
	}
	pause := firstRest
	for range r.row {
		if pause = 2 * pause; pause >= longestRest {
			pause = longestRest
			break
		}
	}
	r.row++
	r.until, r.reason = now.Add(pause), reason
	r.ended = make(chan struct{})
	return pause
}

// well notes that the sheep did a job: the next fault is the first.
func (r *rests) well() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.row = 0
}

// wake ends the rest at once.
func (r *rests) wake() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.row = 0
	if r.ended != nil {
		close(r.ended)
		r.ended = nil
	}
	r.until, r.reason = time.Time{}, ""
}

// left is how long the sheep still rests, and why; 0 where it does not.
func (r *rests) left(now time.Time) (time.Duration, string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !now.Before(r.until) {
		return 0, ""
	}
	return r.until.Sub(now), r.reason
}

// wait returns when the sheep does not rest, or with ctx's error.
func (r *rests) wait(ctx context.Context) error {
	for {
		left, _ := r.left(time.Now())
		if left == 0 {
			return ctx.Err()
		}
		r.mu.Lock()
		ended := r.ended
		r.mu.Unlock()
		timer := time.NewTimer(left)
		select {
		case <-timer.C:
		case <-ended:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// modelRests keeps a sheep from claiming jobs of models that it could not load
// because what they need does not answer: a registry, a port, memory that somebody
// else has. The jobs of others go on. The zero value is ready.
type modelRests struct {
	mu     sync.Mutex
	models map[job.Model]*rests
}

// restsError says that the sheep does not try a model now, and why: it is the reason
// of the attempt that failed last.
type restsError struct{ reason string }

func (e *restsError) Error() string { return e.reason }

// forgetRest is how long after its rest a model's faults count as in a row.
const forgetRest = 10 * time.Minute

// fault notes that the model could not be loaded, and returns for how long the sheep
// does not try again.
func (r *modelRests) fault(m job.Model, reason string, now time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	for other, rest := range r.models {
		if other != m && now.After(rest.until.Add(forgetRest)) {
			delete(r.models, other)
		}
	}
	if r.models == nil {
		r.models = make(map[job.Model]*rests)
	}
	if r.models[m] == nil {
		r.models[m] = new(rests)
	}
	return r.models[m].fault(reason, now)
}

// left is for how long the sheep does not try the model, and why; 0 where it may.
func (r *modelRests) left(m job.Model, now time.Time) (time.Duration, string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if rest := r.models[m]; rest != nil {
		return rest.left(now)
	}
	return 0, ""
}

// all are the models that the sheep does not try now, and the time until it tries
// the first of them again; 0 where there is none.
func (r *modelRests) all(now time.Time) (models []job.Model, next time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for m, rest := range r.models {
		left, _ := rest.left(now)
		if left == 0 {
			continue
		}
		models = append(models, m)
		if next == 0 || left < next {
			next = left
		}
	}
	slices.SortFunc(models, func(a, b job.Model) int { return strings.Compare(a.String(), b.String()) })
	return models, next
}

// well notes that the sheep has the model.
func (r *modelRests) well(m job.Model) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.models, m)
}

// wake ends all rests.
func (r *modelRests) wake() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.models = nil
}
