package forecast

import (
	"math"
	"slices"
	"sync"
	"time"

	"github.com/iterait/shepherd/job"
)

// Bounds of a History.
const (
	// Kept is how many durations of each model are remembered, the last ones: enough
	// for their quantiles, and few enough to follow a model that becomes slower.
	Kept = 48
	// maxModels bounds the models that are remembered, the last ones that were used.
	maxModels = 512
	// arrivalWindow is the time of which arrivals are counted.
	arrivalWindow = 10 * time.Minute
)

// History remembers what jobs of each model took, and how often they come. The zero History is empty. Its methods
// may be called from any goroutine.
type History struct {
	mu     sync.Mutex
	models map[job.Model]*durations
	uses   int
	since  time.Time // when the first job arrived
}

// durations are the last ones of a model.
type durations struct {
	runs, loads ring
	arrivals    []time.Time // at most Kept, the oldest first
	used        int
}

// ring holds the last Kept values.
type ring struct {
	values []time.Duration
	next   int
}

func (r *ring) add(d time.Duration) {
	if len(r.values) < Kept {
		r.values = append(r.values, d)
		return
	}
	r.values[r.next] = d
	r.next = (r.next + 1) % Kept
}

// Add notes that a job of the model ran for so long, before which loading the model took
// load; 0 where it was loaded.
func (h *History) Add(m job.Model, run, load time.Duration) {
	if run <= 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.of(m)
	d.runs.add(run)
	if load > 0 {
		d.loads.add(load)
	}
}

// Arrived notes that a job of the model was submitted.
func (h *History) Arrived(m job.Model, at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.since.IsZero() {
		h.since = at
	}
	d := h.of(m)
	if len(d.arrivals) == Kept {
		copy(d.arrivals, d.arrivals[1:])
		d.arrivals = d.arrivals[:Kept-1]
	}
	d.arrivals = append(d.arrivals, at)
}

// pace is how much time passes from one job of the model to the next, on average, by those
// that were submitted lately; never where none were. How many is by how sure that is.
func (h *History) pace(m job.Model, now time.Time) (_ time.Duration, of int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.models[m]
	if d == nil {
		return never, 0
	}
	window := min(arrivalWindow, now.Sub(h.since))
	for _, at := range d.arrivals {
		if now.Sub(at) <= arrivalWindow {
			of++
		}
	}
	if of == Kept {
		window = now.Sub(d.arrivals[0])
	}
	if of == 0 || window < time.Second { // all at once says nothing of what is to come
		return never, 0
	}
	return window / time.Duration(of), of
}

// of is what is remembered of the model, which was used just now. The caller holds h.mu.
func (h *History) of(m job.Model) *durations {
	d := h.models[m]
	if d == nil {
		if h.models == nil {
			h.models = make(map[job.Model]*durations)
		}
		if len(h.models) == maxModels {
			h.forgetOldest()
		}
		d = new(durations)
		h.models[m] = d
	}
	h.uses++
	d.used = h.uses
	return d
}

// forgetOldest drops the model that was used the longest time ago. The caller holds h.mu.
func (h *History) forgetOldest() {
	var oldest job.Model
	used := math.MaxInt
	for m, d := range h.models {
		if d.used < used {
			oldest, used = m, d.used
		}
	}
	delete(h.models, oldest)
}

// Known reports whether the duration of any job of the model is known.
func (h *History) Known(m job.Model) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.models[m]
	return d != nil && len(d.runs.values) > 0
}

// Usual is how long jobs of the model usually take; ok is false where none is known.
func (h *History) Usual(m job.Model) (_ job.Usual, ok bool) {
	runs, loads := h.sorted(m)
	if len(runs) == 0 {
		return job.Usual{}, false
	}
	u := job.Usual{Jobs: len(runs), Low: quantile(runs, 0.1), Likely: quantile(runs, 0.5), High: quantile(runs, 0.9)}
	if len(loads) > 0 {
		u.Load = quantile(loads, 0.5)
	}
	return u, true
}

// sorted are the model's durations in ascending order.
func (h *History) sorted(m job.Model) (runs, loads []time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.models[m]
	if d == nil {
		return nil, nil
	}
	return slices.Sorted(slices.Values(d.runs.values)), slices.Sorted(slices.Values(d.loads.values))
}

// pool is durations of all models, for one of which nothing is known.
func (h *History) pool() (runs, loads []time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range h.models {
		runs, loads = append(runs, d.runs.values...), append(loads, d.loads.values...)
	}
	slices.Sort(runs)
	slices.Sort(loads)
	return runs, loads
}
