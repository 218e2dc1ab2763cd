package shepherd

import (
	"cmp"
	"strings"
	"sync"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
)

// laneState is what a lane shows of itself to those outside its feeder and worker.
type laneState struct {
	mu      sync.Mutex
	current currentJob // the worker's
	told    told
	loaded  job.Model // what the runner has loaded, or is loading
	up      bool      // the runner is up
	ahead   job.Model // what is loaded without a job that wants it
	adopts  bool      // the worker still adopts what an earlier daemon left
	revives job.Model // it starts a crashed runner again, with this model
	detail  string
	pull    *job.PullProgress // that detail tells of; nil for none
	removed bool              // the sheep is configured no more
	stopped bool              // it was told to stop
	drained bool              // it was told to claim no more jobs
	restart bool              // it was told to end its runner, and goes on after that

	stage   runtime.Stage // of loading, as the log was last told it
	stageAt time.Time

	// freed receives when the worker becomes idle; it is the feeder's to read.
	freed chan struct{}
	// resumed receives when the sheep is drained no more; it is the worker's to read.
	resumed chan struct{}
	taken   chan struct{} // closed when the worker becomes busy, where somebody waits for that
}

func newLaneState() *laneState {
	return &laneState{freed: make(chan struct{}, 1), resumed: make(chan struct{}, 1)}
}

// currentJob is the job that a worker has; zero while it is idle.
type currentJob struct {
	id           job.ID
	run, attempt int
	tenant       string
	model        job.Model
	since        time.Time // when the runner began with it; zero while it has not
}

// told is what a runner, or its shim, told of the job that it was given last.
type told struct {
	job      job.ID
	span     string // where its log begins, see runtime.JobLogger
	progress *job.Progress
	warning  string              // what happened to the runner meanwhile
	followed []func(span string) // by those who follow its log
}

// begin says that the worker has a job. end says that it can take one; it reports
// whether it could not before.
func (s *laneState) begin(a *attempt) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current = currentJob{id: a.ID, run: a.Run, attempt: a.Attempt, tenant: a.Tenant, model: a.Model}
	if !a.adopted || s.told.job != a.ID { // of that one its runner may have told already
		s.told = told{}
	}
	s.takeUp()
}

// takeUp tells those who wait that the worker is busy. The caller holds s.mu.
func (s *laneState) takeUp() {
	if s.taken != nil {
		close(s.taken)
		s.taken = nil
	}
}

// idle returns a channel that is closed when the worker becomes busy; nil where it is.
func (s *laneState) idle() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isBusy() {
		return nil
	}
	if s.taken == nil {
		s.taken = make(chan struct{})
	}
	return s.taken
}

// running says since when the runner has the worker's job.
func (s *laneState) running(id job.ID, since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current.id == id {
		s.current.since = since
	}
}

// tell notes what a runner told, and returns it as an event of the job that the
// worker has; ok is false where it is of no interest to others.
func (s *laneState) tell(e messenger.Event) (_ job.Event, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := job.Event{At: e.Time, Job: e.JobID, Run: s.current.run, Attempt: s.current.attempt, Model: s.current.model, Tenant: s.current.tenant, State: job.Processing}
	switch e.Kind {
	case messenger.EventGiven:
		if s.told.job != e.JobID { // else a connection that broke was made again
			s.told = told{job: e.JobID}
		}
		s.told.span = e.Log
		out.Kind = job.EventGiven
	case messenger.EventProgress:
		if s.told.job != e.JobID {
			s.told = told{job: e.JobID}
		}
		if s.told.progress == nil {
			s.detail, s.pull = "", nil // the runner works, though that it takes jobs may be told later
		}
		s.told.progress = &job.Progress{Done: e.Progress, Text: e.Text, At: e.Time}
		out.Kind, out.Progress = job.EventProgress, s.told.progress
	case messenger.EventWarning:
		if e.JobID != "" {
			if s.told.job != e.JobID {
				s.told = told{job: e.JobID}
			}
			s.told.warning = e.Text
		}
		return job.Event{}, false
	default:
		return job.Event{}, false
	}
	return out, s.current.id == e.JobID
}

// span is where the log of the job begins that the worker has; empty where that is
// not known, or the job is another. Ended, where it is not nil, is then called, once,
// with the span that has an end, before the runner is given another job.
func (s *laneState) span(id job.ID, ended func(span string)) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current.id != id || s.told.job != id || s.told.span == "" {
		return ""
	}
	if ended != nil {
		s.told.followed = append(s.told.followed, ended)
	}
	return s.told.span
}

// endLog tells those who follow the job's log where it ends.
func (s *laneState) endLog(span string) {
	s.mu.Lock()
	followed := s.told.followed
	s.told = told{}
	s.mu.Unlock()
	for _, ended := range followed {
		ended(span)
	}
}

