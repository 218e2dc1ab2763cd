package oci

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// systemMounts are what every container has.
func systemMounts(s *specs.Spec, cfg *Config) error {
	shm := cfg.Options.ShmSize
	if shm == 0 {
		shm = DefaultShmSize
	}
	s.Mounts = []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=" + strconv.FormatInt(shm, 10)}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
	}
	return nil
}

// bind mounts a file or directory of the host's, out of which nothing gets
// privileges and no device.
func bind(source, target string, readOnly bool) specs.Mount {
	mode := "rw"
	if readOnly {
		mode = "ro"
	}
	return specs.Mount{Destination: target, Type: "bind", Source: source, Options: []string{"rbind", "rprivate", "nosuid", "nodev", mode}}
}

// dataMount shows the sheep's directory at the path the messages to its runner
// name.
func dataMount(s *specs.Spec, cfg *Config) error {
	s.Mounts = append(s.Mounts, bind(cfg.DataDir, cfg.DataDir, false))
	return nil
}

// files are those that name hosts.
func files(s *specs.Spec, cfg *Config) error {
	if cfg.Hosts != "" {
		s.Mounts = append(s.Mounts, bind(cfg.Hosts, "/etc/hosts", true))
	}
	if cfg.ResolvConf != "" && cfg.network() != NetworkNone {
		s.Mounts = append(s.Mounts, bind(cfg.ResolvConf, "/etc/resolv.conf", true))
	}
	return nil
}

// userMounts are the sheep's own, parents before what lies in them.
func userMounts(s *specs.Spec, cfg *Config) error {
	var own []specs.Mount
	for _, m := range cfg.Options.Mounts {
		own = append(own, bind(m.Source, m.Target, m.ReadOnly))
	}
	for _, t := range cfg.Options.Tmpfs {
		options := []string{"nosuid", "noexec", "nodev", "mode=1777"}
		if t.Size > 0 {
			options = append(options, "size="+strconv.FormatInt(t.Size, 10))
		}
		own = append(own, specs.Mount{Destination: t.Target, Type: "tmpfs", Source: "tmpfs", Options: options})
	}
	slices.SortFunc(own, func(a, b specs.Mount) int {
		if within(a.Destination, b.Destination) {
			return 1
		}
		if within(b.Destination, a.Destination) {
			return -1
		}
		return slices.Compare([]byte(a.Destination), []byte(b.Destination))
	})
	for _, m := range own {
		// What hides the data directory would have the runner look for its input
		// in vain.
		if within(cfg.DataDir, m.Destination) {
			option := "mounts"
			if m.Type == "tmpfs" {
				option = "tmpfs"
			}
			return &OptionError{option, fmt.Sprintf("target %q hides the sheep's own directory %s", m.Destination, cfg.DataDir)}
		}
	}
	s.Mounts = append(s.Mounts, own...)
	return nil
}

func rootfs(s *specs.Spec, cfg *Config) error {
	s.Root.Readonly = cfg.Options.ReadOnly
	return nil
}
