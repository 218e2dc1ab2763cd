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
	// Kept is how many recent durations of each model are kept: enough for quantiles, and
	// few enough to follow a model that becomes slower.
	Kept = 48
	// maxModels bounds the number of models; the least recently used one is dropped.
	maxModels = 512
	// arrivalWindow is the time span over which submissions are counted.
	arrivalWindow = 10 * time.Minute
)

// History records the durations of each model's jobs, and how often they are submitted. The
// zero History is empty. It is safe for concurrent use.
type History struct {
	mu     sync.Mutex
	models map[job.Model]*durations
	uses   int
	since  time.Time // when the first job arrived
}

// durations are the recent durations of one model.
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

// Add records the duration of a job, and of loading the model before it; 0 if the model was
// loaded already.
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

// Arrived records that a job of the model was submitted.
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

// pace returns the average time between recent submissions of jobs of the model, and their
// number; never and 0 if there were none.
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
	if of == 0 || window < time.Second { // a single burst does not predict a rate
		return never, 0
	}
	return window / time.Duration(of), of
}

// of returns the record of the model and marks it as used. The caller holds h.mu.
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

// forgetOldest drops the least recently used model. The caller holds h.mu.
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

// Usual returns the typical durations of the model's jobs; ok is false if none is known.
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

// sorted returns the model's durations in ascending order.
func (h *History) sorted(m job.Model) (runs, loads []time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.models[m]
	if d == nil {
		return nil, nil
	}
	return slices.Sorted(slices.Values(d.runs.values)), slices.Sorted(slices.Values(d.loads.values))
}

// pool returns the durations of all models, for models without any.
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
