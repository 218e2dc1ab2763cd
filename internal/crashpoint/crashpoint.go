// Package crashpoint names the steps of a job after which something is durable
// that was not before. A daemon built with the tag crashpoints kills itself, as
// kill -9 does, when it reaches the point that the environment variable
// SHEPHERD_CRASH_AT names; in any other daemon a point costs nothing. The test of
// test/e2e kills the daemon at each of them, and at each pair of them in turn.
package crashpoint

// Point is a step of a job. The step has been made when the point is reached.
type Point string

// The points, in the order in which a job meets them.
const (
	PayloadStored    Point = "payload-stored"    // the payload is in storage
	RecordCreated    Point = "record-created"    // the ledger has the job
	Claimed          Point = "claimed"           // the job is a sheep's, to be prepared
	InputsStaged     Point = "inputs-staged"     // the inputs are in the staging area
	Started          Point = "started"           // the ledger says that the job is processed
	DirectoryPlaced  Point = "directory-placed"  // the working directory was renamed to where the runner sees it
	Sent             Point = "sent"              // the runner has the job
	Answered         Point = "answered"          // the runner's answer is known
	OutputsCollected Point = "outputs-collected" // the outputs are in storage
	Finished         Point = "finished"          // the ledger has the job's end
	Released         Point = "released"          // the ledger has the job back in the queue, or its end by a cancel
	StatusWritten    Point = "status-written"    // job_status.json says what the ledger says
	Checkpointed     Point = "checkpointed"      // the ledger knows that
	Acknowledged     Point = "acknowledged"      // the runner may forget its answer
	DirectoryRemoved Point = "directory-removed" // the working directory is gone
	CancelRecorded   Point = "cancel-recorded"   // the ledger has a client's wish to cancel
)

// All are the points, in the order in which a job meets them.
func All() []Point {
	return []Point{
		PayloadStored, RecordCreated, Claimed, InputsStaged, Started, DirectoryPlaced, Sent, Answered, OutputsCollected,
		Finished, Released, StatusWritten, Checkpointed, Acknowledged, DirectoryRemoved, CancelRecorded,
	}
}

// Environment is the variable that names the point.
const Environment = "SHEPHERD_CRASH_AT"
