package keeper

import (
	"fmt"
	"maps"
)

// Action is the reaction to an Xid error.
type Action string

// The actions.
const (
	Retire  Action = "retire"   // take the GPU out of service
	FailJob Action = "fail_job" // name the Xid as the cause if the current job fails
	Ignore  Action = "ignore"
)

// UnmarshalText parses an action.
func (a *Action) UnmarshalText(text []byte) error {
	switch Action(text) {
	case Retire, FailJob, Ignore:
		*a = Action(text)
		return nil
	}
	return fmt.Errorf("expected retire, fail_job or ignore, found %q", text)
}

// XidRule is the rule for an Xid error.
type XidRule struct {
	Action Action
	Text   string // the error's meaning in a few words
}

// DefaultXids returns the rules for the Xid errors in NVIDIA's document "XID Errors": an
// application error is FailJob, a hardware error is Retire, and an Xid that accompanies
// another one or does not require action soon is Ignore. An Xid without a rule is treated
// as FailJob.
func DefaultXids() map[uint64]XidRule { return maps.Clone(xids) }

var xids = map[uint64]XidRule{
	// Usually an error of the application.
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

	// Errors of the GPU, its memory or its link.
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

	// Xids that accompany another one or can wait.
	45:  {Ignore, "preemptive clean-up after a program's end or an earlier error"},
	63:  {Ignore, "a memory row is remapped or a page retired at the next reset"},
	92:  {Ignore, "many corrected ECC errors"},
	154: {Ignore, "the recommended recovery changed"},
}
