package job

import "fmt"

// MaxGroup is the maximum number of jobs in one group submission, and of Group.Jobs.
const MaxGroup = 1000

// Group is the jobs that were submitted with the same group name.
type Group struct {
	ID string
	// Counts is the number of its jobs in each state.
	Counts map[State]int
	// Jobs are the first MaxGroup of the jobs, in order of submission. More is set if there
	// are others.
	Jobs []View
	More bool
}

// Ended reports whether all jobs of the group have ended.
func (g Group) Ended() bool { return g.Counts[Queued]+g.Counts[Processing] == 0 }

// ItemError is an error about one of several jobs that are submitted together.
type ItemError struct {
	Index int // index of the job, from 0
	Err   error
}

func (e *ItemError) Error() string { return e.Text(e.Err.Error()) }

// Text prefixes a text with the job that it is about.
func (e *ItemError) Text(text string) string { return fmt.Sprintf("jobs[%d]: %s", e.Index, text) }

// Field returns the path of a field of the job in the request.
func (e *ItemError) Field(name string) string { return fmt.Sprintf("jobs[%d].%s", e.Index, name) }

// Unwrap returns Err.
func (e *ItemError) Unwrap() error { return e.Err }
