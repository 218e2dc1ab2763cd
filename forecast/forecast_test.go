package forecast_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/iterait/shepherd/forecast"
	"github.com/iterait/shepherd/job"
)

var (
	now  = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	a, b = job.Model{Name: "a", Version: "1"}, job.Model{Name: "b", Version: "1"}
)

// minutes is a history of models whose jobs take a minute and that load in 10 s, of so
// many jobs that there is no doubt.
func minutes(models ...job.Model) *forecast.History {
	h := new(forecast.History)
	for range forecast.Kept {
		for _, m := range models {
			h.Add(m, time.Minute, 10*time.Second)
		}
	}
	return h
}

func every(job.Model) bool { return true }

func turn(time.Duration) time.Duration { return 2 * time.Minute }

func waits(id string, m job.Model, more ...func(*forecast.Job)) forecast.Job {
	j := forecast.Job{ID: job.ID(id), Model: m}
	for _, f := range more {
		f(&j)
	}
	return j
}

func TestSimulate(t *testing.T) {
	to := func(sheep string) func(*forecast.Job) { return func(j *forecast.Job) { j.Address = sheep } }
	urgent := func(j *forecast.Job) { j.Priority = 1 }
	next := waits("next", a)
	for _, c := range []struct {
		name    string
		sheep   []forecast.Sheep
		jobs    []forecast.Job
		history *forecast.History
		// want is when jobs start; -1 for those of which nothing can be said.
		want map[job.ID]time.Duration
	}{
		{
			name:  "one after the other, the model loaded once",
			sheep: []forecast.Sheep{{Name: "s", Can: every}},
			jobs:  []forecast.Job{waits("1", a), waits("2", a), waits("3", a)},
			want:  map[job.ID]time.Duration{"1": 0, "2": 70 * time.Second, "3": 130 * time.Second},
		}, {
			name:  "on as many sheep as there are",
			sheep: []forecast.Sheep{{Name: "s", Can: every, Model: a}, {Name: "t", Can: every, Model: a}},
			jobs:  []forecast.Job{waits("1", a), waits("2", a), waits("3", a), waits("4", a)},
			want:  map[job.ID]time.Duration{"1": 0, "2": 0, "3": time.Minute, "4": time.Minute},
		}, {
			name:  "a job that runs has a part of its time left",
			sheep: []forecast.Sheep{{Name: "s", Can: every, Model: a, Current: &forecast.Current{ID: "0", Model: a, Running: true, For: 45 * time.Second}}},
			jobs:  []forecast.Job{waits("1", a)},
			want:  map[job.ID]time.Duration{"1": 15 * time.Second},
		}, {
			name:  "or what its runner says",
			sheep: []forecast.Sheep{{Name: "s", Can: every, Model: a, Current: &forecast.Current{ID: "0", Model: a, Running: true, For: 90 * time.Second, Done: 0.9}}},
			jobs:  []forecast.Job{waits("1", a)},
			want:  map[job.ID]time.Duration{"1": 10 * time.Second},
		}, {
			name:  "a model that is being loaded",
			sheep: []forecast.Sheep{{Name: "s", Can: every, Current: &forecast.Current{ID: "0", Model: a, For: 4 * time.Second}}},
			jobs:  []forecast.Job{waits("1", a)},
			want:  map[job.ID]time.Duration{"1": 66 * time.Second},
		}, {
			name:  "the job that a sheep has prepared is its next",
			sheep: []forecast.Sheep{{Name: "s", Can: every, Model: a, Next: &next, Current: &forecast.Current{ID: "0", Model: a, Running: true, For: 45 * time.Second}}},
			jobs:  []forecast.Job{waits("1", a, urgent)},
			want:  map[job.ID]time.Duration{"next": 15 * time.Second, "1": 75 * time.Second},
		}, {
			name: "unless an idle sheep takes it over",
			sheep: []forecast.Sheep{
				{Name: "s", Can: every, Model: a, Next: &next, Current: &forecast.Current{ID: "0", Model: a, Running: true, For: 15 * time.Second}},
				{Name: "t", Can: every},
			},
			want: map[job.ID]time.Duration{"next": 0},
		}, {
			name:  "priority, then the model that is loaded while its turn lasts, then age",
			sheep: []forecast.Sheep{{Name: "s", Can: every, Model: a, TurnLeft: time.Hour}},
			jobs:  []forecast.Job{waits("old", b), waits("loaded", a), waits("urgent", b, urgent)},
			// The model is b when the urgent job is through, and with it the turn.
			want: map[job.ID]time.Duration{"urgent": 0, "old": 70 * time.Second, "loaded": 130 * time.Second},
		}, {
			name:  "a turn ends",
			sheep: []forecast.Sheep{{Name: "s", Can: every, Model: a, TurnLeft: 90 * time.Second}},
			jobs:  []forecast.Job{waits("old", b), waits("1", a), waits("2", a), waits("3", a)},
			want:  map[job.ID]time.Duration{"1": 0, "2": time.Minute, "old": 2 * time.Minute, "3": 190 * time.Second},
		}, {
			name:  "addresses, and what sheep can run",
			sheep: []forecast.Sheep{{Name: "s", Can: func(m job.Model) bool { return m == b }, Model: b}, {Name: "t", Can: every, Model: a, After: 5 * time.Second}},
			jobs:  []forecast.Job{waits("1", a), waits("2", a, to("s")), waits("3", a, to("nobody"))},
			want:  map[job.ID]time.Duration{"1": 5 * time.Second, "2": 0, "3": -1},
		}, {
			name:  "sheep that take no jobs",
			sheep: []forecast.Sheep{{Name: "s", Can: every, Closed: true}},
			jobs:  []forecast.Job{waits("1", a)},
			want:  map[job.ID]time.Duration{"1": -1},
		}, {
			name:  "a time before which a job does not start",
			sheep: []forecast.Sheep{{Name: "s", Can: every, Model: a}},
			jobs:  []forecast.Job{waits("late", a, func(j *forecast.Job) { j.NotBefore = now.Add(time.Hour) }), waits("1", a)},
			want:  map[job.ID]time.Duration{"late": time.Hour, "1": 0},
		}, {
			name:    "nothing is known of any job",
			sheep:   []forecast.Sheep{{Name: "s", Can: every}},
			jobs:    []forecast.Job{waits("1", a), waits("2", a)},
			history: new(forecast.History),
			want:    map[job.ID]time.Duration{"1": 0, "2": -1},
		}, {
			name: "no sheep at all",
			jobs: []forecast.Job{waits("1", a)},
			want: map[job.ID]time.Duration{"1": -1},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := c.history
			if h == nil {
				h = minutes(a, b)
			}
			f := forecast.Simulate(forecast.State{Now: now, Sheep: c.sheep, Jobs: c.jobs, Turn: turn}, h)
			for id, want := range c.want {
				e, ok := f.Starts[id]
				if !f.Knows(id) || ok != (want >= 0) {
					t.Errorf("%s: %+v, %t", id, e, ok)
					continue
				}
				// Durations of a model are in doubt by a few percent whatever is known.
				if off := (e.Likely.Sub(now) - want).Abs(); ok && off > want/6+time.Second {
					t.Errorf("%s is expected to start after %v, not %v", id, e.Likely.Sub(now), want)
				}
				if e.Earliest.After(e.Likely) || e.Likely.After(e.Latest) {
					t.Errorf("%s: the range is %+v", id, e)
				}
			}
		})
	}
}

