package main

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/containerd/plugin"

	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/runtime/bare"
)

// sheepPlugin is the plugin type of sheep types: each is a runtime.Driver,
// registered under the name that `type:` has in the configuration.
const sheepPlugin plugin.Type = "io.iterait.shepherd.sheep.v1"

// environment is what a sheep type is made from.
type environment struct {
	config *config.Config
	log    *slog.Logger
}

// sheepTypes is the one list of sheep types. docs/writing-a-sheep.md takes you
// through adding one.
func sheepTypes() plugin.Registry {
	return plugin.Registry{}.Register(&plugin.Registration{
		Type: sheepPlugin,
		ID:   "bare",
		InitFn: func(ic *plugin.InitContext) (any, error) {
			env := ic.Config.(*environment)
			return bare.New(bare.Config{
				DataRoot: env.config.DataRoot,
				StateDir: filepath.Join(env.config.StateDir, "sheep"),
				Log:      env.log,
			}), nil
		},
	})
}

// drivers makes every sheep type for a configuration.
func drivers(ctx context.Context, c *config.Config, log *slog.Logger) (map[string]runtime.Driver, error) {
	made := make(map[string]runtime.Driver)
	for _, r := range sheepTypes().Graph(func(*plugin.Registration) bool { return false }) {
		ic := plugin.NewContext(ctx, plugin.NewPluginSet(), nil)
		ic.Config = &environment{config: c, log: log}
		instance, err := r.Init(ic).Instance()
		if err != nil {
			return nil, fmt.Errorf("sheep type %s: %w", r.ID, err)
		}
		driver, ok := instance.(runtime.Driver)
		if !ok {
			return nil, fmt.Errorf("sheep type %s is a %T, not a driver", r.ID, instance)
		}
		made[r.ID] = driver
	}
	return made, nil
}

// checks are the sheep types as the configuration knows them: each checks its
// sheep's section by making a sheep of it.
func checks() map[string]config.CheckSheep {
	types := make(map[string]config.CheckSheep)
	for _, r := range sheepTypes() {
		types[r.ID] = func(c *config.Config, s config.Sheep) error {
			made, err := drivers(context.Background(), c, slog.New(slog.DiscardHandler))
			if err != nil {
				return err
			}
			_, err = made[r.ID].NewSheep(s.Name, s.Decode)
			return err
		}
	}
	return types
}
