package job

import (
	"fmt"
	"time"
)

// Order is what a sheep is told to do.
type Order struct {
	Do Action
	// Drain is how long the job under way may take to finish before the runner is ended,
	// for Restart; UsualDrain is as long as the node's configuration says.
	Drain time.Duration
	// Model is what is to be loaded, for Load.
	Model Model
}

// UsualDrain stands for the drain_timeout of a configuration.
const UsualDrain time.Duration = -1

// Action is what a sheep can be told to do.
type Action string

// The actions.
const (
	// Drain has a sheep claim no more jobs. It goes on with the one it has, and keeps the
	// model that it has loaded.
	Drain Action = "drain"
	// Resume lets a sheep claim jobs again that was drained, or stopped.
	Resume Action = "resume"
	// Restart ends a sheep's runner. A job that does not end in time goes back to the
	// queue, unspent.
	Restart Action = "restart"
	// Load has a sheep without a job load a model.
	Load Action = "load"
)

// SheepState says that a sheep cannot do what it is told, as it is now.
type SheepState struct {
	Sheep string
	Is    SheepTrouble
}

// SheepTrouble is what keeps a sheep from doing what it is told.
type SheepTrouble string

// The troubles. Their values are stable: clients and other nodes match them.
const (
	SheepDrained    SheepTrouble = "sheep-drained"
	SheepNotDrained SheepTrouble = "sheep-not-drained"
	SheepStopped    SheepTrouble = "sheep-stopped"
	SheepBusy       SheepTrouble = "sheep-busy"
	SheepDisturbed  SheepTrouble = "sheep-disturbed"
	SheepNoDevices  SheepTrouble = "sheep-without-devices"
)

// SheepTroubles are all there are.
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