// The less is known the wider is what is told.
func TestRange(t *testing.T) {
	width := func(h *forecast.History) time.Duration {
		s := forecast.State{Now: now, Turn: turn, Sheep: []forecast.Sheep{{Name: "s", Can: every, Model: a}}, Jobs: []forecast.Job{waits("1", a), waits("2", a), waits("3", a)}}
		e := forecast.Simulate(s, h).Starts["3"]
		return e.Latest.Sub(e.Earliest)
	}
	one, other := new(forecast.History), new(forecast.History)
	one.Add(a, time.Minute, time.Second)
	other.Add(b, time.Minute, time.Second)
	if sure, unsure, guess := width(minutes(a)), width(one), width(other); sure <= 0 || unsure < 2*sure || guess <= unsure {
		t.Errorf("the range is %v wide with many jobs, %v with one, and %v with another model's", sure, unsure, guess)
	}
	if at := forecast.Simulate(forecast.State{Now: now, Turn: turn}, one); len(at.Starts)+len(at.Ends) > 0 {
		t.Errorf("of nothing %+v is said", at)
	}
}

// A job that takes longer than any before is expected to go on for a while.
func TestOverdue(t *testing.T) {
	s := forecast.State{Now: now, Turn: turn, Sheep: []forecast.Sheep{{Name: "s", Can: every, Model: a, Current: &forecast.Current{ID: "0", Model: a, Running: true, For: time.Hour}}}}
	e, ok := forecast.Simulate(s, minutes(a)).Ends["0"]
	if left := e.Likely.Sub(now); !ok || left < 3*time.Minute || left > 30*time.Minute {
		t.Errorf("after an hour in place of a minute it is expected to take %v more (%t)", left, ok)
	}
}

