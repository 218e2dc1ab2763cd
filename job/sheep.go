package job

import "time"

// Sheep is a sheep as clients see it.
type Sheep struct {
	Name string
	// Node is the node that has it, where those of a fleet are told of: Name is NODE/SHEEP
	// then. It is empty where the daemon is alone.
	Node string
	Type string
	// Running says that a runner with Model loaded is up.
	Running bool
	Model   Model
	// Job is the one under way, empty when the sheep is idle.
	Job ID
	// Tenant is whose job that is.
	Tenant string
	// Detail says in words what the sheep is doing beyond that, for example how
	// far a pull is or when a crashed runner is started again; often empty.
	Detail string
	// Pull is how far the fetching of a model is that Detail tells of; nil where none is
	// fetched, or that is not known.
	Pull *PullProgress
	// Progress is how far the runner is with Job; nil where it did not say.
	Progress *Progress
	// RunningSince is when the runner began with Job; zero while it has not.
	RunningSince time.Time
	// TurnEnds is until when jobs of Model go before older ones of other models; zero
	// where nothing is loaded.
	TurnEnds time.Time
	// Condition says whether it takes jobs; Detail may say why not.
	Condition Condition
}

// Condition says whether a sheep takes jobs.
type Condition string

// The conditions.
const (
	Able    Condition = ""
	Resting Condition = "resting" // for a while, after a fault
	Stopped Condition = "stopped" // an operator told it to
	Drained Condition = "drained" // an operator has it claim no more; it goes on with what it has
	Leaving Condition = "leaving" // it is configured no more
	Blocked Condition = "blocked" // a device of it is out
)

// Check is the state of one thing the daemon depends on; Err is nil when it is
// well.
type Check struct {
	Name string
	Err  error
}

// LogQuery says which part of a log is wanted.
type LogQuery struct {
	// Tail is how many of the last lines are wanted; all, where negative.
	Tail int
	// Follow goes on with what is written later.
	Follow bool
}
