package job

import (
	"fmt"
	"time"
)

// KeptModel is a model on this machine's disk, which need not be fetched to be loaded.
type KeptModel struct {
	Model Model
	// Reference is the image reference that was fetched, Digest its digest.
	Reference, Digest string
	// Size is its size on disk in bytes, including parts shared with other models; Own is
	// what removing it alone frees.
	Size, Own int64
	LastUsed  time.Time
	// InUse is set if a runner has it loaded.
	InUse bool
	// Node is the node of a fleet that has it; empty on a single node.
	Node string
}

// KeptModels are the models of all nodes that share a ledger, or of one.
type KeptModels struct {
	Models []KeptModel // by name, then node
	// Unanswered are the live nodes that did not answer.
	Unanswered []UnansweredNode
}

// UnansweredNode is a live node of a fleet that did not answer.
type UnansweredNode struct {
	Name    string
	Problem string // why, for people
}

// PullOrder is a request to fetch a model.
type PullOrder struct {
	Model Model
	Node  string // of a fleet; empty for all
	Sheep string // [NODE/]SHEEP; empty for all that fetch models
}

// PullProgress is the progress of fetching a model.
type PullProgress struct {
	// Text describes it for people in one line.
	Text string
	// Done is the number of bytes fetched of Total; Total is 0 while unknown.
	Done, Total int64
	// Rate is bytes a second.
	Rate float64
}

// ModelError is why an operation on a model failed, in words for clients. Class is an
// errdefs class, which tells whether a retry makes sense.
type ModelError struct {
	Problem string
	Class   error
}

func (e *ModelError) Error() string { return e.Problem }
func (e *ModelError) Unwrap() error { return e.Class }

// ModelNeeded is returned if a model cannot be removed because an unfinished job or, if Job
// is empty, a sheep needs it.
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
