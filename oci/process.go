package oci

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// command composes the arguments as Docker does: the sheep's command replaces the image's
// entrypoint and its arguments.
func command(s *specs.Spec, cfg *Config) error {
	entrypoint, args := cfg.Image.Entrypoint, cfg.Image.Cmd
	if cfg.Options.Command != nil {
		entrypoint, args = cfg.Options.Command, nil
	}
	if cfg.Options.Args != nil {
		args = cfg.Options.Args
	}
	s.Process.Args = slices.Concat(entrypoint, args)
	if len(s.Process.Args) == 0 || s.Process.Args[0] == "" {
		return &OptionError{"command", "it is missing: the image has neither an entrypoint nor a command"}
	}
	return checkStrings("the image's command", s.Process.Args)
}

// defaultPath is the PATH that Docker sets if an image does not.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// RunnerHost is the environment variable with the address on which runners are to listen.
// The shim connects to the loopback address in the container's network namespace; with
// networks host and cni another address would expose the runner to the network.
const (
	RunnerHost = "SHEPHERD_RUNNER_HOST"
	loopback   = "127.0.0.1"
)

// environment sets the image's variables, then the sheep's, which override them. As with
// Docker, an entry of the image without "=" unsets the variable, and one without a name is
// ignored.
func environment(s *specs.Spec, cfg *Config) error {
	var names []string
	values := map[string]string{}
	set := func(name, value string) {
		if _, ok := values[name]; !ok {
			names = append(names, name)
		}
		values[name] = value
	}
	set("PATH", defaultPath)
	if cfg.Hostname != "" {
		set("HOSTNAME", cfg.Hostname)
	}
	for _, entry := range cfg.Image.Env {
		name, value, ok := strings.Cut(entry, "=")
		switch {
		case name == "":
		case !ok:
			delete(values, name)
			names = slices.DeleteFunc(names, func(n string) bool { return n == name })
		default:
			set(name, value)
		}
	}
	set(RunnerHost, loopback)
	for _, name := range slices.Sorted(maps.Keys(cfg.Options.Env)) {
		set(name, cfg.Options.Env[name])
	}
	if _, ok := values["HOME"]; !ok {
		home := cfg.Account.Home
		if home == "" {
			home = "/"
		}
		set("HOME", home)
	}
	for _, name := range names {
		s.Process.Env = append(s.Process.Env, name+"="+values[name])
	}
	return checkStrings("the image's environment", s.Process.Env)
}

// checkStrings returns an error if the list exceeds the kernel's limits of execve(2).
func checkStrings(what string, list []string) error {
	total := 0
	for _, s := range list {
		switch {
		case strings.Contains(s, "\x00"):
			return fmt.Errorf("%s contains a NUL", what)
		case len(s) > maxString:
			return fmt.Errorf("%s contains a string of %d bytes, at most %d are possible", what, len(s), maxString)
		}
		total += len(s) + 1 + 8 // and a pointer
	}
	if total > maxStrings {
		return fmt.Errorf("%s takes %d bytes, at most %d are possible", what, total, maxStrings)
	}
	return nil
}

// directory sets the working directory of the process.
func directory(s *specs.Spec, cfg *Config) error {
	dir := cfg.Image.WorkingDir
	switch {
	case dir == "":
		dir = "/"
	case !path.IsAbs(dir) || strings.Contains(dir, "\x00") || len(dir) > 4095:
		return fmt.Errorf("the image's working directory %.100q is not an absolute path", dir)
	}
	s.Process.Cwd = path.Clean(dir)
	return nil
}

// account sets the user that the process runs as.
func account(s *specs.Spec, cfg *Config) error {
	a := cfg.Account
	s.Process.User = specs.User{UID: a.UID, GID: a.GID, AdditionalGids: slices.Clone(a.Groups)}
	return nil
}

// ulimitNames lists the limits of setrlimit(2) in lower case, without RLIMIT_.
func ulimitNames() []string {
	return []string{"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack"}
}

// rlimits sets the sheep's limits. By default there are no core dumps, which would fill the
// disk with models; the others are containerd's own, as with Docker.
func rlimits(s *specs.Spec, cfg *Config) error {
	limits := map[string]Ulimit{"core": {}}
	maps.Copy(limits, cfg.Options.Ulimits)
	for _, name := range slices.Sorted(maps.Keys(limits)) {
		s.Process.Rlimits = append(s.Process.Rlimits, specs.POSIXRlimit{
			Type: "RLIMIT_" + strings.ToUpper(name),
			Soft: unlimited(limits[name].Soft), Hard: unlimited(limits[name].Hard),
		})
	}
	// If the machine runs out of memory, the kernel kills a model rather than the daemon.
	score := 500
	s.Process.OOMScoreAdj = &score
	return nil
}
