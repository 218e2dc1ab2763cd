package job

import (
	"fmt"
	"time"
)

// Order is an operator's order to a sheep.
type Order struct {
	Do Action
	// Drain is how long the running job may take to finish before the runner is stopped,
	// for Restart; UsualDrain stands for the configured time.
	Drain time.Duration
	// Model is the model to load, for Load.
	Model Model
}

// UsualDrain stands for the drain_timeout of a configuration.
const UsualDrain time.Duration = -1

// Action is what an Order makes a sheep do.
type Action string

// The actions.
const (
	// Drain makes a sheep claim no more jobs. It finishes the running job and keeps its
	// model loaded.
	Drain Action = "drain"
	// Resume lets a drained or stopped sheep claim jobs again.
	Resume Action = "resume"
	// Restart stops a sheep's runner. A job that does not finish in time goes back to the
	// queue, unspent.
	Restart Action = "restart"
	// Load makes an idle sheep load a model.
	Load Action = "load"
)

// SheepState is returned if a sheep cannot execute an order in its current state.
type SheepState struct {
	Sheep string
	Is    SheepTrouble
}

// SheepTrouble is the state that prevents an order.
type SheepTrouble string

// The values of SheepTrouble. They are stable: clients and other nodes match them.
const (
	SheepDrained    SheepTrouble = "sheep-drained"
	SheepNotDrained SheepTrouble = "sheep-not-drained"
	SheepStopped    SheepTrouble = "sheep-stopped"
	SheepBusy       SheepTrouble = "sheep-busy"
	SheepDisturbed  SheepTrouble = "sheep-disturbed"
	SheepNoDevices  SheepTrouble = "sheep-without-devices"
)

// SheepTroubles lists all values of SheepTrouble.
var SheepTroubles = []SheepTrouble{SheepDrained, SheepNotDrained, SheepStopped, SheepBusy, SheepDisturbed, SheepNoDevices}

func (e *SheepState) Error() string {
	switch e.Is {
	case SheepDrained:
		return fmt.Sprintf("Sheep `%s` is drained already", e.Sheep)
	case SheepNotDrained:
		return fmt.Sprintf("Sheep `%s` is neither drained nor stopped", e.Sheep)
	case SheepStopped:
		return fmt.Sprintf("Sheep `%s` is stopped; resume it first", e.Sheep)
	case SheepBusy:
		return fmt.Sprintf("Sheep `%s` has a job, or is loading a model already; drain it and wait until it has ended", e.Sheep)
	case SheepDisturbed:
		return fmt.Sprintf("A job came to sheep `%s` before the model was loaded; drain it first, and it takes none", e.Sheep)
	case SheepNoDevices:
		return fmt.Sprintf("Another sheep has or wants the devices of sheep `%s`; try again when they are free", e.Sheep)
	}
	return fmt.Sprintf("Sheep `%s` cannot do this now (%s)", e.Sheep, e.Is)
}
