// Package gpu describes a machine's GPUs and their state, parses the devices that a sheep's
// configuration names, and decides which sheep gets which GPU.
//
// # Access to the driver
//
// Only the program cmd/shepherd-gpu calls the driver, and Helper runs it with a time
// limit, because a broken driver hangs or kills the process that calls it. This file
// describes its output: `inventory` prints one Inventory, `watch` one Sample a line.
package gpu

import "time"

// Inventory lists a machine's GPUs. It is the output of `shepherd-gpu inventory`, in
// JSON.
type Inventory struct {
	// Driver and CUDA are the versions of the driver and of the newest CUDA that
	// it supports ("550.54.15", "12.4").
	Driver string `json:"driver"`
	CUDA   string `json:"cuda"`
	GPUs   []GPU  `json:"gpus"` // by index
}

// GPU is one GPU.
type GPU struct {
	Index  int    `json:"index"` // NVML's; equal to Minor on most machines
	Minor  int    `json:"minor"` // N of /dev/nvidiaN
	UUID   string `json:"uuid"`  // "GPU-…"
	Name   string `json:"name"`
	PCI    string `json:"pci"`    // "0000:3b:00.0"
	Memory uint64 `json:"memory"` // total, in bytes
	// MIG are its MIG instances; a GPU in MIG mode can only be used through these.
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

// State is a GPU's state at one moment. Fields that the driver does not report are nil.
type State struct {
	Used        uint64    `json:"used"`                  // bytes of memory
	Utilization *int      `json:"utilization,omitempty"` // percent of the last period with a kernel running
	Power       *float64  `json:"power,omitempty"`       // watts
	Temperature *int      `json:"temperature,omitempty"` // degrees Celsius
	Processes   []Process `json:"processes,omitempty"`
	// Uncorrectable counts uncorrectable ECC errors since the driver was loaded.
	Uncorrectable *uint64 `json:"uncorrectable,omitempty"`
	// RowRemapFailed and ResetRequired are set if the driver reports that the GPU must
	// be repaired or reset before it is used.
	RowRemapFailed bool `json:"row_remap_failed,omitempty"`
	ResetRequired  bool `json:"reset_required,omitempty"`
	// Lost is true if the GPU does not answer any more ("fell off the bus"). The other
	// fields then have old values; in an inventory usually even the UUID is missing.
	Lost bool `json:"lost,omitempty"`
}

// Process is a process that uses memory of a GPU.
type Process struct {
	PID  int    `json:"pid"`           // in the host's namespace
	Used uint64 `json:"used"`          // bytes
	MIG  string `json:"mig,omitempty"` // the instance's UUID
}

// Sample is one line of `shepherd-gpu watch`: the state of one GPU, or an Xid error that
// it reported. A Sample without a GPU only shows that the driver answers.
type Sample struct {
	Time time.Time `json:"time"`
	// UUID is empty for a GPU that was lost before its UUID was read; such a Sample has
	// an Index and a State.
	UUID  string `json:"uuid,omitempty"`
	Index int    `json:"index,omitempty"`
	*State
	Xid *Xid `json:"xid,omitempty"`
}

// Xid is an error that the driver reports. The codes are documented by NVIDIA
// ("XID Errors").
type Xid struct {
	Code uint64 `json:"code"`
	MIG  string `json:"mig,omitempty"` // the instance's UUID, if it is known
}
