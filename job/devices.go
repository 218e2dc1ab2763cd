package job

import "time"

// Admission is which jobs a sheep may claim, considering only its devices.
type Admission int

// Ordered from the fewest jobs to the most.
const (
	NoJobs  Admission = iota // a device of the sheep has failed
	OwnJobs                  // only jobs addressed to the sheep: others use its devices
	AnyJobs                  // any; another sheep's model may have to be unloaded first
	AnyNow                   // any; the devices are free
)

// Usage is what a job used of its sheep's GPUs. It is zero for a sheep without GPUs.
type Usage struct {
	// GPUMemory is the peak memory in bytes of the sheep's runner on all its GPUs during
	// the job; 0 if the driver did not report it.
	GPUMemory int64
	// GPUTime is how long the runner had the job, times the number of GPUs.
	GPUTime time.Duration
}

// Account is the report on a job's time on its sheep's GPUs, after the job has ended.
type Account struct {
	Usage
	// Cause is the fault that the GPUs reported during the job, as a sentence without a
	// full stop; empty for none.
	Cause string
	// Lost is set if the job failed and one of the GPUs has failed, which may be the
	// reason.
	Lost bool
}

// GPUs is the state of a machine's GPUs.
type GPUs struct {
	Driver, CUDA string // versions; empty if unknown
	// Trouble is why the state of the GPUs is unknown; empty if it is known.
	Trouble string
	GPUs    []GPU // by index
	// Others are devices of sheep that NVIDIA's driver does not list: another vendor's, or
	// all of them while the driver does not answer.
	Others []Device
}

// GPU is the last known state of one GPU. Values that the driver does not report are nil.
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
	// Detail is why the GPU has failed, or why its state is unknown.
	Detail  string
	Since   time.Time // when it failed
	Retest  time.Time // when it is tested again
	Sheep   []DeviceUser
	Foreign []Process // processes that shepherd did not start
}

// Device is a device of which only the name is known.
type Device struct {
	Name  string
	Sheep []DeviceUser
}

// Health is whether a GPU works.
type Health string

// The values of Health.
const (
	Well    Health = "ok"
	Out     Health = "out"     // failed; it runs no jobs
	Unknown Health = "unknown" // the driver does not answer; it runs jobs
)

// DeviceUser is a sheep that uses a device.
type DeviceUser struct {
	Sheep  string
	Device string // the MIG instance's UUID; empty for the whole GPU
	Shared bool
	Budget int64 // bytes; 0 is all
	Model  Model // loaded on the device; zero for none
	Job    ID    // the current job
	Used   int64 // bytes
}

// Process is a process that has memory on a GPU.
type Process struct {
	PID  int
	Name string
	Used int64 // bytes
}
