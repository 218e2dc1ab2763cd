package shepherd

import (
	"time"

	"github.com/iterait/shepherd/job"
)

// Phase is a part of a job's processing. Phases may overlap: inputs are staged while the
// runner starts, or while it runs another job.
type Phase string

// The phases. PhasePull and PhaseLoad occur only if the sheep has another model loaded than
// the job's.
const (
	PhaseQueued  Phase = "queued"  // from submission until a sheep starts the job
	PhaseStage   Phase = "stage"   // inputs are fetched from storage
	PhasePull    Phase = "pull"    // the model is fetched and prepared
	PhaseLoad    Phase = "load"    // from the runner's start until it accepts jobs
	PhaseRun     Phase = "run"     // the runner has the job
	PhaseCollect Phase = "collect" // outputs are stored
)

// Phases returns all phases in the order in which a job passes through them.
func Phases() []Phase {
	return []Phase{PhaseQueued, PhaseStage, PhasePull, PhaseLoad, PhaseRun, PhaseCollect}
}

// PhaseResult is a phase that has ended.
type PhaseResult struct {
	Phase Phase
	Sheep string
	Model job.Model
	// Job, Trace, Run and Attempt are empty for a runner that was started without a job.
	Job     job.ID
	Trace   job.Trace
	Run     int
	Attempt int

	Began, Ended time.Time
	// Err is why the phase failed, or nil. For PhaseRun it is the runner's *job.Failure, or
	// why the job was taken from the runner.
	Err error
}

// RunnerEvent is something that happened to a sheep's runner.
type RunnerEvent string

// What happens to runners.
const (
	RunnerStarted  RunnerEvent = "started"  // for any reason
	RunnerSwitched RunnerEvent = "switched" // stopped in order to load another model
	RunnerCrashed  RunnerEvent = "crashed"  // ended without being asked to
	RunnerRevived  RunnerEvent = "revived"  // started again after a crash, before a job needed it
	RunnerAdopted  RunnerEvent = "adopted"  // found alive when the daemon started
)

// Observer receives what happens to jobs and sheep, for metrics and traces. Its methods are
// called from many goroutines, synchronously with the processing of jobs: they must return
// at once and must not keep references to their arguments.
type Observer interface {
	// PhaseEnded is called for every phase that ended.
	PhaseEnded(PhaseResult)
	// Ended is called for every job that reached a final state. sheep is empty if no sheep
	// had the job.
	Ended(sheep string, state job.State)
	// Returned is called for every job that went back to the queue.
	Returned(sheep string)
	// Runner is called for every RunnerEvent.
	Runner(sheep string, event RunnerEvent)
	// Waited is called with the time that a runner was idle between two jobs although the
	// second one was prepared when it answered the first.
	Waited(sheep string, gap time.Duration)
}

// Tracer connects jobs to traces.
type Tracer interface {
	// Submit is called when a job is being submitted. The returned trace is stored with the
	// job: the request's own, or a child of it. done is called with the result of the
	// submission.
	Submit(r job.Request) (_ job.Trace, done func(error))
	// Run returns the trace context that the runner is given for a job. It is the same for
	// every call with the same run and attempt.
	Run(id job.ID, run, attempt int, t job.Trace) job.Trace
}

// NopObserver is an Observer that does nothing.
type NopObserver struct{}

func (NopObserver) PhaseEnded(PhaseResult)       {}
func (NopObserver) Ended(string, job.State)      {}
func (NopObserver) Returned(string)              {}
func (NopObserver) Runner(string, RunnerEvent)   {}
func (NopObserver) Waited(string, time.Duration) {}

// NopTracer is a Tracer that passes clients' traces on unchanged.
type NopTracer struct{}

// Submit returns the request's own trace.
func (NopTracer) Submit(r job.Request) (job.Trace, func(error)) { return r.Trace, ignore }

// Run returns t.
func (NopTracer) Run(_ job.ID, _, _ int, t job.Trace) job.Trace { return t }

func ignore(error) {}

// Observers calls several Observers one after the other.
type Observers []Observer

func (o Observers) PhaseEnded(p PhaseResult) {
	for _, each := range o {
		each.PhaseEnded(p)
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

// StageBudget returns how many bytes the jobs prepared ahead take on disk, over all sheep,
// and the limit; a limit of 0 is none.
func (s *Shepherd) StageBudget() (used, limit int64) { return s.env.budget.state() }
