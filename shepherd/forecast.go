package shepherd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/iterait/shepherd/forecast"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// Bounds of the input of a forecast, and of how often one is computed.
const (
	forecastJobs    = 2000 // oldest waiting jobs that are simulated
	forecastRunning = 1000
	forecastAge     = 2 * time.Second // maximum age while nothing changes
	forecastShare   = 20              // computing takes at most 1/forecastShare of the time
	peersAge        = 10 * time.Second
	// learnedJobs bounds the jobs of one model whose attempts are read to learn its
	// durations, learnedFirst the jobs listed for all models together.
	learnedJobs   = 16
	learnedFirst  = 512
	learnedModels = 4096 // models that are remembered as looked up
	pendingJobs   = 256  // jobs that ended on other nodes and were not read yet
)

// forecaster estimates when jobs start and end. It reads the ledger only on request and
// after a change, at a cost proportional to the waiting and running jobs. Without requests
// it only records the durations of this node's jobs.
type forecaster struct {
	env     *services
	fleet   Fleet // nil on a single node
	history forecast.History

	mu      sync.Mutex
	changed <-chan struct{} // closed when the ledger may have changed since it was read
	waiting []job.Record
	running []job.Record
	more    bool // more jobs wait than those in waiting
	readAt  time.Time
	made    *forecast.Forecast
	madeAt  time.Time
	cost    time.Duration // of computing the last forecast
	peers   map[string][]job.Sheep
	peersAt time.Time
	looked  map[job.Model]bool // models whose jobs were looked up in the ledger

	endedMu sync.Mutex
	ended   []endedJob // done on other nodes
}

// endedJob is a run of a job.
type endedJob struct {
	id    job.ID
	run   int
	model job.Model
}

func newForecaster(env *services, fleet Fleet) *forecaster {
	return &forecaster{env: env, fleet: fleet}
}

// note records the durations of a job that was done.
func (f *forecaster) note(m job.Model, p job.Phases) { f.history.Add(m, p.Run, p.Load) }

// onEvent records that a job was submitted, or done on another node. The durations of the
// latter are read on the next request.
func (f *forecaster) onEvent(e job.Event) {
	if e.Kind == job.EventQueued {
		f.history.Arrived(e.Model, e.At)
	}
	if e.Kind != job.EventEnded || e.State != job.Done || e.Node == "" || e.Node == f.env.node {
		return
	}
	f.endedMu.Lock()
	defer f.endedMu.Unlock()
	if len(f.ended) == pendingJobs {
		f.ended = f.ended[1:]
	}
	f.ended = append(f.ended, endedJob{e.Job, e.Run, e.Model})
}

// start returns when a waiting job is expected to start; ok is false if unknown. position is
// its place in the queue.
func (f *forecaster) start(ctx context.Context, id job.ID, position int) (_ job.Estimate, ok bool, err error) {
	made, more, err := f.get(ctx, id)
	if err != nil {
		return job.Estimate{}, false, err
	}
	if e, ok := made.Starts[id]; ok || made.Knows(id) || !more || position == 0 {
		return e, ok, nil
	}
	e, ok := made.Beyond(position)
	return e, ok, nil
}

// end returns when a running job is expected to end; ok is false if unknown.
func (f *forecaster) end(ctx context.Context, id job.ID) (_ job.Estimate, ok bool, err error) {
	made, _, err := f.get(ctx, id)
	if err != nil {
		return job.Estimate{}, false, err
	}
	e, ok := made.Ends[id]
	return e, ok, nil
}

// usual returns how long jobs of the model usually run; ok is false if unknown.
func (f *forecaster) usual(ctx context.Context, m job.Model) (_ job.Usual, ok bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.learn(ctx, []job.Model{m}); err != nil {
		return job.Usual{}, false, err
	}
	u, ok := f.history.Usual(m)
	return u, ok, nil
}

// get returns the current forecast; more is set if it does not cover all waiting jobs. The
// forecast is recomputed when it is old, and earlier if it does not cover the job.
func (f *forecaster) get(ctx context.Context, id job.ID) (_ *forecast.Forecast, more bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	age, changed := now.Sub(f.madeAt), isDone(f.changed)
	if f.made != nil {
		_, known := f.made.Ends[id]
		if known = known || f.made.Knows(id); known || !changed {
			changed = changed && age >= forecastShare*f.cost
		} else {
			changed = age >= f.cost
		}
		if !changed && age < forecastAge {
			return f.made, f.more, nil
		}
	}
	if changed {
		if err := f.read(ctx); err != nil {
			return nil, false, err
		}
	}
	f.made, f.madeAt = forecast.Simulate(f.state(), &f.history), now
	f.cost = time.Since(now)
	return f.made, f.more, nil
}

