package job

import (
	"fmt"
	"time"
)

// Cause is why an attempt ended. docs/job-states.md has a row for each, with what happens to
// the job.
type Cause string

// The causes, by whose fault they are.
const (
	// The job ended by itself, or caused the end.
	CauseDone        Cause = "done"         // the runner answered, and the results are stored
	CauseError       Cause = "error"        // the runner answered with an error
	CauseRunnerDied  Cause = "runner-died"  // the runner exited during the job
	CauseModel       Cause = "model"        // the model cannot be loaded, here or anywhere
	CauseInputs      Cause = "inputs"       // the inputs are missing or cannot be used
	CauseOutputs     Cause = "outputs"      // the results cannot be stored
	CauseLoadTimeout Cause = "load-timeout" // the model took longer to load than the job allows
	CauseRunTimeout  Cause = "run-timeout"  // the runner took longer than the job allows
	CauseWaitTimeout Cause = "wait-timeout" // the job waited longer than it allows
	CauseDeadline    Cause = "deadline"     // the job's deadline passed
	CauseAfter       Cause = "after"        // a job whose outputs it needs ended without any
	CauseCancelled   Cause = "cancelled"    // a client cancelled the job

	// The sheep caused the end; the job may run on another one.
	CauseSheep       Cause = "sheep"       // the sheep cannot prepare or start the job: a full disk, a busy port
	CauseNotHere     Cause = "not-here"    // the sheep does not have the model; another may
	CauseUnavailable Cause = "unavailable" // a dependency of loading the model does not answer, such as a registry
	CauseDevice      Cause = "device"      // a device failed during the job
	CauseLost        Cause = "sheep-lost"  // the supervisor of the runner was lost, and the runner with it

	// Nobody caused the end: the attempt was interrupted or not needed.
	CauseInterrupted  Cause = "interrupted"   // the daemon and the runner were both killed
	CauseDaemonKilled Cause = "daemon-killed" // the daemon was killed before a runner had the job
	CauseHandedBack   Cause = "handed-back"   // the daemon or the sheep was told to stop
	CauseTakenOver    Cause = "taken-over"    // only prepared by this sheep; an idle sheep runs the job
	CauseNodeLost     Cause = "node-lost"     // the node's lease has expired
)

// Attempt is one claim of a job by one sheep, from the claim to its end.
type Attempt struct {
	// Run and Number identify the attempt: the run of the job, and the attempt of that run,
	// both from 1.
	Run, Number int
	Node, Sheep string
	// Began is when the job was claimed, Started when the sheep started it (zero if it only
	// prepared the job), Ended when the claim ended (zero while it lasts).
	Began, Started, Ended time.Time
	// Cause is empty while the attempt lasts. Reason describes it for people.
	Cause  Cause
	Reason string
	// Spent is set if the attempt counts as one of the job's tries.
	Spent  bool
	Usage  Usage
	Phases Phases
	// Log is the part of the sheep's log that the runner wrote during the attempt, in the
	// sheep's own format (messenger.Answer.Log); empty if unknown.
	Log string
}

// Phases are the durations of an attempt's parts; 0 for a part that did not occur. Parts may
// overlap: inputs are staged while the model is loaded.
type Phases struct {
	Stage   time.Duration `json:"stage,omitempty"`
	Load    time.Duration `json:"load,omitempty"`
	Run     time.Duration `json:"run,omitempty"`
	Collect time.Duration `json:"collect,omitempty"`
}

// Cursor is an opaque position among a ledger's events. The empty Cursor precedes the first
// event that is kept.
type Cursor string

// EventKind is what happened to a job.
type EventKind string

// The kinds of events.
const (
	EventQueued    EventKind = "queued"   // submitted: a new run of the job
	EventClaimed   EventKind = "claimed"  // a sheep claimed the job ahead and prepares it
	EventStarted   EventKind = "started"  // the sheep starts the job, or claimed it to start at once
	EventReturned  EventKind = "returned" // the attempt ended and the job is queued again
	EventDue       EventKind = "due"      // a delay is over: a time has come, or the jobs in After are done
	EventCancelled EventKind = "cancel"   // a client cancelled it while a sheep held it
	EventEnded     EventKind = "ended"    // the run has its final state
)

// The kinds of events that are not kept in the ledger and have no Cursor. Only followers of
// the job on its node receive them.
const (
	EventGiven    EventKind = "given"    // the runner was given the job
	EventProgress EventKind = "progress" // the runner reported its progress
)

// Event is one change of a job.
type Event struct {
	Cursor Cursor
	At     time.Time
	Kind   EventKind
	Job    ID
	Run    int
	Model  Model
	// Address is the address of the job, see Address.String; empty for any sheep.
	Address string
	Tenant  string
	// Attempt, Node and Sheep identify the holder: set with claimed, started, returned and
	// cancel, and with ended if a sheep held the job.
	Attempt     int
	Node, Sheep string
	// Origin is the node that made the change if nobody held the job. Only shared ledgers
	// set it.
	Origin string
	// State is the job's state after the change.
	State State
	// Cause and Reason are set with returned and ended.
	Cause  Cause
	Reason string
	// Delayed is set with queued and returned if the job waits for a time or for the jobs
	// in After: an event of kind due follows.
	Delayed bool
	// Status is the run's final status, with ended.
	Status *Status
	// Progress is set with progress.
	Progress *Progress
}

// Progress is the progress of a job that its runner reported.
type Progress struct {
	Done float64 // from 0 to 1
	Text string  // the current step; often empty
	At   time.Time
}

// String formats the progress for people: "40 %: resizing".
func (p Progress) String() string {
	percent := fmt.Sprintf("%.0f %%", 100*p.Done)
	if p.Text == "" {
		return percent
	}
	return percent + ": " + p.Text
}

// Limits in bytes of the stored texts of failures and reasons.
const (
	MaxReason    = 1 << 10
	MaxMessage   = 8 << 10
	MaxType      = 256
	MaxTraceback = 16 << 10
)

// Clip returns f with texts above their limits cut to their beginning and, because the cause
// is usually at the end, their end. It returns nil for nil.
func (f *Failure) Clip() *Failure {
	if f == nil {
		return nil
	}
	return &Failure{Message: clip(f.Message, MaxMessage), Type: clip(f.Type, MaxType), Traceback: clip(f.Traceback, MaxTraceback)}
}

// ClipReason cuts a reason in the same way as Clip.
func ClipReason(reason string) string { return clip(reason, MaxReason) }

// clip cuts the middle out of a text of more than limit bytes, at rune boundaries.
func clip(text string, limit int) string {
	const gap = "\n[…]\n"
	if len(text) <= limit {
		return text
	}
	head := (limit - len(gap)) / 4
	tail := len(text) - (limit - len(gap) - head)
	for head > 0 && !startsRune(text[head]) {
		head--
	}
	for tail < len(text) && !startsRune(text[tail]) {
		tail++
	}
	return text[:head] + gap + text[tail:]
}

func startsRune(b byte) bool { return b&0xC0 != 0x80 }
