package job

import (
	"fmt"
	"time"
)

// KeptModel is a model that is kept on this machine and need not be fetched to
// be loaded.
type KeptModel struct {
	Model Model
	// Reference is where it was fetched from, Digest what exactly it is.
	Reference, Digest string
	// Size is what it takes on the disk in bytes, parts shared with other models
	// included; Own is the part that removing it alone gives back.
	Size, Own int64
	LastUsed  time.Time
	// InUse says that a runner has it loaded.
	InUse bool
	// Node is the machine of a fleet that keeps it; empty where the daemon is alone.
	Node string
}

// KeptModels are the models of all machines that share a ledger, or of one.
type KeptModels struct {
	Models []KeptModel // by name, then node
	// Unanswered are the nodes whose models are not known.
	Unanswered []UnansweredNode
}

// UnansweredNode is a node of a fleet that is up and could not be asked.
type UnansweredNode struct {
	Name    string
	Problem string // why, for people
}

// PullOrder says what to fetch, and where.
type PullOrder struct {
	Model Model
	Node  string // of a fleet; empty for all
	Sheep string // [NODE/]SHEEP; empty for all that fetch models
}

// PullProgress is how far a model's fetching is.
type PullProgress struct {
	// Text says it for people, in one line.
	Text string
	// Done of Total bytes are here; Total is 0 while it is not known.
	Done, Total int64
	// Rate is bytes a second.
	Rate float64
}

// ModelError says why something cannot be done with a model, in words that
// clients may read. Class, an errdefs class, says whether trying again makes
// sense.
type ModelError struct {
	Problem string
	Class   error
}

func (e *ModelError) Error() string { return e.Problem }
func (e *ModelError) Unwrap() error { return e.Class }

// ModelNeeded says that a model is not removed because something needs it: a job
// that has not ended or, without one, a sheep.
type ModelNeeded struct {
	Model Model
	Job   ID
	Sheep string
}

func (e *ModelNeeded) Error() string {
	if e.Job != "" {
		return fmt.Sprintf("Model `%s` is needed by job `%s`; wait until it has ended or cancel it", e.Model, e.Job)
	}
	return fmt.Sprintf("Model `%s` is loaded by sheep `%s`; it can be removed when that has loaded another", e.Model, e.Sheep)
}
