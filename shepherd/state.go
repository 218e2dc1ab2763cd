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

// laneState is the state of a lane that other goroutines than its feeder and worker may
// read.
type laneState struct {
	mu      sync.Mutex
	current currentJob // of the worker
	report  runnerReport
	loaded  job.Model // what the runner has loaded, or is loading
	up      bool      // the runner is up
	ahead   job.Model // the model being loaded without a job
	adopts  bool      // the worker is adopting what an earlier daemon left
	revives job.Model // the worker is restarting a crashed runner with this model
	detail  string
	pull    *job.PullProgress // the pull that detail describes; nil for none
	removed bool              // the sheep is no longer configured
	stopped bool              // an operator has stopped the sheep
	drained bool              // an operator has drained the sheep
	restart bool              // the sheep is restarting its runner on request

	stage   runtime.Stage // the stage of loading that was logged last
	stageAt time.Time

	// freed receives when the worker becomes idle. Only the feeder reads it.
	freed chan struct{}
	// resumed receives when the sheep's drain ends. Only the worker reads it.
	resumed chan struct{}
	taken   chan struct{} // closed when the worker becomes busy; nil if nobody waits for that
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
	since        time.Time // when the runner started it; zero before
}

// runnerReport is what a runner, or its shim, has reported about the job that it was given
// last.
type runnerReport struct {
	job      job.ID
	span     string // the beginning of the job's log, see runtime.JobLogger
	progress *job.Progress
	warning  string              // an incident during the job
	followed []func(span string) // called with the span's end, for followers of the log
}

// begin records that the worker has a job, end that it can take one. end reports whether the
// worker was busy before.
func (s *laneState) begin(a *attempt) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current = currentJob{id: a.ID, run: a.Run, attempt: a.Attempt, tenant: a.Tenant, model: a.Model}
	if !a.adopted || s.report.job != a.ID { // the runner may have reported about an adopted job already
		s.report = runnerReport{}
	}
	s.signalBusy()
}

// signalBusy notifies those who wait until the worker is busy. The caller holds s.mu.
func (s *laneState) signalBusy() {
	if s.taken != nil {
		close(s.taken)
		s.taken = nil
	}
}

// untilBusy returns a channel that is closed when the worker becomes busy; nil if it is
// busy.
func (s *laneState) untilBusy() <-chan struct{} {
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

// running records when the runner started the worker's job.
func (s *laneState) running(id job.ID, since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current.id == id {
		s.current.since = since
	}
}

// tell records an event of the runner and returns it as an event of the worker's job; ok is
// false if it need not be published.
func (s *laneState) tell(e messenger.Event) (_ job.Event, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := job.Event{At: e.Time, Job: e.JobID, Run: s.current.run, Attempt: s.current.attempt, Model: s.current.model, Tenant: s.current.tenant, State: job.Processing}
	switch e.Kind {
	case messenger.EventGiven:
		if s.report.job != e.JobID { // else the runner has reconnected
			s.report = runnerReport{job: e.JobID}
		}
		s.report.span = e.Log
		out.Kind = job.EventGiven
	case messenger.EventProgress:
		if s.report.job != e.JobID {
			s.report = runnerReport{job: e.JobID}
		}
		if s.report.progress == nil {
			s.detail, s.pull = "", nil // the runner works already, even if its Connected event comes later
		}
		s.report.progress = &job.Progress{Done: e.Progress, Text: e.Text, At: e.Time}
		out.Kind, out.Progress = job.EventProgress, s.report.progress
	case messenger.EventWarning:
		if e.JobID != "" {
			if s.report.job != e.JobID {
				s.report = runnerReport{job: e.JobID}
			}
			s.report.warning = e.Text
		}
		return job.Event{}, false
	default:
		return job.Event{}, false
	}
	return out, s.current.id == e.JobID
}

// span returns where the log of the job begins; empty if unknown, or if the worker has
// another job. If ended is not nil it is called once, with the span including its end,
// before the runner is given another job.
func (s *laneState) span(id job.ID, ended func(span string)) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current.id != id || s.report.job != id || s.report.span == "" {
		return ""
	}
	if ended != nil {
		s.report.followed = append(s.report.followed, ended)
	}
	return s.report.span
}

