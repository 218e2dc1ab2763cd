// Package container runs runners in containers, by containerd alone, without
// dockerd.
//
// The image of a model is REGISTRY/NAME:VERSION (package image). Each run of it
// is a container of its own in containerd's namespace "shepherd", with a snapshot
// and a task of the same id, SHEEP-LIFE, made from the spec that package oci
// composes. A shim (package shim) stands beside each: it takes what the runner
// writes, dials it inside the container's network namespace, watches its process
// and ends it; so the runner outlives the daemon, and containerd is needed only
// to start a container and to remove it.
//
//	Load ─► image.Store ─► Launch: snapshot, container, task ─► shim watches
//	                                                              │ process ends
//	        container, snapshot removed ◄─ Clean: exit code ◄─────┘
//
// A sheep's state lies in StateDir/SHEEP; see package shimmed. Containers carry
// labels that say whose they are; what has no such label, or another daemon's, is
// never touched.
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

// Config says where container sheep run and what holds where a sheep's own
// configuration says nothing.
type Config struct {
	// Address is containerd's socket, Namespace the one its objects are made in.
	Address, Namespace string
	// Snapshotter unpacks images.
	Snapshotter string
	// Registry is where models' images come from; without it no container sheep
	// can be made.
	Registry image.Registry
	// ImageBudget is how many bytes pulled images may take; 0 means any number.
	ImageBudget int64
	// Trust says which digests models' images must have; nil trusts all.
	Trust job.Trust
	// Contracts say how the images of some models are given jobs; the first that
	// matches a model counts before a sheep's own options.
	Contracts []ModelContract
	// Needed lists the models whose images stay whatever the budget; see package
	// image.
	Needed func(context.Context) ([]job.Model, error)
	// CNIConfDir holds the configuration of the network that sheep with network
	// cni are connected to, CNIPluginDirs its plugins.
	CNIConfDir    string
	CNIPluginDirs []string
	// AllowedMounts are the host's paths that sheep may mount.
	AllowedMounts []string
	// Node names this daemon among others that use the same containerd.
	Node string
	// GPUs is where sheep's GPUs come from.
	GPUs GPUs
	// DataRoot/SHEEP is told to the runner as io_data_root, and mounted at that
	// path.
	DataRoot string
	// StateDir/SHEEP holds what must outlive the daemon.
	StateDir string
	// Shim is the shepherd-shim program; see shimmed.FindShim.
	Shim string
	// Grace is how long a runner has between TERM and KILL.
	Grace time.Duration
	// OrphanTimeout is how long an idle runner waits for a daemon to come back.
	OrphanTimeout time.Duration
	// ObserveRegistry is told of the registry's answers, ObserveContainerd of
	// containerd's; nil tells nobody.
	ObserveRegistry, ObserveContainerd image.Observer

	Log *slog.Logger // nil discards
}

// Driver makes container sheep. Close it when they are closed.
type Driver struct {
	cfg     Config
	host    *host
	devices *devices
	usage   usage

	mu           sync.Mutex
	snapshotters map[string]string // by sheep
}

var _ runtime.Driver = (*Driver)(nil)

// New makes a Driver. It asks nobody anything: containerd is connected to when
// it is first needed.
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
// that are configured: it stops and removes what is left of others, and says
// whether containerd can be reached. When it fails the sheep are of use all the
// same.
func (d *Driver) Begin(ctx context.Context, names []string) error {
	err := shimmed.DismissOthers(ctx, d.cfg.StateDir, names, d.dismiss)
	if len(names) > 0 {
		_, unreachable := d.host.connect(ctx)
		err = errors.Join(err, unreachable)
	}
	return err
}

// dismiss ends a sheep for good.
func (d *Driver) dismiss(ctx context.Context, name string) error {
	s, err := d.sheep(name, Options{})
	if err != nil {
		return err
	}
	if err := s.Dismiss(ctx); err != nil {
		return err
	}
	return d.host.sweep(ctx, d.cfg.Node, name, nil)
}

// Close ends what is under way for sheep, pulls above all, and the connection to
// containerd. Runners that were detached from go on. It may be called twice.
func (d *Driver) Close() error { return d.host.close() }
