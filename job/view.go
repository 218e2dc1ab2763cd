package job

import (
	"fmt"
	"strings"
	"time"
)

// View is a job in more detail than its Status.
type View struct {
	Record
	// Detail says in words what the sheep that has the job is doing for it, for
	// example how far a pull is; often empty.
	Detail string
	// Progress is how far the runner that has the job said it is; nil where it did
	// not say.
	Progress *Progress
	// Attempts are those of all runs that are kept, oldest first. Listings leave
	// them out.
	Attempts []Attempt
	// LastSheep is the sheep that had the job last, of a job that has ended; empty
	// where none had it.
	LastSheep string
	// Timeline is what happened to the job's run so far, oldest first, as far as events
	// are kept; at most MaxTimeline, the last ones. Listings leave it out.
	Timeline []Event
	// WaitsFor are the jobs that it is after and that are not done; listings leave them out.
	WaitsFor []ID
	// Position is the job's place in the queue, 1 for the first and MaxPosition for
	// those further back, too; 0 where it does not wait for a sheep, and in listings.
	Position int
	// ExpectedStart is when a job that waits is expected to start, ExpectedEnd when one
	// that runs is expected to end; nil where that is not known, and in listings.
	ExpectedStart, ExpectedEnd *Estimate
	// Limits are the job's own with the defaults that apply to it.
	Limits Limits
}

// Bounds of a View.
const (
	MaxTimeline = 200
	MaxPosition = 10_000
)

// Explanation says in words how a job stands, for people.
type Explanation struct {
	State State
	// Summary is one sentence.
	Summary string
	// Reasons are what lies behind it, a sentence each, the most important first.
	Reasons []string
	// Next is what can be done, a sentence each; empty where there is nothing to do.
	Next []string
}

// String is the whole explanation, a line each.
func (e Explanation) String() string {
	var b strings.Builder
	fmt.Fprintln(&b, e.Summary)
	for _, reason := range e.Reasons {
		fmt.Fprintln(&b, "- "+reason)
	}
	for _, next := range e.Next {
		fmt.Fprintln(&b, "What to do: "+next)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// FileInfo describes one of a job's files.
type FileInfo struct {
	Name     string // below inputs/ or outputs/
	Size     int64  // bytes
	ETag     string // quoted as in HTTP, or empty
	Modified time.Time
	// Address is where whoever has it fetches the file for a time; empty where none was
	// asked for.
	Address string
}

// Query narrows a listing of jobs; the zero Query is all of them.
type Query struct {
	States []State
	Sheep  string // the addressed sheep
	Model  Model
	Tenant string // only this tenant's jobs; empty for everyone's
	Newest bool   // the latest submitted first
	// Labels are labels that the job has, all of them.
	Labels Labels
	Group  string
	// Prefix is the beginning of the job's id.
	Prefix ID
	// Since and Before bound when the job was submitted: from Since on, and earlier
	// than Before; zero is no bound.
	Since, Before time.Time
}

// Usual is how long the last jobs of a model ran: half of them at most Likely, and eight
// in ten between Low and High.
type Usual struct {
	Jobs              int // how many they were
	Low, Likely, High time.Duration
	// Load is how long loading the model usually took; 0 where that is not known.
	Load time.Duration
}

// Estimate is when something is expected: in eight cases of ten between Earliest and
// Latest.
type Estimate struct{ Earliest, Likely, Latest time.Time }
