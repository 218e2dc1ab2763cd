package container

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/iterait/shepherd/gpu"
	"github.com/iterait/shepherd/gpu/cdi"
	"github.com/iterait/shepherd/gpu/hook"
	"github.com/iterait/shepherd/internal/errtext"
	"github.com/iterait/shepherd/runtime"
)

// Mode is how containers get NVIDIA's GPUs. Other vendors' come by CDI always.
type Mode string

// The modes.
const (
	ModeAuto Mode = "auto" // CDI where there is a spec, or one can be made; else the hook
	ModeCDI  Mode = "cdi"
	ModeHook Mode = "hook"
)

// GPUs is where container sheep's GPUs come from.
type GPUs struct {
	// Granted says which GPUs a sheep has at present; nil takes those that it
	// lists. Its errors have a class of errdefs.
	Granted func(ctx context.Context, sheep string) ([]gpu.Grant, error)
	Mode    Mode // empty is auto
	// CDI is where specs are.
	CDI cdi.Config
	// Capabilities are the parts of the driver that the hook puts into containers.
	Capabilities []string
	// Hook is nvidia-container-runtime-hook; empty looks on PATH.
	Hook string
}

// devices puts devices into containers.
type devices struct {
	GPUs
	specs *cdi.Specs
}

func newDevices(cfg GPUs) *devices { return &devices{cfg, cdi.New(cfg.CDI)} }

// edits are what gives a sheep's container its devices. They come last of all
// that makes its spec.
func (d *devices) edits(ctx context.Context, sheep string, o *Options) ([]func(*specs.Spec) error, error) {
	var edits []func(*specs.Spec) error
	if _, own := o.Env[hook.Visible]; !own {
		edits = append(edits, hook.Show(nil))
	}
	grants, err := d.granted(ctx, sheep, o.Devices)
	if err != nil {
		return nil, fmt.Errorf("sheep `%s` has no GPU: %w", sheep, err)
	}
	var nvidia, others []gpu.Grant
	for _, g := range grants {
		if g.Device.Kind == gpu.NVIDIA {
			nvidia = append(nvidia, g)
		} else {
			others = append(others, g)
		}
	}
	if len(others) > 0 {
		edit, err := d.specs.Edit(ctx, others)
		if err != nil {
			return nil, err
		}
		edits = append(edits, edit)
	}
	if len(nvidia) > 0 {
		more, err := d.nvidia(ctx, nvidia, o)
		if err != nil {
			return nil, err
		}
		edits = append(edits, more...)
	}
	return edits, nil
}

func (d *devices) granted(ctx context.Context, sheep string, asked gpu.Devices) ([]gpu.Grant, error) {
	if d.Granted != nil {
		return d.Granted(ctx, sheep)
	}
	if asked.Count > 0 {
		return nil, fmt.Errorf("nobody chooses %s for it: %w", asked, errdefs.ErrFailedPrecondition)
	}
	var grants []gpu.Grant
	for _, x := range asked.List {
		grants = append(grants, gpu.Grant{Device: x})
	}
	return grants, nil
}

func (d *devices) nvidia(ctx context.Context, grants []gpu.Grant, o *Options) ([]func(*specs.Spec) error, error) {
	if d.Mode == ModeHook {
		return d.byHook(grants, o)
	}
	edit, err := d.specs.Edit(ctx, grants)
	switch own, set := o.Env[hook.Visible]; {
	case err == nil && set:
		return []func(*specs.Spec) error{edit, hook.SetVisible(own)}, nil
	case err == nil && o.Runtime == "nvidia": // which adds what the variable names a second time
		return []func(*specs.Spec) error{edit}, nil
	case err == nil:
		return []func(*specs.Spec) error{edit, hook.Show(grants)}, nil
	case d.Mode == ModeCDI || d.specs.Describes(gpu.NVIDIA) || ctx.Err() != nil:
		return nil, err
	}
	// There is no spec, and none can be generated.
	edits, second := d.byHook(grants, o)
	if second != nil {
		return nil, fmt.Errorf("%w; and %w", err, second)
	}
	return edits, nil
}

func (d *devices) byHook(grants []gpu.Grant, o *Options) ([]func(*specs.Spec) error, error) {
	cfg := hook.Config{Program: d.Hook, Capabilities: d.Capabilities}
	if own := o.Env[hook.Capabilities]; own != "" {
		cfg.Capabilities = strings.Split(own, ",")
	}
	if cfg.Program == "" {
		var err error
		if cfg.Program, err = hook.Find(); err != nil {
			return nil, err
		}
	}
	edit, err := hook.Edit(cfg, grants)
	if err != nil {
		return nil, err
	}
	return []func(*specs.Spec) error{edit}, nil
}

// noDevices is why a container cannot be started for lack of its devices. Trying
// again makes sense where the driver does not answer for now.
func noDevices(err error) *runtime.LoadError {
	var class error = errdefs.ErrFailedPrecondition
	if errdefs.IsUnavailable(err) || errors.Is(err, gpu.ErrHung) {
		class = errdefs.ErrUnavailable
	}
	return &runtime.LoadError{Message: errtext.Of(err), Class: class}
}
