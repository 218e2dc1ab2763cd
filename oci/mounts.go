package oci

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

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

// ownMounts are the sheep's: its directory, at the path that the messages to
// its runner name, and what its options say. They are sorted, so that none
// hides what lies in it.
func ownMounts(s *specs.Spec, cfg *Config) error {
	own := []specs.Mount{bind(cfg.DataDir, cfg.DataDir, false)}
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
	for _, m := range own[1:] {
		if m.Destination == cfg.DataDir {
			option := "mounts"
			if m.Type == "tmpfs" {
				option = "tmpfs"
			}
			return &OptionError{option, fmt.Sprintf("target %q is the sheep's own directory", m.Destination)}
		}
	}
	slices.SortFunc(own, func(a, b specs.Mount) int { return strings.Compare(a.Destination, b.Destination) })
	s.Mounts = append(s.Mounts, own...)
	return nil
}

func rootfs(s *specs.Spec, cfg *Config) error {
	s.Root.Readonly = cfg.Options.ReadOnly
	return nil
}
