package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/metrics"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/shepherd"
)

// environmentOf is what sheep types are made from.
func environmentOf(cfg *config.Config, node string, records ledger.Ledger, lent *gpus, figures *metrics.Metrics, log *slog.Logger) *environment {
	needed := func(ctx context.Context) ([]job.Model, error) { return shepherd.NeededModels(ctx, records) }
	return &environment{config: cfg, node: node, needed: needed, gpus: lent, figures: figures, log: log}
}

// gather makes the sheep types, by name, and the configured sheep.
func gather(ctx context.Context, env *environment, stop *closers) ([]shepherd.Member, map[string]runtime.Driver, error) {
	types, err := drivers(ctx, env)
	if err != nil {
		return nil, nil, err
	}
	for name, driver := range types {
		if c, ok := driver.(io.Closer); ok && otherNames[name] == "" {
			stop.add(func() {
				if err := c.Close(); err != nil {
					env.log.Error("A type of sheep did not end well", "type", name, "error", err)
				}
			})
		}
	}
	var members []shepherd.Member
	for _, s := range env.config.Sheep {
		m, err := newMember(env, types, s)
		if err != nil {
			return nil, nil, fmt.Errorf("sheep %s: %w", s.Name, err)
		}
		env.log.Info(fmt.Sprintf("Created sheep `%s` of type `%s`", s.Name, s.Type), "sheep", s.Name)
		members = append(members, m)
	}
	return members, types, nil
}

// newMember makes a sheep of its section.
func newMember(env *environment, types map[string]runtime.Driver, s config.Sheep) (shepherd.Member, error) {
	driver := types[s.Type]
	sheep, err := driver.NewSheep(s.Name, s.Decode)
	if err != nil {
		return shepherd.Member{}, err
	}
	keeper, _ := driver.(runtime.ModelKeeper)
	m := shepherd.Member{Name: s.Name, Type: s.Type, Sheep: sheep, Models: keeper, IdleTimeout: s.IdleTimeout}
	if env.gpus != nil {
		m.Devices = env.gpus.lend(s)
	}
	return m, nil
}

// begin lets the sheep types begin that look after more than single sheep.
func begin(ctx context.Context, types map[string]runtime.Driver, members []shepherd.Member, log *slog.Logger) {
	named := make(map[runtime.Driver][]string)
	for _, m := range members {
		named[types[m.Type]] = append(named[types[m.Type]], m.Name)
	}
	for name, driver := range types {
		b, ok := driver.(interface {
			Begin(ctx context.Context, names []string) error
		})
		if !ok || otherNames[name] != "" {
			continue
		}
		if err := b.Begin(ctx, named[driver]); err != nil {
			log.Warn(fmt.Sprintf("Sheep of type `%s` are not all they could be", name), "error", err)
		}
	}
}
