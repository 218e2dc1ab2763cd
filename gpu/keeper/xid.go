package keeper

import (
	"fmt"
	"maps"
)

// Action is what follows from an Xid.
type Action string

// The actions.
const (
	Retire  Action = "retire"   // the GPU is taken out
	FailJob Action = "fail_job" // a job that fails meanwhile is told why
	Ignore  Action = "ignore"
)

// UnmarshalText reads an action.
func (a *Action) UnmarshalText(text []byte) error {
	switch Action(text) {
	case Retire, FailJob, Ignore:
		*a = Action(text)
		return nil
	}
	return fmt.Errorf("expected retire, fail_job or ignore, found %q", text)
}

// XidRule says what an Xid means.
type XidRule struct {
	Action Action
	Text   string // in a few words
}

// DefaultXids is what is done about the Xids that NVIDIA documents in "XID
// Errors": a program's own fault fails its job, one of the GPU's takes it out,
// and what only accompanies another, or calls for no hurry, is ignored. One that
// is not listed is taken for a program's.
func DefaultXids() map[uint64]XidRule { return maps.Clone(xids) }

var xids = map[uint64]XidRule{
	// A program's fault, or most often one.
	8:   {FailJob, "the GPU stopped processing"},
	13:  {FailJob, "graphics engine exception"},
	31:  {FailJob, "GPU memory page fault"},
	32:  {FailJob, "invalid or corrupted push buffer stream"},
	43:  {FailJob, "the GPU stopped processing a program"},
	44:  {FailJob, "graphics engine fault during a context switch"},
	68:  {FailJob, "video processor exception"},
	69:  {FailJob, "graphics engine class error"},
	94:  {FailJob, "contained uncorrectable memory error"},
	109: {FailJob, "context switch timeout"},

	// The GPU's, its memory's or its link's.
	46:  {Retire, "the GPU stopped processing and needs a reset"},
	48:  {Retire, "double bit ECC error"},
	61:  {Retire, "internal micro-controller breakpoint"},
	62:  {Retire, "internal micro-controller halt"},
	64:  {Retire, "a memory row could not be remapped or a page not retired"},
	74:  {Retire, "NVLink error"},
	79:  {Retire, "the GPU has fallen off the bus"},
	95:  {Retire, "uncontained uncorrectable memory error"},
	110: {Retire, "security fault"},
	119: {Retire, "the GPU's system processor does not answer"},
	120: {Retire, "the GPU's system processor failed"},
	140: {Retire, "unrecovered ECC error"},
	143: {Retire, "the GPU failed to initialize"},

	// What accompanies another, or can wait.
	45:  {Ignore, "preemptive clean-up after a program's end or an earlier error"},
	63:  {Ignore, "a memory row is remapped or a page retired at the next reset"},
	92:  {Ignore, "many corrected ECC errors"},
	154: {Ignore, "the recommended recovery changed"},
}
