// Package oci composes the runtime-spec of a sheep's container from an image's
// configuration and the sheep's options.
//
// It is pure: it reads no file and asks nobody, so that a spec can be looked at
// whole in a golden file. What it must know of the host is in Config. The
// defaults are Docker's or stricter, but for /dev/shm, which is larger: an image
// that runs under Docker without asking for privileges runs here. SELinux labels
// are not set, as with Docker unless it is told to.
package oci

import (
	"fmt"
	"path"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Config is what a spec is composed from.
type Config struct {
	// Image is the image's own configuration. It comes from a registry and is
	// not trusted.
	Image ocispec.ImageConfig
	// Options are the sheep's.
	Options Options
	// AllowedMounts are the paths on the host that sheep may mount, or mount what
	// lies in them; without symbolic links, as the sources are.
	AllowedMounts []string
	// Account is whom the process runs as: what ResolveUser made of Options.User
	// or, where that is empty, of the image's user.
	Account Account
	// DataDir is the sheep's directory, mounted at the same path.
	DataDir string
	// Hostname is the container's own; empty leaves the host's.
	Hostname string
	// CgroupPath is the container's own cgroup: an absolute path, as in
	// /shepherd/NAME, or SLICE:PREFIX:NAME where the runtime has systemd make it.
	CgroupPath string
	// Hosts is a file to mount as /etc/hosts, empty for none. It is of use without
	// a network, too: localhost is found by it.
	Hosts string
	// ResolvConf is a file to mount as /etc/resolv.conf, for sheep with a network.
	ResolvConf string
	// NetworkNamespace is the path of a namespace to join, for network cni; empty
	// makes a new one.
	NetworkNamespace string
	// Host is what the machine can do.
	Host Host
	// Edits come last of all: they are what devices need.
	Edits []func(*specs.Spec) error
}

// Host is what the machine can do.
type Host struct {
	// Unified says that it has cgroup v2 alone.
	Unified bool
	// SwapLimit says that swap can be limited: always so with cgroup v2, with v1
	// where memory.memsw.limit_in_bytes is there.
	SwapLimit bool
	// CPUs is how many CPUs it has.
	CPUs int
	// RecursiveReadOnly says that a mount can be made read-only together with the
	// mounts below it (mount_setattr, Linux 5.12).
	RecursiveReadOnly bool
	// AppArmor is the profile to confine containers with; empty where the machine
	// has no AppArmor.
	AppArmor string
}

// version is the oldest of the runtime-spec that has all that is used here.
// Some runtimes refuse what is newer than they are.
const version = "1.0.2"

// Spec composes the spec. The error names the option, or the part of the image's
// configuration, that cannot be had.
func Spec(cfg Config) (*specs.Spec, error) {
	if err := cfg.Options.Check(cfg.AllowedMounts); err != nil {
		return nil, err
	}
	if !absolute(cfg.DataDir) {
		return nil, fmt.Errorf("the data directory %q is not absolute", cfg.DataDir)
	}
	if !isCgroup(cfg.CgroupPath) {
		return nil, fmt.Errorf("the cgroup %q is neither an absolute path below the root nor SLICE:PREFIX:NAME", cfg.CgroupPath)
	}
	s := &specs.Spec{
		Version: version,
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{},
		Linux:   &specs.Linux{Resources: &specs.LinuxResources{}},
	}
	// The one order. Later steps rest on earlier ones: the seccomp profile on
	// the capabilities, and all on that nothing before the edits is changed
	// after them.
	for _, step := range []func(*specs.Spec, *Config) error{
		command,      // image and options: arguments
		environment,  // image and options: variables
		directory,    // image: where it starts
		account,      // who it is
		rlimits,      // what one process may take
		systemMounts, // /proc, /dev, /sys
		files,        // /etc/hosts, /etc/resolv.conf
		ownMounts,    // the sheep's directory, mounts and tmpfs
		rootfs,       // read-only or not
		cgroup,       // memory, CPUs, pids
		namespaces,   // what it sees
		paths,        // what of /proc and /sys is hidden
		capabilities, // what root in it may do
		seccomp,      // which system calls there are
		apparmor,     // what AppArmor allows
		edits,        // devices
	} {
		if err := step(s, &cfg); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func edits(s *specs.Spec, cfg *Config) error {
	for _, edit := range cfg.Edits {
		if err := edit(s); err != nil {
			return fmt.Errorf("devices: %w", err)
		}
	}
	return nil
}

// isCgroup reports whether p is a path of cgroupfs or a name for systemd.
func isCgroup(p string) bool {
	if absolute(p) {
		return p != "/"
	}
	parts := strings.Split(p, ":")
	return len(parts) == 3 && strings.HasSuffix(parts[0], ".slice") && parts[2] != "" && !strings.ContainsAny(p, "/\x00\n")
}

// absolute says that p is a path from the root, without a way out of it.
func absolute(p string) bool {
	return path.IsAbs(p) && path.Clean(p) == p && !strings.ContainsAny(p, "\x00\n")
}
