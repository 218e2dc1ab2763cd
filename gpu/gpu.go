// Package gpu is what the daemon knows of a machine's GPUs: which there are, how
// a sheep names those it wants, and how they fare.
//
// # Who touches the driver
//
// Only cmd/shepherd-gpu does, a program of its own with a time limit, because a
// broken driver hangs or kills the process that calls it. What it prints is what
// this file describes: `inventory` one Inventory, `watch` one Sample a line.
package gpu

import "time"

// Inventory is what GPUs a machine has. It is the output of `shepherd-gpu
// inventory`, in JSON.
type Inventory struct {
	// Driver and CUDA are the versions of the driver and of the newest CUDA that
	// it serves ("550.54.15", "12.4").
	Driver string `json:"driver"`
	CUDA   string `json:"cuda"`
	GPUs   []GPU  `json:"gpus"` // by index
}

// GPU is one GPU.
type GPU struct {
	Index  int    `json:"index"` // NVML's: that of /dev/nvidiaN unless the minor differs
	Minor  int    `json:"minor"` // N of /dev/nvidiaN
	UUID   string `json:"uuid"`  // "GPU-…"
	Name   string `json:"name"`
	PCI    string `json:"pci"`    // "0000:3b:00.0"
	Memory uint64 `json:"memory"` // bytes in all
	// MIG are its MIG instances; a GPU in MIG mode is used by these alone.
	MIGMode bool       `json:"mig_mode,omitempty"`
	MIG     []Instance `json:"mig,omitempty"`
	State
}

// Instance is one MIG device of a GPU.
type Instance struct {
	Index   int    `json:"index"` // within its GPU: 1 of "0:1"
	UUID    string `json:"uuid"`  // "MIG-…"
	Profile string `json:"profile"`
	Memory  uint64 `json:"memory"` // bytes
	Used    uint64 `json:"used"`   // bytes
}

// State is how a GPU fares at one moment. What the driver does not tell is nil.
type State struct {
	Used        uint64    `json:"used"`                  // bytes of memory
	Utilization *int      `json:"utilization,omitempty"` // percent of the last period with a kernel running
	Power       *float64  `json:"power,omitempty"`       // watts
	Temperature *int      `json:"temperature,omitempty"` // degrees Celsius
	Processes   []Process `json:"processes,omitempty"`
	// Uncorrectable counts uncorrectable ECC errors since the driver was loaded.
	Uncorrectable *uint64 `json:"uncorrectable,omitempty"`
	// RowRemapFailed and ResetRequired are the driver's own word that the GPU
	// must not be used before it was repaired or reset.
	RowRemapFailed bool `json:"row_remap_failed,omitempty"`
	ResetRequired  bool `json:"reset_required,omitempty"`
	// Lost says that the GPU no longer answers ("fell off the bus"); the rest is
	// then what was known of it last, in an inventory mostly not even the UUID.
	Lost bool `json:"lost,omitempty"`
}

// Process is a process that has memory on a GPU.
type Process struct {
	PID  int    `json:"pid"` // in the host's namespace
	Used uint64 `json:"used"`
	MIG  string `json:"mig,omitempty"` // the instance's UUID
}

// Sample is one line of `shepherd-gpu watch`: the state of one GPU, or an Xid
// that it reported. One that names no GPU says that the driver answers.
type Sample struct {
	Time time.Time `json:"time"`
	// UUID is empty for a GPU that was lost before it said who it is: it has an
	// Index and a State.
	UUID  string `json:"uuid,omitempty"`
	Index int    `json:"index,omitempty"`
	*State
	Xid *Xid `json:"xid,omitempty"`
}

// Xid is an error that the driver reports. The codes are documented by NVIDIA
// ("XID Errors").
type Xid struct {
	Code uint64 `json:"code"`
	MIG  string `json:"mig,omitempty"` // the instance's UUID, where it is known
}
