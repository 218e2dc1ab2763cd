package container

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/iterait/shepherd/config/size"
	"github.com/iterait/shepherd/gpu"
	"github.com/iterait/shepherd/image"
	"github.com/iterait/shepherd/oci"
	"github.com/iterait/shepherd/runtime"
)

// Options is the configuration of one container sheep.
type Options struct {
	Type string `yaml:"type"`
	// Port is accepted for compatibility and ignored: no port is opened on the host.
	Port int `yaml:"port"`
	// Devices are the GPUs that the container gets.
	Devices gpu.Devices `yaml:"devices"`
	// AutoremoveContainers, if explicitly false, keeps the stopped container of the
	// last run until the sheep loads a model again.
	AutoremoveContainers *bool `yaml:"autoremove_containers"`
	// PullPolicy is always, if-missing or never.
	PullPolicy string `yaml:"pull_policy"`
	// Snapshotter overrides the driver's.
	Snapshotter string `yaml:"snapshotter"`
	// Runtime is runc, crun, nvidia, gvisor, the path of a program that is called
	// as runc is, or the name of a containerd runtime ("io.containerd.…").
	Runtime string `yaml:"runtime"`

	Memory   size.Bytes            `yaml:"memory"`
	CPUs     float64               `yaml:"cpus"`
	Pids     int64                 `yaml:"pids"`
	ShmSize  size.Bytes            `yaml:"shm_size"`
	OOMGroup bool                  `yaml:"oom_group"`
	Tmpfs    map[string]size.Bytes `yaml:"tmpfs"`
	ReadOnly bool                  `yaml:"read_only"`
	User     string                `yaml:"user"`
	Env      map[string]string     `yaml:"env"`
	Mounts   []Mount               `yaml:"mounts"`
	Ulimits  map[string]Ulimit     `yaml:"ulimits"`
	Command  []string              `yaml:"command"`
	Args     []string              `yaml:"args"`
	Network  string                `yaml:"network"`
	// Contract is how images receive jobs: zeromq, command, warm or cog; empty
	// follows each image's labels.
	Contract Contract `yaml:"contract"`

	// Grace and OrphanTimeout override the driver's.
	Grace         time.Duration `yaml:"grace"`
	OrphanTimeout time.Duration `yaml:"orphan_timeout"`
}

// Mount is a bind mount of a path of the host in the container. In YAML it is
// SOURCE:TARGET, SOURCE:TARGET:ro or SOURCE:TARGET:rw.
type Mount struct {
	Source, Target string
	ReadOnly       bool
}

// UnmarshalYAML reads a mount.
func (m *Mount) UnmarshalYAML(unmarshal func(any) error) error {
	var text string
	if err := unmarshal(&text); err != nil {
		return err
	}
	parts := strings.Split(text, ":")
	if len(parts) == 3 && (parts[2] == "ro" || parts[2] == "rw") {
		m.ReadOnly = parts[2] == "ro"
		parts = parts[:2]
	}
	if len(parts) != 2 || parts[0] == "" || parts[1] == "" {
		return fmt.Errorf("expected SOURCE:TARGET or SOURCE:TARGET:ro, found %q", text)
	}
	m.Source, m.Target = parts[0], parts[1]
	return nil
}

// Ulimit is a resource limit of each process; see setrlimit(2). In YAML it is
// SOFT:HARD or one number for both; -1 is no limit.
type Ulimit struct{ Soft, Hard int64 }

// UnmarshalYAML reads a limit.
func (u *Ulimit) UnmarshalYAML(unmarshal func(any) error) error {
	var number int64
	if err := unmarshal(&number); err == nil {
		u.Soft, u.Hard = number, number
		return nil
	}
	var text string
	if err := unmarshal(&text); err != nil {
		return errors.New("expected a number, or SOFT:HARD")
	}
	soft, hard, both := strings.Cut(text, ":")
	if !both {
		hard = soft
	}
	var err1, err2 error
	u.Soft, err1 = strconv.ParseInt(soft, 10, 64)
	u.Hard, err2 = strconv.ParseInt(hard, 10, 64)
	if err1 != nil || err2 != nil {
		return fmt.Errorf("expected a number, or SOFT:HARD, found %q", text)
	}
	return nil
}

