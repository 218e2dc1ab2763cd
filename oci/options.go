package oci

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"path"
	"slices"
	"strings"
)

// Network is the network of a container.
type Network string

// The networks.
const (
	NetworkNone Network = "none" // only a loopback interface of its own; the default
	NetworkHost Network = "host" // the machine's
	NetworkCNI  Network = "cni"  // that of the machine's CNI configuration
)

// Options are the options of a container in a sheep's configuration. The zero value has
// the defaults.
type Options struct {
	Memory   int64   // bytes, swap included; 0 is no limit
	CPUs     float64 // 1.5 is one and a half; 0 is no limit
	Pids     int64   // processes and threads; 0 is DefaultPids, -1 no limit
	ShmSize  int64   // bytes of /dev/shm; 0 is half of the memory
	OOMGroup bool    // the kernel kills all processes together when memory runs out
	Tmpfs    []Tmpfs
	ReadOnly bool              // the root file system
	User     string            // USER[:GROUP], names or numbers; replaces the image's
	Env      map[string]string // added to the image's, overriding it
	Mounts   []Mount
	Ulimits  map[string]Ulimit // by name: nofile, memlock, …
	Command  []string          // replaces the image's entrypoint and arguments
	Args     []string          // replaces the image's arguments
	Network  Network
}

// Tmpfs is a file system in memory.
type Tmpfs struct {
	Target string
	Size   int64 // bytes; 0 is no limit but the container's memory
}

// Mount is a bind mount of a file or directory of the host.
type Mount struct {
	// Source is a path on the host, in which the caller has resolved symbolic links.
	Source   string
	Target   string
	ReadOnly bool
}

// Ulimit is a resource limit of each process, as in setrlimit(2); -1 is no limit.
type Ulimit struct{ Soft, Hard int64 }

// DefaultPids is the default limit of a container's processes and threads: enough for one
// process per CPU with an OpenMP thread per CPU each on machines of up to 256 CPUs, and a
// bound for fork bombs. Docker has no limit.
func DefaultPids(cpus int) int64 { return max(4096, 256*int64(cpus)) }

// minShmSize is the smallest default size of /dev/shm: Docker's.
const minShmSize = 64 << 20

const (
	minMemory = 6 << 20 // below this a container does not start
	// The kernel's limits of one argument or variable, and of all together; see execve(2).
	maxString  = 128<<10 - 1
	maxStrings = 1 << 20
)

// OptionError names an option by its configuration key, and says what is wrong with its
// value.
type OptionError struct{ Option, Problem string }

func (e *OptionError) Error() string { return e.Option + ": " + e.Problem }

// Check validates the options. The error joins *OptionError values. Sources of mounts must
// be in or below one of the allowed paths.
func (o *Options) Check(allowed []string) error {
	var errs []error
	wrong := func(option, format string, args ...any) {
		errs = append(errs, &OptionError{option, fmt.Sprintf(format, args...)})
	}
	if o.Memory < 0 || o.Memory > 0 && o.Memory < minMemory {
		wrong("memory", "%d bytes are too few; at least %d MiB are needed", o.Memory, minMemory>>20)
	}
	if o.CPUs != 0 && !(o.CPUs >= 0.01 && o.CPUs <= 1e6) { // NaN, too
		wrong("cpus", "%g is not a number of CPUs; expected 0.01 or more", o.CPUs)
	}
	if o.Pids < -1 {
		wrong("pids", "%d is not a number of processes; expected 1 or more, or -1 for no limit", o.Pids)
	}
	if o.ShmSize < 0 {
		wrong("shm_size", "%d is not a size", o.ShmSize)
	}
	switch o.Network {
	case "", NetworkNone, NetworkHost, NetworkCNI:
	default:
		wrong("network", "%q is none of none, host and cni", o.Network)
	}
	if _, err := parseUser(o.User); err != nil {
		wrong("user", "%v", err)
	}
	for _, name := range slices.Sorted(maps.Keys(o.Env)) {
		switch {
		case name == "" || strings.ContainsAny(name, "=\x00"):
			wrong("env", "%q cannot name a variable", name)
		case strings.Contains(o.Env[name], "\x00"):
			wrong("env."+name, "the value contains a NUL")
		case len(name)+len(o.Env[name])+1 > maxString:
			wrong("env."+name, "the value has %d bytes, at most %d are possible", len(o.Env[name]), maxString)
		}
	}
	for option, list := range map[string][]string{"command": o.Command, "args": o.Args} {
		if slices.ContainsFunc(list, func(s string) bool { return strings.Contains(s, "\x00") }) {
			wrong(option, "it contains a NUL")
		}
	}
	if o.Command != nil && (len(o.Command) == 0 || o.Command[0] == "") {
		wrong("command", "it is empty; leave it out for the image's own")
	}
	for _, name := range slices.Sorted(maps.Keys(o.Ulimits)) {
		l := o.Ulimits[name]
		switch {
		case !slices.Contains(ulimitNames(), name):
			wrong("ulimits."+name, "there is no such limit; there are %s", strings.Join(ulimitNames(), ", "))
		case l.Soft < -1 || l.Hard < -1 || unlimited(l.Soft) > unlimited(l.Hard):
			wrong("ulimits."+name, "%d:%d is not a soft limit and a hard limit that is at least as high", l.Soft, l.Hard)
		}
	}
	o.checkTargets(wrong, allowed)
	return errors.Join(errs...)
}

// checkTargets checks the targets of mounts and tmpfs, which must be unique, and the
// sources of mounts.
func (o *Options) checkTargets(wrong func(string, string, ...any), allowed []string) {
	taken := map[string]bool{}
	place := func(option, target string) {
		switch {
		case !absolute(target):
			wrong(option, "target %q is not an absolute path in its shortest form", target)
		case target == "/" || slices.ContainsFunc([]string{"/proc", "/sys", "/dev"}, func(dir string) bool { return within(target, dir) }):
			wrong(option, "target %q is reserved for the system", target)
		case taken[target]:
			wrong(option, "target %q is used twice", target)
		}
		taken[target] = true
	}
	for _, m := range o.Mounts {
		place("mounts", m.Target)
		switch {
		case !absolute(m.Source):
			wrong("mounts", "source %q is not an absolute path in its shortest form", m.Source)
		case !slices.ContainsFunc(allowed, func(dir string) bool { return within(m.Source, dir) }):
			wrong("mounts", "source %q is not among the paths that may be mounted (%s)", m.Source, orNone(allowed))
		}
	}
	for _, t := range o.Tmpfs {
		place("tmpfs", t.Target)
		if t.Size < 0 {
			wrong("tmpfs", "%d is not a size for %s", t.Size, t.Target)
		}
	}
}

// within reports whether p is dir or below it.
func within(p, dir string) bool {
	dir = path.Clean(dir)
	return p == dir || dir == "/" || strings.HasPrefix(p, dir+"/")
}

func orNone(paths []string) string {
	if len(paths) == 0 {
		return "there are none"
	}
	return strings.Join(paths, ", ")
}

// unlimited converts -1 to RLIM_INFINITY.
func unlimited(n int64) uint64 {
	if n < 0 {
		return math.MaxUint64
	}
	return uint64(n)
}
