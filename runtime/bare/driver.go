// Package bare runs runners as processes of this machine, without a container. Each is
// the child of a shim, so it stays up while the daemon is restarted.
//
// A sheep's state is in StateDir/SHEEP; see package shimmed.
package bare

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/iterait/shepherd/gpu"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/runtime/shimmed"
)

// Config configures all bare sheep of a daemon; Grace and OrphanTimeout are defaults that
// a sheep's Options override.
type Config struct {
	// DataRoot/SHEEP is the runner's io_data_root.
	DataRoot string
	// StateDir/SHEEP holds the state that must outlive the daemon.
	StateDir string
	// Shim is the path of the shepherd-shim program. If empty, it is searched beside
	// this program, in ../libexec/shepherd from there and on PATH.
	Shim string
	// Grace is the time between TERM and KILL when a runner is stopped.
	Grace time.Duration
	// OrphanTimeout is how long an idle runner stays up while no daemon is connected
	// to its shim.
	OrphanTimeout time.Duration
	// GPUs returns the GPUs that a sheep has at present. If nil, a sheep has those that
	// its configuration lists. Its errors have a class of errdefs.
	GPUs func(ctx context.Context, sheep string) ([]gpu.Grant, error)
	Log  *slog.Logger // nil discards
}

// Driver makes bare sheep.
type Driver struct{ cfg Config }

var _ runtime.Driver = (*Driver)(nil)

// New makes a Driver. Zero durations mean the defaults.
func New(cfg Config) *Driver { return &Driver{cfg} }

// NewSheep reads a sheep's configuration, Options. See runtime.Driver.
func (d *Driver) NewSheep(name string, decode func(any) error) (runtime.Sheep, error) {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return nil, fmt.Errorf("sheep name %q cannot be the name of a directory", name)
	}
	var o Options
	if err := errors.Join(decode(&o), o.check()); err != nil { // report all problems together
		return nil, err
	}
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
	return shimmed.New(shimmed.Config{
		Name: name, Type: &programs{sheep: name, options: o, gpus: d.cfg.GPUs},
		DataRoot: filepath.Join(dataRoot, name), Dir: filepath.Join(stateDir, name),
		Stdout: o.StdoutFile, Stderr: o.StderrFile,
		Shim:          d.cfg.Shim,
		Grace:         cmp.Or(o.Grace, d.cfg.Grace),
		OrphanTimeout: cmp.Or(o.OrphanTimeout, d.cfg.OrphanTimeout),
		Log:           d.cfg.Log,
	}), nil
}

// Begin is to be called once, before the sheep are used, with the names of all
// configured sheep. It stops and removes the runners of all other sheep.
func (d *Driver) Begin(ctx context.Context, names []string) error {
	return shimmed.RemoveUnconfigured(ctx, d.cfg.StateDir, names, func(ctx context.Context, name string) error {
		s, err := d.sheep(name, Options{})
		if err != nil {
			return err
		}
		return s.Remove(ctx)
	})
}
