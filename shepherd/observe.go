package shepherd

import (
	"time"

	"github.com/iterait/shepherd/job"
)

// Phase is a part of a job's way. Phases may overlap: inputs are staged while the
// runner is started, or while it runs another job.
type Phase string

// The phases. Pull and Load are passed through only where the job's model is not
// the one that the sheep has loaded.
const (
	PhaseQueued  Phase = "queued"  // from submission until a sheep begins with the job
	PhaseStage   Phase = "stage"   // inputs come from storage
	PhasePull    Phase = "pull"    // the model is made ready to start
	PhaseLoad    Phase = "load"    // from the runner's start until it takes jobs
	PhaseRun     Phase = "run"     // the runner has the job
	PhaseCollect Phase = "collect" // outputs and state go to storage, and the state to the ledger
)

// Phases are all phases, in the order in which a job passes through them.
func Phases() []Phase {
	return []Phase{PhaseQueued, PhaseStage, PhasePull, PhaseLoad, PhaseRun, PhaseCollect}
}

// Passage is a phase that has ended.
type Passage struct {
	Phase Phase
	Sheep string
	Model job.Model
	// Job is empty, and so are Trace, Run and Attempt, where a runner was started
	// again for no job in particular.
	Job     job.ID
	Trace   job.Trace
	Run     int
	Attempt int

	Began, Ended time.Time
	// Err says why the phase did not end well: of PhaseRun it is the runner's
	// *job.Failure, or why the job was taken from the runner.
	Err error
}

// RunnerEvent is something that happened to a sheep's runner.
type RunnerEvent string

// What happens to runners.
const (
	RunnerStarted  RunnerEvent = "started"  // for whatever reason
	RunnerSwitched RunnerEvent = "switched" // stopped, to make room for another model
	RunnerCrashed  RunnerEvent = "crashed"  // ended though nobody asked it to
	RunnerRevived  RunnerEvent = "revived"  // started again after a crash, before a job wanted it
	RunnerAdopted  RunnerEvent = "adopted"  // found alive when the daemon started
)

// Observer is told what happens to jobs and sheep, to count it or to trace it.
// Its methods are called from many goroutines and in the way of jobs: they return
// at once, and they keep nothing that they are given but values.
type Observer interface {
	// Passed is told of every phase that ended.
	Passed(Passage)
	// Ended is told of every job that came into a final state. The sheep is empty
	// where none had the job.
	Ended(sheep string, state job.State)
	// Returned is told of every job that went back to the queue.
	Returned(sheep string)
	// Runner is told what happens to runners.
	Runner(sheep string, event RunnerEvent)
	// Waited is told how long a runner had nothing to do between two jobs though
	// the second was there already when it had answered the first.
	Waited(sheep string, gap time.Duration)
}

// Tracer says to which traces jobs belong.
type Tracer interface {
	// Submit is told that a job is being submitted. The trace is what is kept with
	// the job: the request's own, or what goes on from it. It is told of the end
	// by done.
	Submit(r job.Request) (_ job.Trace, done func(error))
	// Run is the trace that the runner is told of, for what it does for a job.
	// It is the same whenever it is asked for the same run and attempt.
	Run(id job.ID, run, attempt int, t job.Trace) job.Trace
}

// Unobserved is the Observer of a core that nobody looks at.
type Unobserved struct{}

func (Unobserved) Passed(Passage)               {}
func (Unobserved) Ended(string, job.State)      {}
func (Unobserved) Returned(string)              {}
func (Unobserved) Runner(string, RunnerEvent)   {}
func (Unobserved) Waited(string, time.Duration) {}

// Untraced is the Tracer that hands on what clients sent and adds nothing.
type Untraced struct{}

// Submit returns the request's own trace.
func (Untraced) Submit(r job.Request) (job.Trace, func(error)) { return r.Trace, ignore }

// Run returns the trace as it is.
func (Untraced) Run(_ job.ID, _, _ int, t job.Trace) job.Trace { return t }

func ignore(error) {}

// Observers is the Observer that tells several, one after the other.
type Observers []Observer

func (o Observers) Passed(p Passage) {
	for _, each := range o {
		each.Passed(p)
	}
}

func (o Observers) Ended(sheep string, state job.State) {
	for _, each := range o {
		each.Ended(sheep, state)
	}
}

func (o Observers) Returned(sheep string) {
	for _, each := range o {
		each.Returned(sheep)
	}
}

func (o Observers) Runner(sheep string, event RunnerEvent) {
	for _, each := range o {
		each.Runner(sheep, event)
	}
}

func (o Observers) Waited(sheep string, gap time.Duration) {
	for _, each := range o {
		each.Waited(sheep, gap)
	}
}

// StageBudget is how many bytes jobs prepared ahead take on disk, all sheep
// together, and how many they may; a limit of 0 is none.
func (s *Shepherd) StageBudget() (used, limit int64) { return s.env.budget.state() }
