package job

import "fmt"

// MaxGroup is how many jobs are submitted as one group, and how many of a Group's jobs
// are told.
const MaxGroup = 1000

// Group is the jobs that were submitted with one name of a group.
type Group struct {
	ID string
	// Counts is how many of its jobs are in each state.
	Counts map[State]int
	// Jobs are the first MaxGroup of them, in the order of their submission. More says
	// that there are others.
	Jobs []View
	More bool
}

// Ended reports whether all jobs have.
func (g Group) Ended() bool { return g.Counts[Queued]+g.Counts[Processing] == 0 }

// ItemError is what is wrong with one of several jobs that are submitted together.
type ItemError struct {
	Index int // of the job, from 0
	Err   error
}

func (e *ItemError) Error() string { return e.Text(e.Err.Error()) }

// Text says of which job a text is.
func (e *ItemError) Text(text string) string { return fmt.Sprintf("jobs[%d]: %s", e.Index, text) }

// Field is the name of a field of the job among the fields of all.
func (e *ItemError) Field(name string) string { return fmt.Sprintf("jobs[%d].%s", e.Index, name) }

// Unwrap returns Err.
func (e *ItemError) Unwrap() error { return e.Err }
