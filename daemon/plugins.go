package daemon

import (
	"cmp"
	"context"
	"log/slog"
	"path/filepath"
	"sync/atomic"

	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/image"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/metrics"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/runtime/bare"
	"github.com/iterait/shepherd/runtime/container"
)

// environment is what sheep types are created from.
type environment struct {
	config *config.Config
	node   string
	needed func(context.Context) ([]job.Model, error)
	// preloads are the models that the sheep load without waiting for a job; a reload
	// changes them.
	preloads atomic.Pointer[[]job.Model]
	gpus     *gpus // nil if a configuration is only checked
	// metrics of the sheep types; nil for none.
	metrics *metrics.Metrics
	log     *slog.Logger
}

// newDriver creates the driver of a sheep type.
type newDriver func(*environment) runtime.Driver

// sheepTypes is the only list of sheep types, by their name in the configuration (`type:`).
// docs/writing-a-sheep.md describes how to add one.
func sheepTypes() map[string]newDriver {
	return map[string]newDriver{
		"bare":   newBare,
		"docker": newContainers,
	}
}

// typeAliases returns additional names of sheep types.
func typeAliases() map[string]string { return map[string]string{"container": "docker"} }

// SheepType resolves an alias of a sheep type.
func SheepType(name string) string { return cmp.Or(typeAliases()[name], name) }

func newBare(env *environment) runtime.Driver {
	cfg := bare.Config{
		DataRoot: env.config.DataRoot,
		StateDir: filepath.Join(env.config.StateDir, "sheep"),
		Log:      env.log,
	}
	if env.gpus != nil {
		cfg.GPUs = env.gpus.grantsOf
	}
	return bare.New(cfg)
}

func newContainers(env *environment) runtime.Driver {
	c := env.config
	cfg := container.Config{
		Address: c.Containerd.Address, Namespace: c.Containerd.Namespace, Snapshotter: c.Containerd.Snapshotter,
		ImageBudget: int64(c.Containerd.ImageBudget), Trust: c.Models.Trust(), Needed: env.needed, AllowedMounts: c.Containerd.AllowedMounts,
		CNIConfDir: c.Containerd.CNIConfDir, CNIPluginDirs: c.Containerd.CNIPluginDirs,
		Node: env.node, DataRoot: c.DataRoot, StateDir: filepath.Join(c.StateDir, "containers"), Log: env.log,
	}
	for _, m := range c.Models.Contracts {
		cfg.Contracts = append(cfg.Contracts, container.ModelContract{
			Models: m.Rule(), Contract: container.Contract(m.Contract), Command: m.Command, Args: m.Args,
		})
	}
	if env.gpus != nil {
		cfg.GPUs = container.GPUs{
			Granted: env.gpus.grantsOf, Mode: container.Mode(c.GPU.Mode), CDI: env.gpus.specs, Capabilities: c.GPU.DriverCapabilities,
		}
	}
	if env.metrics != nil {
		cfg.ObserveRegistry, cfg.ObserveContainerd = env.metrics.Registry, env.metrics.Containerd
	}
	cfg.Registry = RegistryOf(c)
	return container.New(cfg)
}

// RegistryOf is the registry of a configuration; the zero one if there is none.
func RegistryOf(c *config.Config) image.Registry {
	r := c.Registry
	if r == nil {
		return image.Registry{}
	}
	return image.Registry{
		URL: r.URL, Username: r.Username, Password: r.Password.Reveal(), PasswordFile: r.PasswordFile,
		DockerConfig: r.DockerConfig, CAFile: r.CAFile, HostsDir: r.HostsDir,
	}
}

// newDrivers creates the driver of every sheep type, by all of its names.
func newDrivers(env *environment) map[string]runtime.Driver {
	drivers := make(map[string]runtime.Driver)
	for name, create := range sheepTypes() {
		drivers[name] = create(env)
	}
	for alias, name := range typeAliases() {
		drivers[alias] = drivers[name]
	}
	return drivers
}

// sheepChecks returns functions that check a sheep's section of a configuration by creating
// a sheep from it.
func sheepChecks() map[string]config.CheckSheep {
	checks := make(map[string]config.CheckSheep)
	check := func(name string) config.CheckSheep {
		return func(c *config.Config, s config.Sheep) error {
			driver := sheepTypes()[name](&environment{config: c, log: slog.New(slog.DiscardHandler)})
			_, err := driver.NewSheep(s.Name, s.Decode)
			return err
		}
	}
	for name := range sheepTypes() {
		checks[name] = check(name)
	}
	for alias, name := range typeAliases() {
		checks[alias] = check(name)
	}
	return checks
}
