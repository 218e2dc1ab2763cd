// Package bare runs runners as processes of this machine, without a container:
// each under a shim, which keeps it up while the daemon is away.
//
// A sheep's state lies in StateDir/SHEEP; see package shimmed.
package bare

import (
	"cmp"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/runtime/shimmed"
)

// Config says where bare sheep keep things and what holds where a sheep's own
// configuration says nothing.
type Config struct {
	// DataRoot/SHEEP is told to the runner as io_data_root.
	DataRoot string
	// StateDir/SHEEP holds what must outlive the daemon.
	StateDir string
	// Shim is the shepherd-shim program. Where empty it is looked for beside
	// this program, on PATH and in /usr/libexec/shepherd.
	Shim string
	// Grace is how long a runner has between TERM and KILL.
	Grace time.Duration
	// OrphanTimeout is how long an idle runner waits for a daemon to come back.
	OrphanTimeout time.Duration
	Log           *slog.Logger // nil discards
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
	if err := decode(&o); err != nil {
		return nil, err
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	dataRoot, err := filepath.Abs(d.cfg.DataRoot)
	if err != nil {
		return nil, err
	}
	stateDir, err := filepath.Abs(d.cfg.StateDir)
	if err != nil {
		return nil, err
	}
	return shimmed.New(shimmed.Config{
		Name: name, Type: &programs{o},
		DataRoot: filepath.Join(dataRoot, name), Dir: filepath.Join(stateDir, name),
		Shim:          d.cfg.Shim,
		Grace:         cmp.Or(o.Grace, d.cfg.Grace),
		OrphanTimeout: cmp.Or(o.OrphanTimeout, d.cfg.OrphanTimeout),
		Log:           d.cfg.Log,
	}), nil
}