// check validates the options. Its error joins *runtime.FieldError values.
func (o *Options) check(allowed []string) error {
	var errs []error
	wrong := func(field, format string, args ...any) {
		errs = append(errs, &runtime.FieldError{Field: field, Problem: fmt.Sprintf(format, args...)})
	}
	if o.Port < 0 || o.Port > 65535 {
		wrong("port", "%d is not a TCP port", o.Port)
	}
	if _, err := image.ParsePolicy(o.PullPolicy); err != nil {
		wrong("pull_policy", "%q is none of always, if-missing and never", o.PullPolicy)
	}
	if strings.ContainsAny(o.Snapshotter, "/ \x00") {
		wrong("snapshotter", "%q is not the name of a snapshotter", o.Snapshotter)
	}
	if strings.ContainsAny(o.Runtime, " \x00") {
		wrong("runtime", "%q is not a runtime; expected runc, crun, nvidia, gvisor, a path or the name of a containerd runtime", o.Runtime)
	}
	if o.Contract.check() != nil {
		wrong("contract", "%q is none of zeromq, command, warm and cog", o.Contract)
	}
	if o.Grace < 0 {
		wrong("grace", "cannot be negative")
	}
	if o.OrphanTimeout < 0 {
		wrong("orphan_timeout", "cannot be negative")
	}
	spec, resolved, err := o.oci(allowed)
	if err != nil {
		errs = append(errs, err)
	} else {
		err := spec.Check(resolved)
		for _, e := range split(err) {
			var option *oci.OptionError
			if errors.As(e, &option) {
				e = &runtime.FieldError{Field: option.Option, Problem: option.Problem}
			}
			errs = append(errs, e)
		}
	}
	return errors.Join(errs...)
}

// split takes joined errors apart.
func split(err error) []error {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
}

// oci converts the options for package oci, and returns them with the paths that
// may be mounted. Symbolic links in mount sources and allowed paths are resolved;
// their targets can change, so they are resolved anew for each container.
func (o *Options) oci(allowed []string) (oci.Options, []string, error) {
	spec := oci.Options{
		Memory: int64(o.Memory), CPUs: o.CPUs, Pids: o.Pids, ShmSize: int64(o.ShmSize), OOMGroup: o.OOMGroup,
		ReadOnly: o.ReadOnly, User: o.User, Command: o.Command, Args: o.Args, Network: oci.Network(o.Network),
		Env: map[string]string{}, Ulimits: map[string]oci.Ulimit{},
	}
	maps.Copy(spec.Env, o.Env)
	for name, u := range o.Ulimits {
		spec.Ulimits[name] = oci.Ulimit(u)
	}
	for _, target := range slices.Sorted(maps.Keys(o.Tmpfs)) {
		spec.Tmpfs = append(spec.Tmpfs, oci.Tmpfs{Target: target, Size: int64(o.Tmpfs[target])})
	}
	var errs []error
	for i, m := range o.Mounts {
		source, err := filepath.EvalSymlinks(m.Source)
		if err != nil || !filepath.IsAbs(m.Source) {
			errs = append(errs, &runtime.FieldError{Field: fmt.Sprintf("mounts[%d]", i), Problem: fmt.Sprintf("source %q is not an absolute path that exists: %v", m.Source, err)})
			continue
		}
		spec.Mounts = append(spec.Mounts, oci.Mount{Source: source, Target: m.Target, ReadOnly: m.ReadOnly})
	}
	var resolved []string
	for _, path := range allowed {
		if real, err := filepath.EvalSymlinks(path); err == nil { // a path that does not exist allows nothing
			resolved = append(resolved, real)
		}
	}
	return spec, resolved, errors.Join(errs...)
}
