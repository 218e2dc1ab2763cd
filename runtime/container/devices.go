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

// Mode is how containers get NVIDIA's GPUs. Other vendors' devices always use CDI.
type Mode string

// The modes.
const (
	ModeAuto Mode = "auto" // CDI where a spec exists or can be generated, else the hook
	ModeCDI  Mode = "cdi"
	ModeHook Mode = "hook"
)

// GPUs configures which GPUs container sheep get, and how.
type GPUs struct {
	// Granted returns the GPUs that a sheep has at present; nil grants those that
	// its configuration lists. Its errors have a class of errdefs.
	Granted func(ctx context.Context, sheep string) ([]gpu.Grant, error)
	Mode    Mode // empty is auto
	// CDI configures where CDI specs are read and generated.
	CDI cdi.Config
	// Capabilities are the driver components that the hook mounts into containers.
	Capabilities []string
	// Hook is the path of nvidia-container-runtime-hook; empty searches PATH.
	Hook string
}

// devices makes the OCI edits that put devices into containers.
type devices struct {
	GPUs
	specs *cdi.Specs
}

func newDevices(cfg GPUs) *devices { return &devices{cfg, cdi.New(cfg.CDI)} }

// edits returns the edits of a container's spec that give it the sheep's devices.
// They are to be applied after all others.
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
		more, err := d.nvidiaEdits(ctx, nvidia, o)
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
		return nil, fmt.Errorf("there is no GPU keeper to choose %s: %w", asked, errdefs.ErrFailedPrecondition)
	}
	var grants []gpu.Grant
	for _, x := range asked.List {
		grants = append(grants, gpu.Grant{Device: x})
	}
	return grants, nil
}

func (d *devices) nvidiaEdits(ctx context.Context, grants []gpu.Grant, o *Options) ([]func(*specs.Spec) error, error) {
	if d.Mode == ModeHook {
		return d.hookEdits(grants, o)
	}
	edit, err := d.specs.Edit(ctx, grants)
	switch own, set := o.Env[hook.Visible]; {
	case err == nil && set:
		return []func(*specs.Spec) error{edit, hook.SetVisible(own)}, nil
	case err == nil && o.Runtime == "nvidia": // that runtime would add the GPUs in the variable once more
		return []func(*specs.Spec) error{edit}, nil
	case err == nil:
		return []func(*specs.Spec) error{edit, hook.Show(grants)}, nil
	case d.Mode == ModeCDI || d.specs.Describes(gpu.NVIDIA) || ctx.Err() != nil:
		return nil, err
	}
	// There is no spec, and none can be generated.
	edits, hookErr := d.hookEdits(grants, o)
	if hookErr != nil {
		return nil, fmt.Errorf("%w; and %w", err, hookErr)
	}
	return edits, nil
}

func (d *devices) hookEdits(grants []gpu.Grant, o *Options) ([]func(*specs.Spec) error, error) {
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

// deviceError is Run's error when a container's devices cannot be provided. It is
// of class errdefs.ErrUnavailable, so that the start is tried again, where the
// driver does not answer at present, and else of errdefs.ErrFailedPrecondition.
func deviceError(err error) *runtime.LoadError {
	var class error = errdefs.ErrFailedPrecondition
	if errdefs.IsUnavailable(err) || errors.Is(err, gpu.ErrHung) {
		class = errdefs.ErrUnavailable
	}
	return &runtime.LoadError{Message: errtext.Of(err), Class: class}
}
