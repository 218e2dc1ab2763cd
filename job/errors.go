package job

import (
	"fmt"
	"strings"
)

// Errors of requests. Their texts are shown to clients; some are the original shepherd's.

// UnknownJob says that neither the ledger nor storage knows the job.
type UnknownJob struct{ ID string }

func (e *UnknownJob) Error() string { return fmt.Sprintf("Data for job `%s` does not exist", e.ID) }

// UnknownSheep says that a request addresses a sheep that is not configured.
type UnknownSheep struct{ Name string }

func (e *UnknownSheep) Error() string { return fmt.Sprintf("Unknown sheep id `%s`", e.Name) }

// Unavailable is returned if a service that shepherd depends on cannot serve a request now.
// Problem is the reason in a few words. Cause is for the log, not for clients.
type Unavailable struct {
	Service, Problem string
	Cause            error
}

func (e *Unavailable) Error() string {
	return fmt.Sprintf("The %s %s; try again later", e.Service, e.Problem)
}

// Unwrap returns the cause.
func (e *Unavailable) Unwrap() error { return e.Cause }

// NoUploads is why clients cannot put inputs into storage directly.
type NoUploads struct{ Problem string }

func (e *NoUploads) Error() string {
	return e.Problem + "; until then send the inputs with the request (POST /jobs)"
}

// UploadIncomplete is returned for a file of an upload that storage does not have in its
// announced size.
type UploadIncomplete struct{ Path, Problem string }

func (e *UploadIncomplete) Error() string {
	return fmt.Sprintf("The upload is not complete: the file %q %s (POST /uploads/ID/addresses says where to put what is missing)", e.Path, e.Problem)
}

// AfterError is returned if a job cannot be after another one in that job's current state.
type AfterError struct {
	ID      ID // the other one
	Problem string
}

func (e *AfterError) Error() string { return e.Problem }

// QueueFull is returned when no more jobs are accepted, of a tenant if one is named, until
// some of the waiting ones have started.
type QueueFull struct {
	Limit  int
	Tenant string
}

func (e *QueueFull) Error() string {
	if e.Tenant != "" {
		return fmt.Sprintf("The queue of tenant `%s` is full: %d of its jobs wait already, and no more may (max_queued); try again later", e.Tenant, e.Limit)
	}
	return fmt.Sprintf("The queue is full: %d jobs wait already; try again later", e.Limit)
}

// Invalid is returned for a request with a field that cannot be accepted.
type Invalid struct{ Field, Problem string }

// Error is "FIELD: PROBLEM". What the field's name says is not said again: of job_id, that
// "job id "a b" has ' ' at position 2" is `job_id: "a b" has …`.
func (e *Invalid) Error() string {
	words := strings.NewReplacer("_", " ", ".", " ").Replace(e.Field)
	return e.Field + ": " + strings.TrimPrefix(e.Problem, words+" ")
}

// notice is an error whose text is a sentence for clients.
type notice string

func (n notice) Error() string { return string(n) }

// Errors without parameters.
const (
	// ErrSubmitted says that the id is in use.
	ErrSubmitted notice = "A job with this ID was already submitted"
	// ErrNoFile says that the job is there but the file is not.
	ErrNoFile notice = "Requested file does not exist"
	// ErrNoMessage says that there is no such message for a webhook's receiver.
	ErrNoMessage notice = "There is no such message"
	// ErrNotReady says that the job has not ended, so it has no result yet.
	ErrNotReady notice = "the job has not ended yet"
	// ErrEnded says that the job has ended and can no longer be changed.
	ErrEnded notice = "the job has ended already"
	// ErrNotEnded says that only a job that has ended can be removed.
	ErrNotEnded notice = "The job has not ended yet; cancel it, or wait until it has ended, and then remove it"
	// ErrNeeded says that a job that has not ended is after this one.
	ErrNeeded notice = "Another job needs the outputs of this one; wait until that has ended, or cancel it"
	// ErrRemoving says that the files of an earlier job of this id are being
	// removed.
	ErrRemoving notice = "The files of a job with this ID are being removed; try again in a moment"
	// ErrRemovalContinues says that the removal of a job takes longer than a client is
	// kept waiting for it.
	ErrRemovalContinues notice = "The job is being removed; that takes a while and goes on by itself"
	// ErrRemovalStopped says that the removal of a job that only storage knows took longer
	// than a client is kept waiting for it.
	ErrRemovalStopped notice = "The job has more files than could be removed in the time for one request, and the ledger has no record by which the removal could go on by itself; remove it again for the rest"
	// ErrUploading says that another request submits a job with this id at the moment.
	ErrUploading notice = "A job with this ID is being submitted by another request; try again in a moment"
	// ErrNoAddresses says that no addresses of files can be made for clients.
	ErrNoAddresses notice = "It is not configured where clients reach the storage (storage.public_url), so that no addresses of files can be made; fetch them by GET /jobs/ID/result/NAME"
	// ErrNoUpload says that no place is reserved under this id.
	ErrNoUpload notice = "There is no such upload: its job was submitted, or it has expired and what was uploaded is gone; begin another one (POST /uploads)"
	// ErrUploadOver says that a reservation has ended without a job.
	ErrUploadOver notice = "This upload has expired or was given up, and what was uploaded is being removed; upload the inputs again (POST /uploads)"
	// ErrReserved says that the place of a job with this id is reserved for an upload.
	ErrReserved notice = "This ID is reserved for an upload (POST /uploads): submit the job with it, but without inputs in the request, or take another ID"
	// ErrNoGroup says that no job of the group is known.
	ErrNoGroup notice = "There is no such group"
	// ErrNothingToRetry says that only a job that has ended can be run again.
	ErrNothingToRetry notice = "The job has not ended yet; cancel it, or wait until it has ended, and then run it again"
	// ErrFilesRemoved says that a job cannot run again for lack of its inputs.
	ErrFilesRemoved notice = "The files of this job have been removed, so it cannot run again; submit it again with its inputs"
	// ErrForgotten says that the ledger no longer has the job's record, and with it what
	// was asked for.
	ErrForgotten notice = "The record of this job is no longer kept, so it is not known what was asked for; submit it again"
	// ErrEventsGone says that events were removed since the client read them last.
	ErrEventsGone notice = "Events after this id are no longer kept; read the jobs, and follow the events from now on"
	// ErrRange says that the asked part lies outside the file.
	ErrRange notice = "the requested range lies outside the file"
	// ErrNoLog says that a sheep's type keeps no log.
	ErrNoLog notice = "This sheep keeps no log"
	// ErrNoJobLog says that nothing is kept of what runners wrote during a job.
	ErrNoJobLog notice = "No log of this job is kept"
	// ErrNoModels says that no sheep has models that could be fetched.
	ErrNoModels notice = "No configured sheep fetches models: there is nothing to pull or to remove. Container sheep do; bare sheep run what is in their working_directory"
	// ErrDraining says that the daemon is shutting down and takes no more jobs.
	ErrDraining notice = "shepherd is shutting down and takes no more jobs; try again when it is back"
)

// UnknownNode says that no machine of that name shares the ledger.
type UnknownNode struct{ Name string }

func (e *UnknownNode) Error() string { return fmt.Sprintf("Unknown node `%s`", e.Name) }

// NodeInUse says why a node cannot be forgotten, and what to do.
type NodeInUse struct{ Problem string }

func (e *NodeInUse) Error() string { return e.Problem }
