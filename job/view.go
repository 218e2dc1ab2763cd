package job

import (
	"fmt"
	"strings"
	"time"
)

// View is a job in detail.
type View struct {
	Record
	// Detail describes what the job's sheep is doing for it, for example the progress of a
	// pull; often empty.
	Detail string
	// Progress is the progress that the job's runner reported; nil for none.
	Progress *Progress
	// Loading says that the job's sheep is getting ready for it, and RunningSince since when
	// its runner has had it. Neither is set where the sheep's state is not known, and while
	// the results are stored.
	Loading      bool
	RunningSince time.Time
	// Attempts are the kept attempts of all runs, oldest first. Listings leave them out.
	Attempts []Attempt
	// LastSheep is the last sheep of an ended job; empty if no sheep had it.
	LastSheep string
	// Timeline is the last MaxTimeline kept events of the job's run, oldest first. Listings
	// leave it out.
	Timeline []Event
	// WaitsFor are the jobs of After that are not done. Listings leave them out.
	WaitsFor []ID
	// Position is the job's position in the queue from 1, at most MaxPosition; 0 if it does
	// not wait for a sheep, and in listings.
	Position int
	// ExpectedStart is when a waiting job is expected to start, ExpectedEnd when a running
	// job is expected to end; nil if unknown, and in listings.
	ExpectedStart, ExpectedEnd *Estimate
	// Limits are the job's limits with all defaults applied.
	Limits Limits
}

// Limits of a View.
const (
	MaxTimeline = 200
	MaxPosition = 10_000
)

// Explanation describes a job's state and what can be done about it, for people.
type Explanation struct {
	State State
	// Summary is one sentence.
	Summary string
	// Reasons are details, one sentence each, most important first.
	Reasons []string
	// Next is what can be done, one sentence each; empty if there is nothing to do.
	Next []string
}

// String returns the whole explanation, one line for each sentence.
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
	// Address is a URL from which the file can be fetched for a time; empty if none was
	// requested.
	Address string
}

// Query filters a listing of jobs; the zero Query matches all.
type Query struct {
	States []State
	Sheep  string // the addressed sheep
	Model  Model
	Tenant string // only this tenant's jobs; empty for everyone's
	Newest bool   // the latest submitted first
	// Labels are labels that the job must have, all of them.
	Labels Labels
	Group  string
	// Prefix is the beginning of the job's id.
	Prefix ID
	// Since and Before bound the time of submission: at or after Since, and before Before;
	// zero is no bound.
	Since, Before time.Time
}

// Usual is the distribution of the durations of a model's recent jobs: the median is Likely,
// and eight in ten lie between Low and High.
type Usual struct {
	Jobs              int // number of jobs
	Low, Likely, High time.Duration
	// Load is the median time to load the model; 0 if unknown.
	Load time.Duration
}

// Estimate is the expected time of an event: in eight of ten cases it lies between Earliest
// and Latest.
type Estimate struct{ Earliest, Likely, Latest time.Time }
