package shepherd

import (
	"sync"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/runtime"
)

// laneState is what a lane shows of itself to those outside its feeder and worker.
type laneState struct {
	mu      sync.Mutex
	job     job.ID // the one the worker has; empty while it is idle
	tenant  string
	wants   job.Model // that job's model
	loaded  job.Model // what the runner has loaded, or is loading
	up      bool      // the runner is up
	adopts  bool      // the worker still adopts what an earlier daemon left
	revives bool      // it starts a crashed runner again, with the model in wants
	detail  string
	removed bool // the sheep is configured no more
	stopped bool // it was told to stop

	stage   runtime.Stage // of loading, as the log was last told it
	stageAt time.Time

	// freed receives when the worker becomes idle; it is the feeder's to read.
	freed chan struct{}
}

func newLaneState() *laneState { return &laneState{freed: make(chan struct{}, 1)} }

// begin says that the worker has a job. end says that it can take one; it reports
// whether it could not before.
func (s *laneState) begin(a *attempt) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.job, s.tenant, s.wants = a.ID, a.Tenant, a.Model
}

func (s *laneState) end() bool {
	s.mu.Lock()
	had := s.job != "" || s.adopts || s.revives
	s.job, s.tenant, s.wants, s.adopts, s.revives = "", "", job.Model{}, false, false
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
	s.revives, s.wants = true, m
}

// busy reports whether the worker has a job, or could not take one at once.
func (s *laneState) busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.job != "" || s.adopts || s.revives
}

// adopt says that the worker begins with a runner that was found alive.
func (s *laneState) adopt(m job.Model, running bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.adopts = true
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
	case s.job != "" || s.revives:
		return s.wants
	case s.up:
		return s.loaded
	}
	return job.Model{}
}

// has reports whether the sheep has the model loaded, or is loading it.
func (s *laneState) has(m job.Model) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return (s.up || s.job != "") && s.loaded == m
}

// show sets what the sheep's status says beyond the model and the job.
func (s *laneState) show(detail string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.detail = detail
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
	v := job.Sheep{Running: s.up, Job: s.job, Tenant: s.tenant, Detail: s.detail}
	if s.up {
		v.Model = s.loaded
	}
	if s.stopped {
		v.Detail = "told to stop"
	}
	if s.removed {
		v.Detail = "configured no more; it ends with its job"
	}
	return v
}
