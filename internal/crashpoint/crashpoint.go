// Package crashpoint names the steps of a job that make something durable. A daemon built with the tag crashpoints kills itself, as
// kill -9 does, when it reaches the point that the environment variable
// SHEPHERD_CRASH_AT names; in any other daemon a point costs nothing. The test of
// test/e2e kills the daemon at each of them, and at each pair of them in turn.
package crashpoint

// Point is a step of a job. It is reached when the step has been completed.
type Point string

// The points, in the order in which a job reaches them.
const (
	PayloadStored    Point = "payload-stored"    // the payload is in storage
	RecordCreated    Point = "record-created"    // the ledger has the job
	Claimed          Point = "claimed"           // a sheep has claimed the job, to prepare it
	InputsStaged     Point = "inputs-staged"     // the inputs are in the staging area
	Started          Point = "started"           // the job is processing in the ledger
	DirectoryPlaced  Point = "directory-placed"  // the working directory was renamed to its place for the runner
	Sent             Point = "sent"              // the runner has the job
	SentUnstarted    Point = "sent-unstarted"    // the runner has the job, and the ledger not yet its start
	Answered         Point = "answered"          // the runner's answer is known
	OutputsCollected Point = "outputs-collected" // the outputs are in storage
	Finished         Point = "finished"          // the ledger has the job's end
	Released         Point = "released"          // the job is back in the queue, or cancelled, in the ledger
	StatusWritten    Point = "status-written"    // job_status.json agrees with the ledger
	Checkpointed     Point = "checkpointed"      // the ledger has the checkpoint of that
	Acknowledged     Point = "acknowledged"      // the runner may discard its answer
	DirectoryRemoved Point = "directory-removed" // the working directory was removed
	CancelRecorded   Point = "cancel-recorded"   // the ledger has a client's cancel
)

// All returns the points, in the order in which a job reaches them.
func All() []Point {
	return []Point{
		PayloadStored, RecordCreated, Claimed, InputsStaged, Started, DirectoryPlaced, Sent, SentUnstarted, Answered, OutputsCollected,
		Finished, Released, StatusWritten, Checkpointed, Acknowledged, DirectoryRemoved, CancelRecorded,
	}
}

// Environment is the variable that names the point.
const Environment = "SHEPHERD_CRASH_AT"
