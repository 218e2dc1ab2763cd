package job

import (
	"fmt"
	"time"
)

// Cause says why an attempt ended. docs/job-states.md has a row for each, with
// what becomes of the job.
type Cause string

// The causes, by whose fault they are.
const (
	// The job itself came to its end, or is to blame.
	CauseDone        Cause = "done"         // the runner answered, and the results are stored
	CauseError       Cause = "error"        // the runner answered with an error
	CauseRunnerDied  Cause = "runner-died"  // the runner ended by itself under the job
	CauseModel       Cause = "model"        // the model cannot be loaded, here or anywhere
	CauseInputs      Cause = "inputs"       // the inputs are missing or cannot be used
	CauseOutputs     Cause = "outputs"      // the results cannot be stored
	CauseLoadTimeout Cause = "load-timeout" // the model took longer to load than the job allows
	CauseRunTimeout  Cause = "run-timeout"  // the runner took longer than the job allows
	CauseWaitTimeout Cause = "wait-timeout" // the job waited longer than it allows
	CauseDeadline    Cause = "deadline"     // the job's deadline passed
	CauseAfter       Cause = "after"        // a job whose outputs it needs ended without any
	CauseCancelled   Cause = "cancelled"    // a client cancelled the job

	// The sheep is to blame; the job may run elsewhere.
	CauseSheep       Cause = "sheep"       // the sheep cannot prepare or start the job: a full disk, a busy port
	CauseNotHere     Cause = "not-here"    // the sheep does not have the model; another may
	CauseUnavailable Cause = "unavailable" // what the sheep needs to load the model does not answer: a registry
	CauseDevice      Cause = "device"      // a device was lost under the job
	CauseLost        Cause = "sheep-lost"  // what supervises the runner was lost, and the runner with it

	// Nobody is to blame: the attempt was cut off or not needed.
	CauseInterrupted  Cause = "interrupted"   // daemon and runner were killed together
	CauseDaemonKilled Cause = "daemon-killed" // the daemon was killed before a runner had the job
	CauseHandedBack   Cause = "handed-back"   // the daemon or the sheep was told to stop
	CauseTakenOver    Cause = "taken-over"    // prepared here, and an idle sheep runs it
	CauseNodeLost     Cause = "node-lost"     // the node was not heard from
)

// Attempt is one claim of a job by one sheep, from the claim to its end.
type Attempt struct {
	// Run and Number say which attempt of which run of the job it is; both count
	// from 1.
	Run, Number int
	Node, Sheep string
	// Began is when the job was claimed, Started when the sheep's turn for it came
	// (zero where it only prepared the job), Ended when the claim ended (zero
	// while it lasts).
	Began, Started, Ended time.Time
	// Cause is empty while the attempt lasts. Reason is the cause in words.
	Cause  Cause
	Reason string
	// Spent says that the attempt counts towards the tries that the job has.
	Spent  bool
	Usage  Usage
	Phases Phases
	// Log is where the lines are that the runner wrote meanwhile, as the sheep names
	// them (messenger.Answer.Log); empty where that is not known.
	Log string
}

// Phases is how long the parts of an attempt took; 0 where there was no such
// part. Parts may overlap: a job's inputs are staged while its model is loaded.
type Phases struct {
	Stage   time.Duration `json:"stage,omitempty"`
	Load    time.Duration `json:"load,omitempty"`
	Run     time.Duration `json:"run,omitempty"`
	Collect time.Duration `json:"collect,omitempty"`
}

// Cursor is a position among the events of a ledger. It is opaque; the empty
// Cursor is before the first event that is kept.
type Cursor string

// EventKind says what happened to a job.
type EventKind string

// The kinds of events.
const (
	EventQueued    EventKind = "queued"   // submitted: a new run of the job
	EventClaimed   EventKind = "claimed"  // a sheep claimed the job ahead and prepares it
	EventStarted   EventKind = "started"  // the sheep's turn for it has come; also by a claim to run
	EventReturned  EventKind = "returned" // the attempt ended and the job is queued again
	EventDue       EventKind = "due"      // what it waited for has come: a time, or the jobs that it is after
	EventCancelled EventKind = "cancel"   // a client asked for its end while a sheep held it
	EventEnded     EventKind = "ended"    // the run has its final state
)

// The kinds of events that are not kept in the ledger, and have no Cursor: whoever
// follows the job on its node while they happen is told.
const (
	EventGiven    EventKind = "given"    // the runner was given the job
	EventProgress EventKind = "progress" // the runner told how far it is
)

// Event is one change of a job.
type Event struct {
	Cursor Cursor
	At     time.Time
	Kind   EventKind
	Job    ID
	Run    int
	Model  Model
	// Address is the sheep that the job is addressed to, empty for any.
	Address string
	Tenant  string
	// Attempt, Node and Sheep say who holds, or held, the job: set with claimed,
	// started, returned and cancel, and with ended where the job was held.
	Attempt     int
	Node, Sheep string
	// Origin is the node that made the change where nobody held the job, as far as the
	// ledger tells: one that nodes share does.
	Origin string
	// State is the job's after the change.
	State State
	// Cause and Reason say why, with returned and ended.
	Cause  Cause
	Reason string
	// Delayed says, with queued and returned, that the job waits for a time, or for the
	// jobs that it is after: an event of kind due follows.
	Delayed bool
	// Status is the run's final status, with ended.
	Status *Status
	// Progress is set with progress.
	Progress *Progress
}

// Progress is how far a runner is with a job, as it said itself.
type Progress struct {
	Done float64 // from 0 to 1
	Text string  // at what it is; often empty
	At   time.Time
}

// String is for people: "40 %: resizing".
func (p Progress) String() string {
	percent := fmt.Sprintf("%.0f %%", 100*p.Done)
	if p.Text == "" {
		return percent
	}
	return percent + ": " + p.Text
}

// Bounds of what is kept of a failure, and of why an attempt ended, in bytes.
const (
	MaxReason    = 1 << 10
	MaxMessage   = 8 << 10
	MaxType      = 256
	MaxTraceback = 16 << 10
)

// Clip returns f with texts that are longer than what is kept cut to their
// beginning and, since a cause mostly stands last, their end. Nil stays nil.
func (f *Failure) Clip() *Failure {
	if f == nil {
		return nil
	}
	return &Failure{Message: clip(f.Message, MaxMessage), Type: clip(f.Type, MaxType), Traceback: clip(f.Traceback, MaxTraceback)}
}

// ClipReason cuts a reason, as Clip does.
func ClipReason(reason string) string { return clip(reason, MaxReason) }

// clip cuts the middle out of a text of more than limit bytes, at the borders of
// characters.
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
