package oci

import (
	"math"

	defaultseccomp "github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// cpuPeriod is the kernel's default, in microseconds.
const cpuPeriod = 100_000

// cgroup limits the resources of all processes of the container together, and denies all
// devices; the runtime allows those that every container has.
func cgroup(s *specs.Spec, cfg *Config) error {
	o := cfg.Options
	s.Linux.CgroupsPath = cfg.CgroupPath
	r := s.Linux.Resources
	r.Devices = []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	if o.Memory > 0 {
		r.Memory = &specs.LinuxMemory{Limit: &o.Memory}
		if cfg.Host.Unified || cfg.Host.SwapLimit {
			r.Memory.Swap = &o.Memory // memory and swap together, so no swap
		}
	}
	if o.OOMGroup {
		if !cfg.Host.Unified {
			return &OptionError{"oom_group", "this machine has cgroup v1, and memory.oom.group needs cgroup v2; leave it out"}
		}
		r.Unified = map[string]string{"memory.oom.group": "1"}
	}
	if o.CPUs > 0 {
		period, quota := uint64(cpuPeriod), int64(math.Round(o.CPUs*cpuPeriod))
		r.CPU = &specs.LinuxCPU{Period: &period, Quota: &quota}
	}
	pids := o.Pids
	if pids == 0 {
		pids = DefaultPids(cfg.Host.CPUs)
	}
	r.Pids = &specs.LinuxPids{Limit: &pids}
	return nil
}

func (cfg *Config) network() Network {
	if cfg.Options.Network == "" {
		return NetworkNone
	}
	return cfg.Options.Network
}

// namespaces gives the container namespaces of its own, except the network's with network
// host, and the cgroup's with cgroup v1, as Docker does.
func namespaces(s *specs.Spec, cfg *Config) error {
	s.Hostname = cfg.Hostname
	s.Linux.Namespaces = []specs.LinuxNamespace{
		{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
	}
	if cfg.Host.Unified {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	switch cfg.network() {
	case NetworkNone:
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace})
	case NetworkCNI:
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: cfg.NetworkNamespace})
	}
	return nil
}

// paths masks files in /proc and /sys that reveal information about the host, and makes
// those read-only that change it.
func paths(s *specs.Spec, _ *Config) error {
	s.Linux.MaskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
		"/sys/devices/virtual/powercap", "/sys/firmware",
	}
	s.Linux.ReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
	return nil
}

// capabilities sets Docker's default capabilities, without those that programs hardly
// need and that container escapes have used: raw sockets, device nodes, file capabilities
// and writing to the audit log. Users other than root have none, and no process can gain
// more.
func capabilities(s *specs.Spec, cfg *Config) error {
	some := []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
		"CAP_NET_BIND_SERVICE", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
	}
	s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: some}
	if cfg.Account.UID == 0 {
		s.Process.Capabilities.Effective, s.Process.Capabilities.Permitted = some, some
	}
	s.Process.NoNewPrivileges = true
	return nil
}

// apparmor sets the AppArmor profile, if the host has AppArmor.
func apparmor(s *specs.Spec, cfg *Config) error {
	s.Process.ApparmorProfile = cfg.Host.AppArmor
	return nil
}

// seccomp sets containerd's default profile, which is Docker's. It allows system calls
// according to the capabilities in the spec.
func seccomp(s *specs.Spec, _ *Config) error {
	s.Linux.Seccomp = defaultseccomp.DefaultProfile(s)
	return nil
}
