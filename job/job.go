// Package job defines the types that all parts of shepherd share: jobs and their ids,
// models, states, failures and errors. It imports the standard library only.
package job

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// ID identifies a job. The client chooses it. In storage with a bucket for each job it is
// the name of the bucket.
type ID string

// MaxIDLength is the longest id accepted, in bytes.
const MaxIDLength = 128

// ParseID checks that s is a valid job id: 1 to MaxIDLength ASCII letters, digits, '.', '_'
// and '-', beginning with a letter or digit and without "..". Storage may restrict ids
// further: an S3 bucket name is shorter and lower case.
func ParseID(s string) (ID, error) {
	switch {
	case s == "":
		return "", errors.New("job id is empty")
	case len(s) > MaxIDLength:
		return "", fmt.Errorf("job id has %d characters, at most %d are possible", len(s), MaxIDLength)
	case strings.Contains(s, ".."):
		return "", fmt.Errorf("job id %q contains \"..\"", s)
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if alnum || i > 0 && (c == '.' || c == '_' || c == '-') {
			continue
		}
		return "", fmt.Errorf("job id %q has %q at position %d; an id is made of letters, digits, '.', '_' and '-' and begins with a letter or digit", s, c, i+1)
	}
	return ID(s), nil
}

// Model is the model that a sheep must have loaded to run a job.
type Model struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// String returns NAME:VERSION, or NAME if the version is empty.
func (m Model) String() string {
	if m.Version == "" {
		return m.Name
	}
	return m.Name + ":" + m.Version
}

// ParseModel reads NAME, NAME:VERSION or NAME@DIGEST. A name has no colon and no @.
// The model is not validated.
func ParseModel(s string) Model {
	if at := strings.IndexAny(s, ":@"); at >= 0 {
		return Model{Name: s[:at], Version: s[at+1:]}
	}
	return Model{Name: s}
}

// IsZero reports whether m names no model.
func (m Model) IsZero() bool { return m == Model{} }

// Validate checks that m can be a path below a working directory and an image name: no empty
// name, no empty, "." or ".." path element, no backslash and no control character. Slashes
// in the name and an empty version are allowed.
func (m Model) Validate() error {
	if m.Name == "" {
		return errors.New("model name is empty")
	}
	for _, part := range []struct{ field, value string }{{"name", m.Name}, {"version", m.Version}} {
		if len(part.value) > 255 {
			return fmt.Errorf("model %s is longer than 255 bytes", part.field)
		}
		for _, r := range part.value {
			if r < ' ' || r == 0x7f || r == '\\' {
				return fmt.Errorf("model %s %q contains %q", part.field, part.value, r)
			}
		}
		if part.value == "" {
			continue
		}
		for _, element := range strings.Split(part.value, "/") {
			if element == "" || element == "." || element == ".." {
				return fmt.Errorf("model %s %q is not a relative path without empty, \".\" and \"..\" elements", part.field, part.value)
			}
		}
	}
	return nil
}

// State is the state of a job. docs/job-states.md draws the transitions.
type State string

// The states of a job; the last three are final.
const (
	Queued     State = "queued"
	Processing State = "processing"
	Done       State = "done"
	Failed     State = "failed"
	Cancelled  State = "cancelled"
)

// Final reports whether a job in state s has ended.
func (s State) Final() bool { return s == Done || s == Failed || s == Cancelled }

// Failure is why a job ended without a result. Type and Traceback are reported by the
// runner, and empty if shepherd itself detected the failure.
type Failure struct {
	Message   string `json:"message"`
	Type      string `json:"exception_type,omitempty"`
	Traceback string `json:"exception_traceback,omitempty"`
}

// Error returns the message.
func (f *Failure) Error() string { return f.Message }

// MaxIdempotency bounds Request.Idempotency, in bytes.
const MaxIdempotency = 64

