package job

import "time"

// Sheep is the state of a sheep for clients.
type Sheep struct {
	Name string
	// Node is the sheep's node in listings of a fleet, where Name is NODE/SHEEP; empty on a
	// single node.
	Node string
	Type string
	// Running is set if a runner with Model loaded is up.
	Running bool
	Model   Model
	// Job is the current job; empty if the sheep is idle.
	Job ID
	// Tenant is the tenant of Job.
	Tenant string
	// Detail describes what else the sheep is doing, for example the progress of a pull or
	// when a crashed runner is restarted; often empty.
	Detail string
	// Pull is the progress of the pull that Detail describes; nil for none, or if unknown.
	Pull *PullProgress
	// Progress is the runner's reported progress with Job; nil if it reported none.
	Progress *Progress
	// RunningSince is when the runner started Job; zero before.
	RunningSince time.Time
	// TurnEnds is the time until which jobs of Model take precedence over older jobs of
	// other models; zero if nothing is loaded.
	TurnEnds time.Time
	// Condition is whether the sheep takes jobs; Detail may say why not.
	Condition Condition
}

// Condition is whether a sheep takes jobs.
type Condition string

// The conditions.
const (
	Able    Condition = ""
	Resting Condition = "resting" // for a while, after a fault
	Stopped Condition = "stopped" // stopped by an operator
	Drained Condition = "drained" // drained by an operator: it claims no more jobs and finishes what it has
	Leaving Condition = "leaving" // no longer configured
	Blocked Condition = "blocked" // one of its devices has failed
)

// Check is the state of one dependency of the daemon; Err is nil if it works.
type Check struct {
	Name string
	Err  error
}

// LogQuery selects part of a log.
type LogQuery struct {
	// Tail is the number of last lines; negative for all lines.
	Tail int
	// Follow continues with lines that are written later.
	Follow bool
}
