package cli

import (
	"context"
	"errors"
	"io"

	"github.com/iterait/shepherd/cli/remote"
	"github.com/iterait/shepherd/daemon"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/shepherd"
)

// localModels opens the models of this machine while no daemon is running with the
// configuration.
func localModels(ctx context.Context, file string, logTo io.Writer) (remote.Models, func(), error) {
	cfg, err := daemon.LoadConfig(file)
	if err != nil {
		return nil, nil, err
	}
	models, closeModels, err := daemon.OpenModels(ctx, cfg, logTo)
	if err != nil {
		return nil, nil, err
	}
	return machineModels{models}, closeModels, nil
}

// machineModels are the models of this machine.
type machineModels struct{ *shepherd.Models }

var errOneMachine = errors.New("no daemon is running here, so there is but this machine: leave --node out, or name a daemon with --server")

// Pull fetches a model.
func (m machineModels) Pull(ctx context.Context, o job.PullOrder, report func(job.PullProgress)) error {
	if o.Node != "" {
		return errOneMachine
	}
	return m.Models.Pull(ctx, o.Model, o.Sheep, report)
}

// List lists those that are here.
func (m machineModels) List(ctx context.Context) (job.KeptModels, error) {
	list, err := m.Models.List(ctx)
	return job.KeptModels{Models: list}, err
}

// Remove removes a model.
func (m machineModels) Remove(ctx context.Context, model job.Model, node string) error {
	if node != "" {
		return errOneMachine
	}
	return m.Models.Remove(ctx, model)
}
