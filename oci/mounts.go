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

// shmSize is the size of /dev/shm, as tmpfs takes it. The default is half of the
// memory, the container's or the machine's: so much the kernel gives a tmpfs, and
// so much processes outside of containers have. Docker's 64 MiB are too few for
// PyTorch's data loaders, which hand batches over in it.
func shmSize(o *Options) string {
	switch {
	case o.ShmSize > 0:
		return strconv.FormatInt(o.ShmSize, 10)
	case o.Memory > 0:
		return strconv.FormatInt(max(o.Memory/2, minShmSize), 10)
	}
	return "50%"
}

// bind mounts a file or directory of the host's, with what is mounted below it.
// Nothing out of it gets privileges, and no device is opened by it.
func bind(source, target string) specs.Mount {
	return specs.Mount{Destination: target, Type: "bind", Source: source, Options: []string{"rbind", "rprivate", "nosuid", "nodev", "rw"}}
}

// bindReadOnly is bind for what the container may only read. Read-only is a flag
// of each mount: where the kernel cannot set it on those below, too, they are left
// out. "ro" beside "rro" is for runtimes that do not know the latter.
func bindReadOnly(host Host, source, target string) specs.Mount {
	m := bind(source, target)
	if host.RecursiveReadOnly {
		m.Options = []string{"rbind", "rprivate", "nosuid", "nodev", "ro", "rro"}
	} else {
		m.Options = []string{"bind", "rprivate", "nosuid", "nodev", "ro"}
	}
	return m
}

// files are those that name hosts.
func files(s *specs.Spec, cfg *Config) error {
	if cfg.Hosts != "" {
		s.Mounts = append(s.Mounts, bindReadOnly(cfg.Host, cfg.Hosts, "/etc/hosts"))
	}
	if cfg.ResolvConf != "" && cfg.network() != NetworkNone {
		s.Mounts = append(s.Mounts, bindReadOnly(cfg.Host, cfg.ResolvConf, "/etc/resolv.conf"))
	}
	return nil
}

// ownMounts are the sheep's: its directory, at the path that the messages to
// its runner name, and what its options say. They are sorted, so that none
// hides what lies in it.
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
