package shepherd

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/iterait/shepherd/job"
)

// The length of a sheep's first rest, and the maximum.
const (
	firstRest   = 250 * time.Millisecond
	longestRest = 30 * time.Second
)

// rests keeps a sheep from claiming after it could not prepare or start a job through no
// fault of the job. Each consecutive fault doubles the rest.
type rests struct {
	mu     sync.Mutex
	row    int // consecutive faults
	until  time.Time
	reason string
	ended  chan struct{} // closed when the rest is cut short
}

// fault records a fault and returns how long the sheep rests.
func (r *rests) fault(reason string, now time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Before(r.until) { // the job was claimed before the last fault
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

// succeeded records a success: the next fault counts as the first.
func (r *rests) succeeded() {
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

// left returns the remaining rest and its reason; 0 if the sheep does not rest.
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

// modelRests keeps a sheep from claiming jobs of models that it could not load because a
// dependency did not answer: a registry, a port, memory that another process holds. Jobs of
// other models continue. The zero value is ready to use.
type modelRests struct {
	mu     sync.Mutex
	models map[job.Model]*rests
}

// restsError is returned for a model that rests. reason is that of the last failed attempt.
type restsError struct{ reason string }

func (e *restsError) Error() string { return e.reason }

// forgetRest is how long after the end of a rest a further fault still counts as
// consecutive.
const forgetRest = 10 * time.Minute

// fault records that the model could not be loaded and returns how long it rests.
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

// left returns the model's remaining rest and its reason; 0 if it does not rest.
func (r *modelRests) left(m job.Model, now time.Time) (time.Duration, string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if rest := r.models[m]; rest != nil {
		return rest.left(now)
	}
	return 0, ""
}

// all returns the models that rest, and the time until the first of them ends; 0 if there is
// none.
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

// succeeded records that the model was loaded and used.
func (r *modelRests) succeeded(m job.Model) {
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
