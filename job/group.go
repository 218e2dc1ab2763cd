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

func (e *ItemError) Error() string { return fmt.Sprintf("jobs[%d]: %v", e.Index, e.Err) }

// Unwrap returns Err.
func (e *ItemError) Unwrap() error { return e.Err }