// isDone reports whether the channel is nil or closed.
func isDone(c <-chan struct{}) bool { return c == nil || closed(c) }

// read reads the waiting and running jobs. The caller holds f.mu.
func (f *forecaster) read(ctx context.Context) error {
	changed := f.env.ledger.Changed() // before reading, so that no change is missed
	waiting, next, err := f.env.ledger.List(ctx, ledger.Filter{States: []job.State{job.Queued}}, 0, forecastJobs)
	if err != nil {
		return fmt.Errorf("list the jobs that wait: %w", err)
	}
	running, _, err := f.env.ledger.List(ctx, ledger.Filter{States: []job.State{job.Processing}}, 0, forecastRunning)
	if err != nil {
		return fmt.Errorf("list the jobs that run: %w", err)
	}
	seen := make(map[job.Model]bool)
	var models []job.Model
	for _, rec := range slices.Concat(running, waiting) {
		if !seen[rec.Model] {
			seen[rec.Model] = true
			models = append(models, rec.Model)
		}
	}
	if err := f.learn(ctx, models); err != nil {
		return err
	}
	if err := f.readPeers(ctx); err != nil {
		return err
	}
	f.waiting, f.running, f.more, f.readAt, f.changed = waiting, running, next != 0, time.Now(), changed
	return nil
}

// learn reads the durations of the models about which nothing is known: first from the
// latest jobs of all models, then from a model's own. It also reads those of jobs done on
// other nodes. The caller holds f.mu.
func (f *forecaster) learn(ctx context.Context, models []job.Model) error {
	if f.looked == nil {
		if err := f.learnFrom(ctx, ledger.Filter{States: []job.State{job.Done}, Newest: true}); err != nil {
			return err
		}
		f.looked = make(map[job.Model]bool)
	}
	f.endedMu.Lock()
	ended := f.ended
	f.ended = nil
	f.endedMu.Unlock()
	for _, e := range ended {
		if err := f.learnJob(ctx, e.id, e.run, e.model); err != nil {
			return err
		}
	}
	for _, m := range models {
		if f.looked[m] || f.history.Known(m) {
			continue
		}
		if len(f.looked) == learnedModels {
			clear(f.looked)
		}
		if err := f.learnFrom(ctx, ledger.Filter{Model: m, Newest: true}); err != nil {
			return err
		}
		f.looked[m] = true
	}
	return nil
}

// learnFrom reads the durations of the latest jobs that match the filter.
func (f *forecaster) learnFrom(ctx context.Context, filter ledger.Filter) error {
	records, _, err := f.env.ledger.List(ctx, filter, 0, learnedFirst)
	if err != nil {
		return fmt.Errorf("list the jobs that were done: %w", err)
	}
	of := make(map[job.Model]int)
	kept := records[:0]
	for _, rec := range records {
		if of[rec.Model] < learnedJobs && rec.State == job.Done {
			of[rec.Model]++
			kept = append(kept, rec)
		}
	}
	for _, rec := range slices.Backward(kept) { // oldest first, so that the history keeps the newest longest
		if err := f.learnJob(ctx, rec.ID, rec.Run, rec.Model); err != nil {
			return err
		}
	}
	return nil
}

// learnJob reads the durations of one job.
func (f *forecaster) learnJob(ctx context.Context, id job.ID, run int, m job.Model) error {
	attempts, err := f.env.ledger.Attempts(ctx, id)
	if err != nil {
		return fmt.Errorf("read the attempts of job %s: %w", id, err)
	}
	for _, a := range attempts {
		if a.Run == run && a.Cause == job.CauseDone {
			f.note(m, a.Phases)
		}
	}
	return nil
}

// readPeers asks the other nodes for their sheep, at most every peersAge. Nodes that do not
// answer are left out. The caller holds f.mu.
func (f *forecaster) readPeers(ctx context.Context) error {
	if f.fleet == nil || f.env.peers == nil || time.Since(f.peersAt) < peersAge {
		return nil
	}
	names, err := f.env.peers.Peers(ctx, f.env.node)
	if err != nil {
		return fmt.Errorf("look up the other nodes: %w", err)
	}
	answers := make([][]job.Sheep, len(names))
	var asking sync.WaitGroup
	for i, name := range names {
		asking.Go(func() {
			sheep, err := f.fleet.Sheep(ctx, name)
			if err != nil {
				f.env.log.Debug("A node's sheep are left out of the forecast", "node", name, "error", err)
			}
			answers[i] = sheep
		})
	}
	asking.Wait()
	f.peers, f.peersAt = make(map[string][]job.Sheep), time.Now()
	for i, name := range names {
		f.peers[name] = answers[i]
	}
	return ctx.Err()
}

