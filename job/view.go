package job

import "time"

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
	// Limits are the job's own with the defaults that apply to it.
	Limits Limits
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
	// Prefix is the beginning of the job's id.
	Prefix ID
	// Since and Before bound when the job was submitted: from Since on, and earlier
	// than Before; zero is no bound.
	Since, Before time.Time
}
