package main

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/containerd/plugin"

	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/image"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/metrics"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/runtime/bare"
	"github.com/iterait/shepherd/runtime/container"
)

// sheepPlugin is the plugin type of sheep types: each is a runtime.Driver,
// registered under the name that `type:` has in the configuration.
const sheepPlugin plugin.Type = "io.iterait.shepherd.sheep.v1"

// environment is what a sheep type is made from.
type environment struct {
	config *config.Config
	node   string
	needed func(context.Context) ([]job.Model, error)
	gpus   *gpus // nil where a configuration is only checked
	// figures count what the types do; nil where nobody looks.
	figures *metrics.Metrics
	log     *slog.Logger
}

// sheepTypes is the one list of sheep types. docs/writing-a-sheep.md takes you
// through adding one.
func sheepTypes() plugin.Registry {
	return plugin.Registry{}.Register(&plugin.Registration{
		Type: sheepPlugin,
		ID:   "bare",
		InitFn: func(ic *plugin.InitContext) (any, error) {
			env := ic.Config.(*environment)
			cfg := bare.Config{
				DataRoot: env.config.DataRoot,
				StateDir: filepath.Join(env.config.StateDir, "sheep"),
				Log:      env.log,
			}
			if env.gpus != nil {
				cfg.GPUs = env.gpus.of
			}
			return bare.New(cfg), nil
		},
	}).Register(&plugin.Registration{
		Type:   sheepPlugin,
		ID:     "docker",
		InitFn: func(ic *plugin.InitContext) (any, error) { return newContainers(ic.Config.(*environment)), nil },
	})
}

// otherNames are further names of sheep types.
var otherNames = map[string]string{"container": "docker"}

func newContainers(env *environment) *container.Driver {
	c := env.config
	cfg := container.Config{
		Address: c.Containerd.Address, Namespace: c.Containerd.Namespace, Snapshotter: c.Containerd.Snapshotter,
		ImageBudget: int64(c.Containerd.ImageBudget), Trust: c.Models.Trust(), Needed: env.needed, AllowedMounts: c.Containerd.AllowedMounts,
		CNIConfDir: c.Containerd.CNIConfDir, CNIPluginDirs: c.Containerd.CNIPluginDirs,
		Node: env.node, DataRoot: c.DataRoot, StateDir: filepath.Join(c.StateDir, "containers"), Log: env.log,
	}
	if env.gpus != nil {
		cfg.GPUs = container.GPUs{
			Granted: env.gpus.of, Mode: container.Mode(c.GPU.Mode), CDI: env.gpus.specs, Capabilities: c.GPU.DriverCapabilities,
		}
	}
	if env.figures != nil {
		cfg.ObserveRegistry, cfg.ObserveContainerd = env.figures.Registry, env.figures.Containerd
	}
	if r := c.Registry; r != nil {
		cfg.Registry = image.Registry{
			URL: r.URL, Username: r.Username, Password: r.Password.Reveal(), PasswordFile: r.PasswordFile,
			DockerConfig: r.DockerConfig, CAFile: r.CAFile, HostsDir: r.HostsDir,
		}
	}
	return container.New(cfg)
}

// drivers makes every sheep type.
func drivers(ctx context.Context, env *environment) (map[string]runtime.Driver, error) {
	made := make(map[string]runtime.Driver)
	for _, r := range sheepTypes().Graph(func(*plugin.Registration) bool { return false }) {
		ic := plugin.NewContext(ctx, plugin.NewPluginSet(), nil)
		ic.Config = env
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
	for other, name := range otherNames {
		made[other] = made[name]
	}
	return made, nil
}

// checks are the sheep types as the configuration knows them: each checks its
// sheep's section by making a sheep of it.
func checks() map[string]config.CheckSheep {
	types := make(map[string]config.CheckSheep)
	check := func(name string) config.CheckSheep {
		return func(c *config.Config, s config.Sheep) error {
			made, err := drivers(context.Background(), &environment{config: c, log: slog.New(slog.DiscardHandler)})
			if err != nil {
				return err
			}
			_, err = made[name].NewSheep(s.Name, s.Decode)
			return err
		}
	}
	for _, r := range sheepTypes() {
		types[r.ID] = check(r.ID)
	}
	for other, name := range otherNames {
		types[other] = check(name)
	}
	return types
}
