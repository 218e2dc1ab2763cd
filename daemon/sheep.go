package daemon

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"

	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/metrics"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/shepherd"
)

// newEnvironment returns what sheep types are created from.
func newEnvironment(cfg *config.Config, node string, l ledger.Ledger, gpus *gpus, m *metrics.Metrics, log *slog.Logger) *environment {
	env := &environment{config: cfg, node: node, gpus: gpus, metrics: m, log: log}
	env.needed = func(ctx context.Context) ([]job.Model, error) {
		models, err := shepherd.NeededModels(ctx, l)
		for _, m := range *env.preloads.Load() {
			if !slices.Contains(models, m) {
				models = append(models, m)
			}
		}
		return models, err
	}
	env.setPreloads(cfg)
	return env
}

// setPreloads takes the preloads from the sheep of a configuration.
func (env *environment) setPreloads(cfg *config.Config) {
	var models []job.Model
	for _, s := range cfg.Sheep {
		if !s.Preload.IsZero() {
			models = append(models, s.Preload)
		}
	}
	env.preloads.Store(&models)
}

// createSheep creates the configured sheep, and the drivers of all sheep types by name.
func createSheep(env *environment, stop *closers) ([]shepherd.Member, map[string]runtime.Driver, error) {
	drivers := newDrivers(env)
	for name, driver := range drivers {
		if c, ok := driver.(io.Closer); ok && SheepType(name) == name {
			stop.add(func() {
				if err := c.Close(); err != nil {
					env.log.Error("Cannot close the driver of a sheep type", "type", name, "error", err)
				}
			})
		}
	}
	var members []shepherd.Member
	for _, s := range env.config.Sheep {
		m, err := newMember(env, drivers, s)
		if err != nil {
			return nil, nil, fmt.Errorf("sheep %s: %w", s.Name, err)
		}
		env.log.Info(fmt.Sprintf("Created sheep `%s` of type `%s`", s.Name, s.Type), "sheep", s.Name)
		members = append(members, m)
	}
	return members, drivers, nil
}

// newMember creates a sheep from its section of the configuration.
func newMember(env *environment, drivers map[string]runtime.Driver, s config.Sheep) (shepherd.Member, error) {
	driver := drivers[s.Type]
	sheep, err := driver.NewSheep(s.Name, s.Decode)
	if err != nil {
		return shepherd.Member{}, err
	}
	keeper, _ := driver.(runtime.ModelKeeper)
	m := shepherd.Member{Name: s.Name, Type: s.Type, Sheep: sheep, Models: keeper, IdleTimeout: s.IdleTimeout, Preload: s.Preload, Limits: s.Limits.Job()}
	if env.gpus != nil {
		m.Devices = env.gpus.lease(s)
	}
	return m, nil
}

// startDrivers starts the drivers that have background work. An error is only logged: the
// type's sheep may still work.
func startDrivers(ctx context.Context, drivers map[string]runtime.Driver, members []shepherd.Member, log *slog.Logger) {
	named := make(map[runtime.Driver][]string)
	for _, m := range members {
		named[drivers[m.Type]] = append(named[drivers[m.Type]], m.Name)
	}
	for name, driver := range drivers {
		b, ok := driver.(interface {
			Begin(ctx context.Context, names []string) error
		})
		if !ok || SheepType(name) != name {
			continue
		}
		if err := b.Begin(ctx, named[driver]); err != nil {
			log.Warn(fmt.Sprintf("Sheep of type `%s` cannot work yet; each tries again with its next job", name), "error", err)
		}
	}
}
