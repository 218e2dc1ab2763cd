package job

import (
	"errors"
	"fmt"
)

// What can be wrong with a client's question, in the original's words. They
// are the messages a client sees.

// UnknownJob says that neither the ledger nor storage knows the job.
type UnknownJob struct{ ID string }

func (e *UnknownJob) Error() string { return fmt.Sprintf("Data for job `%s` does not exist", e.ID) }

// UnknownSheep says that a request addresses a sheep that is not configured.
type UnknownSheep struct{ Name string }

func (e *UnknownSheep) Error() string { return fmt.Sprintf("Unknown sheep id `%s`", e.Name) }

// Invalid says which field of a request cannot be accepted, and why.
type Invalid struct{ Field, Problem string }

func (e *Invalid) Error() string { return fmt.Sprintf("%s: %s", e.Field, e.Problem) }

var (
	// ErrSubmitted says that the id is in use.
	ErrSubmitted = errors.New("A job with this ID was already submitted") //nolint:staticcheck // the original's wording
	// ErrNoFile says that the job is there but the file is not.
	ErrNoFile = errors.New("Requested file does not exist") //nolint:staticcheck // the original's wording
	// ErrNotReady says that the job has not ended, so it has no result yet.
	ErrNotReady = errors.New("the job has not ended yet")
	// ErrEnded says that the job has ended and can no longer be changed.
	ErrEnded = errors.New("the job has ended already")
	// ErrRange says that the asked part lies outside the file.
	ErrRange = errors.New("the requested range lies outside the file")
	// ErrDraining says that the daemon is shutting down and takes no more jobs.
	ErrDraining = errors.New("shepherd is shutting down and takes no more jobs; try again when it is back")
)
