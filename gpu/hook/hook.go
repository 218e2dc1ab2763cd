// Package hook puts NVIDIA's GPUs into containers by NVIDIA's prestart hook,
// nvidia-container-runtime-hook, for machines that have no CDI specs: it finds
// what the container's environment asks for and adds device nodes and libraries
// while the container is made.
//
// The hook changes the container's cgroup behind the runtime's back, and what it
// allowed is lost when anything, such as systemd's daemon-reload, sets the
// cgroup's rules again from the spec. So the rules are in the spec as well.
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

// What the hook, and NVIDIA's container runtime, read in a container's
// environment.
const (
	Visible      = "NVIDIA_VISIBLE_DEVICES"
	Capabilities = "NVIDIA_DRIVER_CAPABILITIES"
)

// Config says what the hook is asked for.
type Config struct {
	// Program is the hook; see Find.
	Program string
	// Capabilities are the parts of the driver: compute, utility, …
	Capabilities []string
	// Node says what device a path is; nil looks at this machine's.
	Node func(path string) (major, minor int64, err error)
}

// Find finds the hook.
func Find() (string, error) {
	path, err := exec.LookPath(Name)
	if err != nil {
		return "", fmt.Errorf("%s is not installed (it is part of NVIDIA's container toolkit): %w", Name, errdefs.ErrFailedPrecondition)
	}
	return filepath.Abs(path)
}

// Edit returns what has the hook put NVIDIA's GPUs into a container.
func Edit(cfg Config, grants []gpu.Grant) (func(*specs.Spec) error, error) {
	if cfg.Node == nil {
		cfg.Node = node
	}
	var visible, nodes []string
	unknown := false // some GPU's node
	for _, g := range grants {
		switch {
		case g.Device.Kind != gpu.NVIDIA:
			return nil, fmt.Errorf("%s is none of NVIDIA's GPUs: %w", g.Device, errdefs.ErrInvalidArgument)
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
			continue // the hook has the driver make it, or says what is wrong
		}
		if err != nil {
			return nil, fmt.Errorf("look at %s: %w", path, err)
		}
		rule := specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: "rw"}
		switch {
		case strings.HasPrefix(path, "/dev/nvidia-caps/"):
			// Which of these an instance needs, the hook alone knows. Without the
			// node, which it makes, the rule is of no use.
			rule.Minor = nil
		case path == "/dev/nvidiactl" && unknown:
			// So it is with GPUs that are not known but by their UUID.
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
		//lint:ignore SA1019 it is made for this one, and its argument says so
		s.Hooks.Prestart = append(s.Hooks.Prestart, specs.Hook{Path: cfg.Program, Args: []string{filepath.Base(cfg.Program), "prestart"}})
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, rules...)
		return nil
	}, nil
}

// Show returns what tells a runner by its environment which GPUs it has, as the
// original did: `0,1` for two, nothing for none. Runners count the commas. An
// image, or a CDI spec, that says something else is overruled: so an image cannot
// help itself to GPUs where the container's runtime listens to the variable.
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

// SetVisible returns what gives the variable Visible a value.
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

// node is the device that a path is on this machine.
func node(path string) (major, minor int64, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, 0, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return 0, 0, errors.New("is no character device")
	}
	return int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev)), nil
}
