// Package oci composes the runtime-spec of a sheep's container from an image's
// configuration and the sheep's options.
//
// It is pure: it reads no file and calls no service, so golden files can show complete
// specs; the properties of the host are in Config. The defaults are Docker's or stricter,
// except for /dev/shm, which is larger: an image that runs under Docker without extra
// privileges runs here. SELinux labels are not set, which is Docker's default, too.
package oci

import (
	"fmt"
	"path"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Config is the input of Spec.
type Config struct {
	// Image is the image's own configuration. It comes from a registry and is
	// not trusted.
	Image ocispec.ImageConfig
	// Options are the sheep's.
	Options Options
	// AllowedMounts are the paths on the host that sheep may mount, including paths
	// below them. Like the sources of mounts they contain no symbolic links.
	AllowedMounts []string
	// Account is the user that the process runs as: ResolveUser's result for
	// Options.User or, if that is empty, for the image's user.
	Account Account
	// DataDir is the sheep's directory, mounted at the same path.
	DataDir string
	// Hostname is the container's own; empty leaves the host's.
	Hostname string
	// CgroupPath is the container's own cgroup: an absolute path, as in
	// /shepherd/NAME, or SLICE:PREFIX:NAME where the runtime has systemd make it.
	CgroupPath string
	// Hosts is a file to mount as /etc/hosts, empty for none. It is needed even without
	// a network, to resolve localhost.
	Hosts string
	// ResolvConf is a file to mount as /etc/resolv.conf, for sheep with a network.
	ResolvConf string
	// NetworkNamespace is the path of a namespace to join, for network cni; empty
	// makes a new one.
	NetworkNamespace string
	// Host describes the machine.
	Host Host
	// Edits are applied last: they add devices.
	Edits []func(*specs.Spec) error
}

// Host describes the features of the machine that a spec depends on.
type Host struct {
	// Unified is true if only cgroup v2 is mounted.
	Unified bool
	// SwapLimit is true if swap can be limited: always with cgroup v2; with v1 if
	// memory.memsw.limit_in_bytes exists.
	SwapLimit bool
	// CPUs is the number of CPUs.
	CPUs int
	// RecursiveReadOnly is true if a mount can be made read-only together with the
	// mounts below it (mount_setattr, Linux 5.12).
	RecursiveReadOnly bool
	// AppArmor is the profile that confines containers; empty if the machine has no
	// AppArmor.
	AppArmor string
}

// version is the oldest version of the runtime-spec that has all features used here.
// Some runtimes reject specs that are newer than themselves.
const version = "1.0.2"

// Spec composes the spec. The error names the option, or the part of the image's
// configuration, that is invalid.
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
	// The order matters: the seccomp profile depends on the capabilities, and the edits
	// must see the complete spec.
	for _, step := range []func(*specs.Spec, *Config) error{
		command,      // arguments, from image and options
		environment,  // variables, from image and options
		directory,    // working directory, from the image
		account,      // user and groups
		rlimits,      // limits of each process
		systemMounts, // /proc, /dev, /sys
		files,        // /etc/hosts, /etc/resolv.conf
		ownMounts,    // the sheep's directory, mounts and tmpfs
		rootfs,       // read-only or not
		cgroup,       // limits of memory, CPUs, pids
		namespaces,
		paths, // masked and read-only paths
		capabilities,
		seccomp,
		apparmor,
		edits, // devices
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

// isCgroup reports whether p is a path of cgroupfs or SLICE:PREFIX:NAME for systemd.
func isCgroup(p string) bool {
	if absolute(p) {
		return p != "/"
	}
	parts := strings.Split(p, ":")
	return len(parts) == 3 && strings.HasSuffix(parts[0], ".slice") && parts[2] != "" && !strings.ContainsAny(p, "/\x00\n")
}

// absolute reports whether p is an absolute path in its shortest form.
func absolute(p string) bool {
	return path.IsAbs(p) && path.Clean(p) == p && !strings.ContainsAny(p, "\x00\n")
}
