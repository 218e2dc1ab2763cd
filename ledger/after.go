package ledger

import (
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
)

// AfterError says that a job cannot be after another one.
type AfterError struct {
	Job job.ID // the other one
	// State is the other's, where that has ended without outputs, and job.Done where its
	// files were removed; empty where it is not known, or another tenant's.
	State job.State
}

func (e *AfterError) Error() string {
	switch e.State {
	case "":
		return fmt.Sprintf("there is no job `%s` to be after", e.Job)
	case job.Done:
		return fmt.Sprintf("the outputs of job `%s` were removed", e.Job)
	}
	return fmt.Sprintf("job `%s` is %s, so it has no outputs", e.Job, e.State)
}

// Unwrap returns the error's class, which is errdefs.ErrFailedPrecondition.
func (e *AfterError) Unwrap() error { return errdefs.ErrFailedPrecondition }

// CheckAfter checks whether a new run of rec may be after the jobs that it names, which
// find returns, nil for those that are not known. blocked says that it has to wait for
// one of them. The error is *AfterError.
func CheckAfter(rec job.Record, find func(job.ID) *job.Record) (blocked bool, err error) {
	for _, id := range rec.After {
		other := find(id)
		switch {
		case other == nil || id == rec.ID || rec.Tenant != "" && rec.Tenant != other.Tenant:
			return false, &AfterError{Job: id}
		case other.State == job.Failed || other.State == job.Cancelled:
			return false, &AfterError{Job: id, State: other.State}
		case other.Removing || other.FilesRemoved:
			return false, &AfterError{Job: id, State: job.Done}
		case other.State != job.Done:
			blocked = true
		}
	}
	return blocked, nil
}
