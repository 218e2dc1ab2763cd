package job

import "time"

// Admission says which jobs a sheep may claim, as far as its devices go.
type Admission int

// From the least to the most.
const (
	NoJobs  Admission = iota // a device of the sheep is out
	OwnJobs                  // those addressed to it: others work on its devices
	AnyJobs                  // any, though another's model may have to be unloaded first
	AnyNow                   // any; its devices are at hand
)

// Usage is what a job used of the GPUs of the sheep that ran it. It is zero where
// the sheep has none.
type Usage struct {
	// GPUMemory is the most that the sheep's runner had on its GPUs, all together,
	// while it had the job, in bytes; 0 where the driver did not tell.
	GPUMemory int64
	// GPUTime is how long the runner had the job, times the number of GPUs.
	GPUTime time.Duration
}

// Account is what is known of a job's time on its sheep's GPUs when it has ended.
type Account struct {
	Usage
	// Cause is what the GPUs reported while the runner had the job, in a sentence
	// without a full stop; empty where all was well.
	Cause string
}
