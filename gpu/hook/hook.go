// Package hook injects NVIDIA's GPUs into containers with NVIDIA's prestart hook,
// nvidia-container-runtime-hook, on machines that have no CDI specs. The hook reads the
// container's environment, and adds device nodes and libraries while the container is
// created.
//
// The hook changes the container's cgroup without the runtime's knowledge. Its changes are
// lost when the cgroup's device rules are set again from the spec, for example at systemd's
// daemon-reload. So the rules are added to the spec as well.
package hook

import (
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/gpu"
)

// Name is the hook's program.
const Name = "nvidia-container-runtime-hook"

// The environment variables of a container that the hook and NVIDIA's container runtime
// read.
const (
	Visible      = "NVIDIA_VISIBLE_DEVICES"
	Capabilities = "NVIDIA_DRIVER_CAPABILITIES"
)

// Config configures the hook.
type Config struct {
	// Program is the path of the hook; see Find.
	Program string
	// Capabilities are the driver components to add: compute, utility, …
	Capabilities []string
	// Node returns the numbers of a device node; nil reads this machine's.
	Node func(path string) (major, minor int64, err error)
}

// Find returns the path of the hook. The error is of class errdefs.ErrFailedPrecondition.
func Find() (string, error) {
	path, err := exec.LookPath(Name)
	if err != nil {
		return "", fmt.Errorf("%s is not installed (it is part of NVIDIA's container toolkit): %w", Name, errdefs.ErrFailedPrecondition)
	}
	return filepath.Abs(path)
}

// Edit returns the edit of a spec with which the hook adds the granted GPUs.
func Edit(cfg Config, grants []gpu.Grant) (func(*specs.Spec) error, error) {
	if cfg.Node == nil {
		cfg.Node = node
	}
	var visible, nodes []string
	unknown := false // the number of some GPU's node is not known
	for _, g := range grants {
		switch {
		case g.Device.Kind != gpu.NVIDIA:
			return nil, fmt.Errorf("%s is not an NVIDIA GPU: %w", g.Device, errdefs.ErrInvalidArgument)
		case g.Instance != nil:
			visible = append(visible, g.Instance.UUID)
		case g.GPU != nil:
			visible = append(visible, g.GPU.UUID)
		default:
			visible = append(visible, g.Device.Name)
		}
		switch index, _, _ := strings.Cut(g.Device.Name, ":"); {
		case g.GPU != nil:
			nodes = append(nodes, "/dev/nvidia"+strconv.Itoa(g.GPU.Minor))
		case isNumber(index):
			nodes = append(nodes, "/dev/nvidia"+index)
		default:
			unknown = true
		}
		if g.Instance != nil || strings.Contains(g.Device.Name, ":") || strings.HasPrefix(g.Device.Name, "MIG-") {
			nodes = append(nodes, "/dev/nvidia-caps/nvidia-cap1")
		}
	}
	var rules []specs.LinuxDeviceCgroup
	for _, path := range append([]string{"/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset"}, nodes...) {
		major, minor, err := cfg.Node(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the hook has the driver create it, or reports the error
		}
		if err != nil {
			return nil, fmt.Errorf("read the device node %s: %w", path, err)
		}
		rule := specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: "rw"}
		switch {
		case strings.HasPrefix(path, "/dev/nvidia-caps/"):
			// Only the hook knows which of these an instance needs, so all are
			// allowed. Access still requires the node, which the hook creates.
			rule.Minor = nil
		case path == "/dev/nvidiactl" && unknown:
			// The same holds for GPUs of which only the UUID is known.
			rule.Minor = nil
		}
		rules = append(rules, rule)
	}
	return func(s *specs.Spec) error {
		setenv(s, Visible, strings.Join(visible, ","))
		setenv(s, Capabilities, strings.Join(cfg.Capabilities, ","))
		if s.Hooks == nil {
			s.Hooks = &specs.Hooks{}
		}
		//lint:ignore SA1019 NVIDIA's hook is a prestart hook
		s.Hooks.Prestart = append(s.Hooks.Prestart, specs.Hook{Path: cfg.Program, Args: []string{filepath.Base(cfg.Program), "prestart"}})
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, rules...)
		return nil
	}, nil
}

// Show returns the edit that sets Visible to the granted GPUs, as the original did:
// `0,1` for two GPUs. Runners count the commas. It replaces the image's or CDI spec's own
// value, so that an image cannot get GPUs by setting the variable where the container
// runtime reads it; without grants it only clears such a value.
func Show(grants []gpu.Grant) func(*specs.Spec) error {
	var names []string
	for _, g := range grants {
		if g.Device.Kind != gpu.NVIDIA {
			continue
		}
		name := g.Device.Name
		switch {
		case g.Instance != nil:
			name = g.Instance.UUID
		case g.GPU != nil:
			name = strconv.Itoa(g.GPU.Index)
		}
		names = append(names, name)
	}
	value := strings.Join(names, ",")
	return func(s *specs.Spec) error {
		if s.Process == nil {
			s.Process = &specs.Process{}
		}
		if value == "" && !slices.ContainsFunc(s.Process.Env, func(v string) bool { return strings.HasPrefix(v, Visible+"=") }) {
			return nil
		}
		setenv(s, Visible, value)
		return nil
	}
}

// SetVisible returns the edit that sets Visible to a value.
func SetVisible(value string) func(*specs.Spec) error {
	return func(s *specs.Spec) error {
		setenv(s, Visible, value)
		return nil
	}
}

func setenv(s *specs.Spec, name, value string) {
	for i, v := range s.Process.Env {
		if strings.HasPrefix(v, name+"=") {
			s.Process.Env[i] = name + "=" + value
			return
		}
	}
	s.Process.Env = append(s.Process.Env, name+"="+value)
}

func isNumber(s string) bool {
	_, err := strconv.ParseUint(s, 10, 16)
	return err == nil
}

// node returns the numbers of a device node of this machine.
func node(path string) (major, minor int64, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, 0, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return 0, 0, errors.New("is not a character device")
	}
	return int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev)), nil
}