// place identifies a sheep of a node.
type place struct{ node, sheep string }

// state builds the simulation's input from what was read. The caller holds f.mu.
func (f *forecaster) state() forecast.State {
	s := forecast.State{Now: f.env.clock.now(), Ahead: f.env.stageAhead > 0, Turn: func(load time.Duration) time.Duration { return turnAfter(load, f.env.maxTurn) }}
	has, next := make(map[place]job.Record), make(map[place]job.Record)
	for _, rec := range f.running {
		has[place{rec.Node, rec.Holder}] = rec
	}
	for _, rec := range f.waiting {
		switch {
		case rec.Cancelling, rec.Blocked:
		case rec.Holder != "":
			next[place{rec.Node, rec.Holder}] = rec
		default:
			s.Jobs = append(s.Jobs, forecastJob(rec))
		}
	}
	add := func(node string, v job.Sheep, can func(job.Model) bool) {
		one := forecast.Sheep{Name: v.Name, Can: can, Closed: v.Condition != job.Able && v.Condition != job.Resting}
		if v.Running {
			one.Model = v.Model
			if !v.TurnEnds.IsZero() {
				one.TurnLeft = max(v.TurnEnds.Sub(s.Now), 0)
			}
		}
		if rec, ok := has[place{node, v.Name}]; ok {
			one.Current = &forecast.Current{ID: rec.ID, Model: rec.Model, For: s.Now.Sub(rec.StartedAt)}
			if v.Job == rec.ID && !v.RunningSince.IsZero() {
				one.Current.Running, one.Current.For = true, max(s.Now.Sub(v.RunningSince), 0)
				if v.Progress != nil && v.Progress.At.After(v.RunningSince) { // extrapolate the progress to now
					one.Current.Done = v.Progress.Done * float64(one.Current.For) / float64(v.Progress.At.Sub(v.RunningSince))
				}
			}
		}
		if rec, ok := next[place{node, v.Name}]; ok {
			one.Next = new(forecastJob(rec))
		}
		s.Sheep = append(s.Sheep, one)
	}
	lanes := f.env.flock.all()
	for _, l := range lanes {
		add(f.env.node, l.view(), func(m job.Model) bool { return l.cannot(m) == nil })
		last := &s.Sheep[len(s.Sheep)-1]
		last.After, _ = l.rests.left(time.Now())
		last.Closed = last.Closed || f.env.flock.drained.Load()
	}
	for node, sheep := range f.peers {
		for _, v := range sheep {
			add(node, v, func(m job.Model) bool { return f.peerCan(lanes, v.Type, m) })
		}
	}
	return s
}

// peerCan estimates whether another node's sheep of the type can run the model: it assumes
// that it can if a sheep of the same type of this node can, or there is none.
func (f *forecaster) peerCan(lanes []*lane, kind string, m job.Model) bool {
	if f.env.placement.check(m) != nil { // the rules place the model on other nodes
		return true
	}
	same := false
	for _, l := range lanes {
		if l.Type == kind {
			if same = true; l.cannot(m) == nil {
				return true
			}
		}
	}
	return !same
}

func forecastJob(rec job.Record) forecast.Job {
	return forecast.Job{ID: rec.ID, Model: rec.Model, Priority: rec.Priority, Address: rec.Sheep, NotBefore: rec.NotBefore}
}

// addForecast adds the expected start or end of the job to a view. Errors of the ledger leave it
// out.
func (r *reader) addForecast(ctx context.Context, view *job.View) {
	var e job.Estimate
	var ok bool
	var err error
	switch {
	case view.Cancelling:
	case view.State == job.Queued:
		e, ok, err = r.env.forecaster.start(ctx, view.ID, view.Position)
		if ok {
			view.ExpectedStart = &e
		}
	case view.State == job.Processing:
		e, ok, err = r.env.forecaster.end(ctx, view.ID)
		if ok {
			view.ExpectedEnd = &e
		}
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		r.log.Debug("No forecast for a job", "job", view.ID, "error", err)
	}
}

// Usual returns how long recent jobs of a model took; ok is false if none is known.
func (r *reader) Usual(ctx context.Context, m job.Model) (_ job.Usual, ok bool, err error) {
	return r.env.forecaster.usual(ctx, m)
}
