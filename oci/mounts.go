package oci

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// systemMounts adds the mounts that every container has.
func systemMounts(s *specs.Spec, cfg *Config) error {
	s.Mounts = []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=" + shmSize(&cfg.Options)}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
	}
	return nil
}

// shmSize returns the size of /dev/shm as a mount option of tmpfs. The default is half of
// the container's or the machine's memory, which is also the kernel's default for a tmpfs
// and the size outside of containers. Docker's 64 MiB are too small for PyTorch's data
// loaders, which transfer batches in it.
func shmSize(o *Options) string {
	switch {
	case o.ShmSize > 0:
		return strconv.FormatInt(o.ShmSize, 10)
	case o.Memory > 0:
		return strconv.FormatInt(max(o.Memory/2, minShmSize), 10)
	}
	return "50%"
}

// bind returns a recursive bind mount of a file or directory of the host. Set-user-ID
// bits and device nodes in it have no effect.
func bind(source, target string) specs.Mount {
	return specs.Mount{Destination: target, Type: "bind", Source: source, Options: []string{"rbind", "rprivate", "nosuid", "nodev", "rw"}}
}

// bindReadOnly is bind, read-only. Read-only is an attribute of each mount: if the kernel
// cannot set it recursively, mounts below the source are not included. "ro" in addition to
// "rro" is for runtimes that do not know the latter.
func bindReadOnly(host Host, source, target string) specs.Mount {
	m := bind(source, target)
	if host.RecursiveReadOnly {
		m.Options = []string{"rbind", "rprivate", "nosuid", "nodev", "ro", "rro"}
	} else {
		m.Options = []string{"bind", "rprivate", "nosuid", "nodev", "ro"}
	}
	return m
}

// files mounts /etc/hosts and /etc/resolv.conf.
func files(s *specs.Spec, cfg *Config) error {
	if cfg.Hosts != "" {
		s.Mounts = append(s.Mounts, bindReadOnly(cfg.Host, cfg.Hosts, "/etc/hosts"))
	}
	if cfg.ResolvConf != "" && cfg.network() != NetworkNone {
		s.Mounts = append(s.Mounts, bindReadOnly(cfg.Host, cfg.ResolvConf, "/etc/resolv.conf"))
	}
	return nil
}

// ownMounts adds the sheep's mounts: its directory, at the path that messages to its
// runner contain, and those of its options. They are sorted by target, so that none hides
// another one below it.
func ownMounts(s *specs.Spec, cfg *Config) error {
	own := []specs.Mount{bind(cfg.DataDir, cfg.DataDir)}
	for _, m := range cfg.Options.Mounts {
		if m.ReadOnly {
			own = append(own, bindReadOnly(cfg.Host, m.Source, m.Target))
		} else {
			own = append(own, bind(m.Source, m.Target))
		}
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
