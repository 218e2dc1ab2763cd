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
	// Lost says that the job failed, and that one of them is out: it may be to
	// blame.
	Lost bool
}

// GPUs is what is known of a machine's GPUs.
type GPUs struct {
	Driver, CUDA string // versions; empty where they are not known
	// Trouble says why it is not known how the GPUs fare; empty where it is.
	Trouble string
	GPUs    []GPU // by index
	// Others are devices of sheep that the driver does not tell of: another
	// vendor's, or all of them while it does not answer.
	Others []Device
}

// GPU is one GPU as it was told last. What the driver does not tell is nil.
type GPU struct {
	Index       int
	UUID, Name  string
	Memory      int64 // bytes
	Used        int64 // bytes
	Utilization *int  // percent
	Power       *float64
	Temperature *int    // degrees Celsius
	ECC         *uint64 // uncorrectable errors since the driver was loaded
	Health      Health
	// Detail says why it is out, or why it is not known how it fares.
	Detail  string
	Since   time.Time // when it went out
	Retest  time.Time // when it is tested again
	Sheep   []DeviceUser
	Foreign []Process // that are not shepherd's
}

// Device is one that only its name is known of.
type Device struct {
	Name  string
	Sheep []DeviceUser
}

// Health says how a GPU fares.
type Health string

// The healths.
const (
	Well    Health = "ok"
	Out     Health = "out"     // it runs no jobs
	Unknown Health = "unknown" // the driver does not tell; it runs jobs
)

// DeviceUser is a sheep that has a share of a device.
type DeviceUser struct {
	Sheep  string
	Device string // the MIG instance's UUID; empty for the whole GPU
	Shared bool
	Budget int64 // bytes; 0 is all
	Model  Model // that it has on the device; zero for none
	Job    ID    // under way
	Used   int64 // bytes
}

// Process is one that has memory on a GPU.
type Process struct {
	PID  int
	Name string
	Used int64 // bytes
}