func (s *laneState) end() bool {
	s.mu.Lock()
	had := s.isBusy()
	s.current, s.adopts, s.revives, s.told = currentJob{}, false, job.Model{}, told{}
	s.mu.Unlock()
	if had {
		select {
		case s.freed <- struct{}{}:
		default:
		}
	}
	return had
}

// revive says that the worker starts a crashed runner again.
func (s *laneState) revive(m job.Model) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revives = m
	s.takeUp()
}

// busy reports whether the worker has a job, or could not take one at once.
func (s *laneState) busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.isBusy()
}

func (s *laneState) isBusy() bool { return s.current.id != "" || s.adopts || !s.revives.IsZero() }

// adopt says that the worker begins with a runner that was found alive.
func (s *laneState) adopt(m job.Model, running bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.adopts = true
	s.takeUp()
	if running {
		s.up, s.loaded = true, m
	}
}

// runner says what is loaded, or being loaded.
func (s *laneState) runner(m job.Model, up bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.up, s.loaded = up, m
}

// model is the one that the sheep will have loaded when the worker has done its
// job; zero for none.
func (s *laneState) model() job.Model {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.current.id != "":
		return s.current.model
	case !s.revives.IsZero():
		return s.revives
	case s.up:
		return s.loaded
	}
	return s.ahead
}

// loadAhead says which model is loaded without a job that wants it; zero for none.
func (s *laneState) loadAhead(m job.Model) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ahead = m
}

// has reports whether the sheep has the model loaded, or is loading it.
func (s *laneState) has(m job.Model) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return (s.up || s.current.id != "") && s.loaded == m || s.ahead == m && !m.IsZero()
}

// show sets what the sheep's status says beyond the model and the job.
func (s *laneState) show(detail string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.detail, s.pull = detail, nil
}

// showLoading is show for how far the loading of a model is.
func (s *laneState) showLoading(e runtime.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.detail, s.pull = cmp.Or(e.Text, string(e.Stage)), nil
	if e.Stage == runtime.Pulling && e.Total > 0 {
		s.pull = &job.PullProgress{Text: s.detail, Done: e.Done, Total: e.Total, Rate: e.Rate}
	}
}

// remove says that the sheep is configured no more: no job may be addressed to it.
func (s *laneState) remove() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removed = true
}

func (s *laneState) isRemoved() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.removed
}

// setStopped says that the sheep was told to stop, or to start again; it reports
// whether that is a change.
func (s *laneState) setStopped(stopped bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := s.stopped != stopped
	s.stopped = stopped
	return changed
}

func (s *laneState) isStopped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopped
}

// setDrained says that the sheep is to claim no more jobs, or may again; it reports
// whether that is a change.
func (s *laneState) setDrained(drained bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := s.drained != drained
	s.drained = drained
	if changed && !drained {
		select {
		case s.resumed <- struct{}{}:
		default:
		}
	}
	return changed
}

// restarts says that the sheep ends its runner to go on after that, or that it has.
func (s *laneState) restarts(restart bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.restart = restart
}

func (s *laneState) isDrained() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.drained
}

// stageEvery is how often the log says how far a model's loading is.
const stageEvery = 10 * time.Second

// newStage reports whether progress of loading belongs in the log: when a stage
// begins, and now and then while it lasts. An empty stage begins a load.
func (s *laneState) newStage(stage runtime.Stage, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if stage == s.stage && now.Sub(s.stageAt) < stageEvery {
		return false
	}
	s.stage, s.stageAt = stage, now
	return true
}

// view is the sheep as clients see it, but for its name and type.
func (s *laneState) view() job.Sheep {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := job.Sheep{Running: s.up, Job: s.current.id, Tenant: s.current.tenant, Detail: s.detail, Pull: s.pull, RunningSince: s.current.since}
	if s.up {
		v.Model = s.loaded
	}
	if s.current.id != "" && s.told.job == s.current.id {
		v.Progress = s.told.progress
		if v.Progress != nil && v.Detail == "" {
			v.Detail = v.Progress.String()
		}
		if s.told.warning != "" {
			v.Detail = strings.TrimPrefix(v.Detail+"; "+s.told.warning, "; ")
		}
	}
	if s.drained {
		v.Condition = job.Drained
	}
	if s.restart {
		v.Detail, v.Condition = "told to restart its runner", job.Drained
	}
	if s.stopped {
		v.Detail, v.Condition = "told to stop", job.Stopped
	}
	if s.removed {
		v.Detail, v.Condition = "configured no more; it ends with its job", job.Leaving
	}
	return v
}