// Request is a client's request to run a job.
type Request struct {
	ID    ID
	Model Model
	// Sheep addresses one sheep by name, SHEEP or NODE/SHEEP; empty means any.
	Sheep string
	// NodeLabels are labels that the node of the sheep must have.
	NodeLabels Labels
	// Priority orders jobs, higher first; the default is 0.
	Priority int
	// Payload, if not nil, becomes the job's only input, inputs/input. If nil, the job's
	// place in storage must exist.
	Payload []byte
	// Trace is the client's trace context.
	Trace Trace
	// Tenant owns the job; besides the tenant, only callers without a tenant see it. Empty
	// for no owner.
	Tenant string
	// Limits bound the job's tries and times.
	Limits Limits
	// NotBefore is the earliest time at which the job may start, Deadline the latest at
	// which it may end; zero for none.
	NotBefore, Deadline time.Time
	// Keep is how long the job's files are kept after its end; 0 is forever, nil the
	// configured time.
	Keep *time.Duration
	// Labels are the client's notes on the job.
	Labels Labels
	// Idempotency identifies a repeated request: a digest of the client's Idempotency-Key
	// and of the request; empty if the client sent no key.
	Idempotency string
	// Copies selects files of other jobs that become inputs of this one.
	Copies []Copy
	// After are the jobs whose outputs become inputs of this one, below inputs/ID/. The job
	// waits until all of them are done.
	After []ID `json:",omitempty"` // as with Webhook
	// Group is the group that the job belongs to, empty for none.
	Group string `json:",omitempty"` // as with Webhook
	// Webhook is where events of the run are sent.
	Webhook Webhook `json:",omitzero"` // omitted so that digests of requests without one stay the same as in earlier versions
}

// Record is a job as the ledger stores it. Times are UTC with microseconds; a zero time
// means not yet, or none.
type Record struct {
	ID       ID
	Model    Model
	Sheep    string // the address, see Address.String
	Priority int
	Trace    Trace
	Tenant   string // see Request
	Limits   Limits
	// Deadline is the latest time at which the run may end.
	Deadline time.Time
	// Labels are the client's notes on the job. They are only read.
	Labels Labels
	// Idempotency is the request's; see Request. It has at most MaxIdempotency bytes.
	Idempotency string
	// After are the jobs whose outputs become inputs of this one, at most MaxAfter. They
	// are only read.
	After []ID
	// Group is the group that the job belongs to, empty for none.
	Group string
	// Webhook is where events of the run are sent. It is set in a record that is being
	// created or restored; a ledger keeps it beside the record (see ledger.Webhooks).
	Webhook Webhook

	State      State
	Failure    *Failure // set exactly when State is Failed
	EnqueuedAt time.Time
	StartedAt  time.Time // of the current attempt, or the one that ended the run
	FinishedAt time.Time

	// Run counts the submissions of this id, from 1: a client may run a finished job again.
	Run int
	// Seq is the position in the queue: a later submission has a larger one.
	Seq int64
	// NotBefore is the earliest time at which the job may be claimed: the client's, or a
	// later one after an attempt that will be repeated.
	NotBefore time.Time
	// WaitUntil is when the job fails unless it was started before; zero after the start.
	WaitUntil time.Time

	// Blocked is set while the job is queued and jobs of After are not done.
	Blocked bool

	// Attempt is the number of this run's current or last attempt, 0 before the first.
	// Spent is how many of the ended ones count as tries.
	Attempt, Spent int
	// Holder is the sheep that holds the job, Node its node; empty if no sheep holds it.
	Holder, Node string
	// Cancelling is set if the holder was asked to end the job.
	Cancelling bool

	// Usage is what the attempt that ended the run used of GPUs.
	Usage Usage
	// Warnings are messages for the client about a job that is done, such as outputs that
	// were left out.
	Warnings []string

	// Keep is the client's choice of how long to keep the files; see Request.
	Keep *time.Duration
	// KeptUntil is when the files of an ended job are or were removed; zero for never.
	KeptUntil time.Time
	// Removing is set once the removal of the files has begun, FilesRemoved once they are
	// gone.
	Removing, FilesRemoved bool
}

// Now returns the current time in the precision of records: UTC, whole microseconds.
func Now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }
