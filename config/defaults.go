package config

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/iterait/shepherd/config/size"
)

// machine is the environment that defaults depend on.
type machine struct {
	env       func(string) (string, bool)
	root      bool // the daemon runs as root
	hostname  string
	directory string // the working directory
}

func thisMachine(env func(string) (string, bool)) (machine, error) {
	directory, err := os.Getwd()
	if err != nil {
		return machine{}, fmt.Errorf("find the working directory: %w", err)
	}
	hostname, err := os.Hostname()
	if err != nil || !nodeName.MatchString(hostname) {
		hostname = "localhost" // sufficient for a single node
	}
	return machine{env: env, root: os.Geteuid() == 0, hostname: hostname, directory: directory}, nil
}

// defaults returns the values of keys that the file leaves out. All defaults are here and in
// derive.
func defaults(m machine) Config {
	debug, _ := m.env("DEBUG")
	return Config{
		Node:    m.hostname,
		MinFree: 256 << 20,
		API: API{
			Host:    "0.0.0.0",
			Port:    5000,
			MaxBody: 64 << 20, MaxUpload: 16 << 30,
			// As the original does.
			CORSOrigins:    []string{"*"},
			RateBurst:      100,
			MaxConnections: 4096,
			ReadTimeout:    5 * time.Minute,
			Debug:          debug == "1" || strings.EqualFold(debug, "true"),
		},
		Containerd: Containerd{
			Address:     "/run/containerd/containerd.sock",
			Namespace:   "shepherd",
			Snapshotter: "overlayfs",
			// The project's own places, and distributions'.
			CNIConfDir:    "/etc/cni/net.d",
			CNIPluginDirs: []string{"/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"},
		},
		Ledger: Ledger{
			Keep:        7 * 24 * time.Hour,
			KeepJobs:    100_000,
			EventKeep:   7 * 24 * time.Hour,
			EventNumber: 200_000,
		},
		Logging: Logging{
			Level:  "info",
			Format: "auto",
		},
		Scheduling: Scheduling{
			MaxTurn:     10 * time.Minute,
			MaxAttempts: 3,

			ShareHalfLife: time.Hour,
		},
		Limits: Limits{
			Retries:     new(0),
			RetryPause:  new(10 * time.Second),
			WaitTimeout: new(time.Duration(0)),
			LoadTimeout: new(30 * time.Minute),
			RunTimeout:  new(time.Duration(0)),
		},
		GPU: GPU{
			Mode:               "auto",
			CDIDirs:            []string{"/etc/cdi", "/var/run/cdi"},
			DriverCapabilities: []string{"compute", "utility"},
			Interval:           time.Second,
			Retest:             time.Minute,
			Turn:               30 * time.Second,
			MemoryWait:         30 * time.Second,
		},
		DrainTimeout: 30 * time.Second,
		Storage:      Storage{KeepUploads: 24 * time.Hour, MaxUpload: 1 << 40},
	}
}

// derive applies the defaults that depend on other values.
func (c *Config) derive(m machine) {
	if c.StateDir == "" && c.DataRoot != "" {
		c.StateDir = stateDir(m, c.DataRoot)
	}
	if c.Storage.Embedded() {
		c.Storage.Listen = firstOf(c.Storage.Listen, "127.0.0.1:7000")
		if c.Storage.MinFree == nil {
			c.Storage.MinFree = new(size.Bytes(256 << 20))
		}
		if c.StateDir != "" {
			c.Storage.Path = firstOf(c.Storage.Path, filepath.Join(c.StateDir, "storage"))
		}
	}
	if c.API.BodyMemory == 0 {
		c.API.BodyMemory = max(256<<20, 2*c.API.MaxBody)
	}
	if c.OnExit == "" {
		c.OnExit = onExit(m)
	}
	if c.API.Socket == "" {
		c.API.Socket = socketPath(m, c.StateDir)
	}
	if c.Scheduling.StageAhead == nil {
		c.Scheduling.StageAhead = new(1)
		if c.Ledger.Shared() { // an idle sheep of another node cannot take over a prepared job
			c.Scheduling.StageAhead = new(0)
		}
	}
	if c.Ledger.Shared() && c.Ledger.Lease == nil {
		c.Ledger.Lease = new(12 * time.Second)
	}
	if c.StateDir != "" && !c.Ledger.Shared() {
		c.Ledger.Path = firstOf(c.Ledger.Path, filepath.Join(c.StateDir, "ledger.db"))
	}
}

// stateDir returns systemd's state directory of the service or, without one, a directory for
// this data root below the state directory of the system or the user. It is empty if the
// user has no home.
func stateDir(m machine, dataRoot string) string {
	if given, _ := m.env("STATE_DIRECTORY"); given != "" {
		first, _, _ := strings.Cut(given, ":")
		return first
	}
	if !filepath.IsAbs(dataRoot) {
		dataRoot = filepath.Join(m.directory, dataRoot)
	}
	state := "/var/lib"
	if !m.root {
		home, _ := m.env("HOME")
		state, _ = m.env("XDG_STATE_HOME")
		if !filepath.IsAbs(state) {
			if home == "" {
				return ""
			}
			state = filepath.Join(home, ".local/state")
		}
	}
	return filepath.Join(state, "shepherd", slug(dataRoot))
}

// onExit returns leave if a service manager restarts the daemon, which NOTIFY_SOCKET shows.
func onExit(m machine) string {
	if given, _ := m.env("NOTIFY_SOCKET"); given != "" {
		return "leave"
	}
	return "stop"
}

// socketPath is in systemd's directory for the service, or in the state directory.
func socketPath(m machine, stateDir string) string {
	const name = "api.sock"
	given, _ := m.env("RUNTIME_DIRECTORY")
	if first, _, _ := strings.Cut(given, ":"); filepath.IsAbs(first) {
		return filepath.Join(first, name)
	}
	if stateDir == "" {
		return ""
	}
	return filepath.Join(stateDir, name)
}

// slug derives a distinct file name from a path: names that could be ambiguous or too long
// end in a hash.
func slug(path string) string {
	const longest = 100
	path = filepath.Clean(path)
	s := strings.ReplaceAll(strings.Trim(path, "/"), "/", "-")
	if s != "" && len(s) <= longest && !strings.Contains(path, "-") {
		return s
	}
	hash := sha256.Sum256([]byte(path))
	return s[:min(len(s), longest)] + "-" + hex.EncodeToString(hash[:4])
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