// Jobs that come later and go first, as their model is loaded, are expected from how often
// they came.
func TestArrivals(t *testing.T) {
	start := func(arrivals int) time.Duration {
		h := minutes(a, b)
		for i := range arrivals {
			h.Arrived(a, now.Add(time.Duration(i-arrivals)*20*time.Second))
		}
		s := forecast.State{
			Now: now, Turn: turn, Jobs: []forecast.Job{waits("other", b)},
			Sheep: []forecast.Sheep{{Name: "s", Can: every, Model: a, TurnLeft: 10 * time.Minute, Current: &forecast.Current{ID: "0", Model: a, Running: true, For: time.Second}}},
		}
		return forecast.Simulate(s, h).Starts["other"].Likely.Sub(now)
	}
	if quiet, busy := start(0), start(30); quiet > 90*time.Second || busy < 5*time.Minute {
		t.Errorf("it is expected to start after %v while nothing comes, and after %v while jobs of the model come", quiet, busy)
	}
}

// The history follows what changes, and is bounded.
func TestHistory(t *testing.T) {
	h := new(forecast.History)
	if _, ok := h.Usual(a); ok || h.Known(a) {
		t.Error("something is known of nothing")
	}
	h.Add(a, 0, time.Second) // it did not run
	if h.Known(a) {
		t.Error("a job that did not run is remembered")
	}
	for i := range 10 {
		h.Add(a, time.Duration(i+1)*time.Second, 0)
	}
	if u, ok := h.Usual(a); !ok || u != (job.Usual{Jobs: 10, Low: 2 * time.Second, Likely: 6 * time.Second, High: 9 * time.Second}) {
		t.Errorf("usual %+v", u)
	}
	for range 2 * forecast.Kept {
		h.Add(a, time.Hour, 3*time.Second)
	}
	if u, _ := h.Usual(a); u.Jobs != forecast.Kept || u.Low != time.Hour || u.Load != 3*time.Second {
		t.Errorf("afterwards %+v", u)
	}
	for i := range 600 {
		h.Add(job.Model{Name: fmt.Sprint(i)}, time.Second, 0)
	}
	if h.Known(a) || !h.Known(job.Model{Name: "599"}) {
		t.Error("the models that were used long ago are not those that are forgotten")
	}
}

// A place behind all that was simulated is extrapolated.
func TestBeyond(t *testing.T) {
	f := forecast.Simulate(queue(100, 1, 1))
	last := f.Starts["job-99"].Likely
	e, ok := f.Beyond(200)
	if in, want := e.Likely.Sub(now), 2*last.Sub(now); !ok || in < want*9/10 || in > want*11/10 || e.Earliest.After(e.Likely) || e.Latest.Before(e.Likely) {
		t.Errorf("number 200 is expected after %v, not about %v: %+v", in, want, e)
	}
	if _, ok := forecast.Simulate(queue(0, 1, 1)).Beyond(7); ok {
		t.Error("an empty queue says when its seventh job starts")
	}
}