// endLog tells the followers of the job's log where it ends.
func (s *laneState) endLog(span string) {
	s.mu.Lock()
	followed := s.report.followed
	s.report = runnerReport{}
	s.mu.Unlock()
	for _, ended := range followed {
		ended(span)
	}
}

func (s *laneState) end() bool {
	s.mu.Lock()
	had := s.isBusy()
	s.current, s.adopts, s.revives, s.report = currentJob{}, false, job.Model{}, runnerReport{}
	s.mu.Unlock()
	if had {
		select {
		case s.freed <- struct{}{}:
		default:
		}
	}
	return had
}

// revive records that the worker restarts a crashed runner.
func (s *laneState) revive(m job.Model) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revives = m
	s.signalBusy()
}

// busy reports whether the worker has a job or cannot take one at once.
func (s *laneState) busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.isBusy()
}

func (s *laneState) isBusy() bool { return s.current.id != "" || s.adopts || !s.revives.IsZero() }

// adopt records that the worker adopts what an earlier daemon left; running, with a live
// runner.
func (s *laneState) adopt(m job.Model, running bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.adopts = true
	s.signalBusy()
	if running {
		s.up, s.loaded = true, m
	}
}

// runner records which model is loaded or being loaded.
func (s *laneState) runner(m job.Model, up bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.up, s.loaded = up, m
}

// model returns the model that the sheep will have loaded after the worker's job; zero for
// none.
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

// loadAhead records which model is being loaded without a job; zero for none.
func (s *laneState) loadAhead(m job.Model) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ahead = m
}

// has reports whether the sheep has the model loaded or is loading it.
func (s *laneState) has(m job.Model) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return (s.up || s.current.id != "") && s.loaded == m || s.ahead == m && !m.IsZero()
}

// show sets the detail of the sheep's status.
func (s *laneState) show(detail string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.detail, s.pull = detail, nil
}

// showLoading sets the detail to the progress of loading a model.
func (s *laneState) showLoading(e runtime.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.detail, s.pull = cmp.Or(e.Text, string(e.Stage)), nil
	if e.Stage == runtime.Pulling && e.Total > 0 {
		s.pull = &job.PullProgress{Text: s.detail, Done: e.Done, Total: e.Total, Rate: e.Rate}
	}
}

// remove records that the sheep is no longer configured: jobs cannot be addressed to it.
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

// setStopped stops the sheep or lets it start again. It reports whether that is a change.
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

// setDrained drains the sheep or ends its drain. It reports whether that is a change.
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

// restarts records whether the sheep is restarting its runner.
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

// stageEvery is the interval at which the progress of loading is logged.
const stageEvery = 10 * time.Second

// newStage reports whether progress of loading should be logged: when a stage begins, and
// then every stageEvery. An empty stage begins a new load.
func (s *laneState) newStage(stage runtime.Stage, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if stage == s.stage && now.Sub(s.stageAt) < stageEvery {
		return false
	}
	s.stage, s.stageAt = stage, now
	return true
}

// view returns the sheep's state for clients, without its name and type.
func (s *laneState) view() job.Sheep {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := job.Sheep{Running: s.up, Job: s.current.id, Tenant: s.current.tenant, Detail: s.detail, Pull: s.pull, RunningSince: s.current.since}
	if s.up {
		v.Model = s.loaded
	}
	if s.current.id != "" && s.report.job == s.current.id {
		v.Progress = s.report.progress
		if v.Progress != nil && v.Detail == "" {
			v.Detail = v.Progress.String()
		}
		if s.report.warning != "" {
			v.Detail = strings.TrimPrefix(v.Detail+"; "+s.report.warning, "; ")
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
		v.Detail, v.Condition = "no longer configured; it ends with its job", job.Leaving
	}
	return v
}
