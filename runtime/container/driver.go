// Package container runs runners in containers, by containerd alone, without
// dockerd.
//
// The image of a model is REGISTRY/NAME:VERSION (package image). Each run of it
// is a container of its own in containerd's namespace "shepherd", with a snapshot
// and a task of the same id, SHEEP-LIFE, made from the spec that package oci
// composes. A shim (package shim) runs for each container: it collects the runner's
// output, connects to the runner inside the container's network namespace, watches
// its process and stops it. So the runner outlives the daemon, and containerd is
// needed only to start a container and to remove it.
//
//	Load ─► image.Store ─► Launch: snapshot, container, task ─► shim watches
//	                                                              │ process ends
//	        container, snapshot removed ◄─ Clean: exit code ◄─────┘
//
// A sheep's state is in StateDir/SHEEP; see package shimmed. Labels on containers
// name the sheep and the node that they belong to; containers without these labels,
// or with those of another node, are never touched.
package container

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/iterait/shepherd/image"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/runtime/shimmed"
)

// The defaults of Config.
const (
	DefaultAddress     = "/run/containerd/containerd.sock"
	DefaultNamespace   = "shepherd"
	DefaultSnapshotter = "overlayfs"
)

// Config configures all container sheep of a daemon; some values are defaults that
// a sheep's Options override.
type Config struct {
	// Address is containerd's socket, Namespace the containerd namespace that holds
	// shepherd's images and containers.
	Address, Namespace string
	// Snapshotter is the containerd snapshotter that unpacks images.
	Snapshotter string
	// Registry holds the models' images; without one, NewSheep fails.
	Registry image.Registry
	// ImageBudget is how many bytes pulled images may take on the disk; 0 is no
	// limit.
	ImageBudget int64
	// Trust lists the digests that models' images must have; nil trusts all.
	Trust job.Trust
	// Contracts set, for some models, how their images receive jobs. The first that
	// matches a model overrides the sheep's Options.
	Contracts []ModelContract
	// Needed lists the models whose images are never removed to keep within
	// ImageBudget; see package image.
	Needed func(context.Context) ([]job.Model, error)
	// CNIConfDir is the directory of CNI's configuration, for sheep with network
	// cni; CNIPluginDirs are those of its plugins.
	CNIConfDir    string
	CNIPluginDirs []string
	// AllowedMounts are the paths of the host that sheep may mount.
	AllowedMounts []string
	// Node distinguishes this daemon from others that use the same containerd.
	Node string
	// GPUs configures which GPUs sheep get, and how.
	GPUs GPUs
	// DataRoot/SHEEP is the runner's io_data_root, and is mounted at the same path
	// in the container.
	DataRoot string
	// StateDir/SHEEP holds the state that must outlive the daemon.
	StateDir string
	// Shim is the path of the shepherd-shim program; see shimmed.FindShim.
	Shim string
	// Grace is the time between TERM and KILL when a runner is stopped.
	Grace time.Duration
	// OrphanTimeout is how long an idle runner stays up while no daemon is
	// connected to its shim.
	OrphanTimeout time.Duration
	// ObserveRegistry is called with each response of the registry,
	// ObserveContainerd with each of containerd; each may be nil.
	ObserveRegistry, ObserveContainerd image.Observer

	Log *slog.Logger // nil discards
}

// Driver makes container sheep. Close it after all of its sheep are closed.
type Driver struct {
	cfg     Config
	host    *host
	devices *devices
	usage   usage

	mu           sync.Mutex
	snapshotters map[string]string // by sheep
}

var _ runtime.Driver = (*Driver)(nil)

// New makes a Driver. It does not connect to containerd; the first call that needs
// containerd does.
func New(cfg Config) *Driver {
	cfg.Address = cmp.Or(cfg.Address, DefaultAddress)
	cfg.Namespace = cmp.Or(cfg.Namespace, DefaultNamespace)
	cfg.Snapshotter = cmp.Or(cfg.Snapshotter, DefaultSnapshotter)
	cfg.CNIConfDir = cmp.Or(cfg.CNIConfDir, DefaultCNIConfDir)
	if len(cfg.CNIPluginDirs) == 0 {
		cfg.CNIPluginDirs = defaultCNIPluginDirs
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Driver{cfg: cfg, host: newHost(cfg), devices: newDevices(cfg.GPUs), snapshotters: make(map[string]string)}
}

// NewSheep reads a sheep's configuration, Options. See runtime.Driver.
func (d *Driver) NewSheep(name string, decode func(any) error) (runtime.Sheep, error) {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return nil, fmt.Errorf("sheep name %q cannot be the name of a directory", name)
	}
	var o Options
	if err := decode(&o); err != nil {
		return nil, err
	}
	errs := []error{o.check(d.cfg.AllowedMounts)}
	if d.cfg.Registry.URL == "" {
		errs = append(errs, errors.New("a container sheep needs a registry to pull models from: add `registry: {url: …}` to the configuration"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.snapshotters[name] = cmp.Or(o.Snapshotter, d.cfg.Snapshotter)
	d.mu.Unlock()
	return d.sheep(name, o)
}

func (d *Driver) sheep(name string, o Options) (*shimmed.Sheep, error) {
	dataRoot, err := filepath.Abs(d.cfg.DataRoot)
	if err != nil {
		return nil, err
	}
	stateDir, err := filepath.Abs(d.cfg.StateDir)
	if err != nil {
		return nil, err
	}
	t := &containers{
		sheep: name, options: o, cfg: d.cfg, host: d.host, devices: d.devices,
		log:     d.cfg.Log.With("sheep", name),
		dataDir: filepath.Join(dataRoot, name),
		lives:   filepath.Join(stateDir, name, "lives"),
		began:   time.Now(),
	}
	return shimmed.New(shimmed.Config{
		Name: name, Type: t, DataRoot: t.dataDir, Dir: filepath.Join(stateDir, name),
		Shim:          d.cfg.Shim,
		Grace:         cmp.Or(o.Grace, d.cfg.Grace),
		OrphanTimeout: cmp.Or(o.OrphanTimeout, d.cfg.OrphanTimeout),
		Log:           d.cfg.Log,
	}), nil
}

// Begin is to be called once, before the sheep are used, with the names of all
// configured sheep. It stops and removes the runners and containers of all other
// sheep, and returns an error if it cannot or if containerd cannot be reached. The
// sheep can be used even if it fails.
func (d *Driver) Begin(ctx context.Context, names []string) error {
	err := shimmed.RemoveUnconfigured(ctx, d.cfg.StateDir, names, d.remove)
	if len(names) > 0 {
		_, unreachable := d.host.connect(ctx)
		err = errors.Join(err, unreachable)
	}
	return err
}

// remove removes a sheep that is not configured any more, with its runner, state
// and containers.
func (d *Driver) remove(ctx context.Context, name string) error {
	s, err := d.sheep(name, Options{})
	if err != nil {
		return err
	}
	if err := s.Remove(ctx); err != nil {
		return err
	}
	return d.host.sweep(ctx, d.cfg.Node, name, nil)
}

// Close cancels pulls that are under way and closes the connection to containerd.
// Detached runners stay up. It may be called twice.
func (d *Driver) Close() error { return d.host.close() }
