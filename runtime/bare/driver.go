// Package bare runs runners as processes of this machine, without a container:
// each under a shim, which keeps it up while the daemon is away.
//
// A sheep's state lies in StateDir/SHEEP: lives/LIFE is the folder of one runner
// and its shim (see package shim), log holds what they write.
package bare

import (
	"cmp"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/runtime"
)

// The defaults of Config.
const (
	DefaultGrace         = 10 * time.Second
	DefaultOrphanTimeout = 10 * time.Minute
)

// Logs below StateDir/SHEEP/log: their size in bytes and how many older ones are
// kept.
const (
	logSize = 10 << 20
	logKeep = 3
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
	Log           *slog.Logger
}

// Driver makes bare sheep.
type Driver struct{ cfg Config }

var _ runtime.Driver = (*Driver)(nil)

// New makes a Driver. Zero durations mean the defaults.
func New(cfg Config) *Driver {
	cfg.Grace = cmp.Or(cfg.Grace, DefaultGrace)
	cfg.OrphanTimeout = cmp.Or(cfg.OrphanTimeout, DefaultOrphanTimeout)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Driver{cfg}
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
	return &sheep{
		name: name, cfg: d.cfg, options: o,
		log:      d.cfg.Log.With("sheep", name),
		dataRoot: filepath.Join(dataRoot, name),
		lives:    filepath.Join(stateDir, name, "lives"),
		logs:     filepath.Join(stateDir, name, "log"),
	}, nil
}

// libexec is where packages put programs that are not for people.
const libexec = "/usr/libexec/shepherd"

const shimName = "shepherd-shim"

// shim finds the shepherd-shim program.
func (d Config) shim() (string, error) {
	if d.Shim != "" {
		return filepath.Abs(d.Shim)
	}
	var places []string
	if self, err := os.Executable(); err == nil {
		places = append(places, filepath.Join(filepath.Dir(self), shimName))
	}
	if path, err := exec.LookPath(shimName); err == nil {
		places = append(places, path)
	}
	places = append(places, filepath.Join(libexec, shimName))
	for _, path := range places {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return filepath.Abs(path)
		}
	}
	return "", &runtime.LoadError{
		Message: fmt.Sprintf("%s is not installed: it belongs beside this program (%s), on PATH or in %s", shimName, filepath.Dir(places[0]), libexec),
		Class:   errdefs.ErrFailedPrecondition,
	}
}
