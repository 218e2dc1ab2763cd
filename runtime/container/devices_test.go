package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/goccy/go-yaml"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/iterait/shepherd/gpu"
	"github.com/iterait/shepherd/gpu/cdi"
)

// Which way a container gets its GPUs follows from the mode and from what the
// machine has.
func TestEdits(t *testing.T) {
	const (
		nvidia = `{"cdiVersion":"0.5.0","kind":"nvidia.com/gpu","devices":[{"name":"0","containerEdits":{"env":["WAY=%s"]}}]}`
		other  = `{"cdiVersion":"0.5.0","kind":"vendor.example/card","devices":[{"name":"0","containerEdits":{"env":["CARD=0"]}}]}`
	)
	dir := t.TempDir()
	with, without := filepath.Join(dir, "with"), filepath.Join(dir, "without")
	for path, text := range map[string]string{
		with + "/nvidia.json": fmt.Sprintf(nvidia, "cdi"), with + "/other.json": other, without + "/other.json": other,
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	makes := func(context.Context) ([]byte, error) { return fmt.Appendf(nil, nvidia, "made"), nil }
	away := fmt.Errorf("no driver: %w", errdefs.ErrNotFound)
	cannot := func(context.Context) ([]byte, error) { return nil, away }
	const hook = "/usr/bin/nvidia-container-runtime-hook"
	t.Setenv("PATH", dir) // no hook is found

	type machine struct {
		mode     Mode
		dir      string
		generate func(context.Context) ([]byte, error)
		hook     string
	}
	for name, c := range map[string]struct {
		machine
		devices string
		env     map[string]string
		want    []string // of the environment
		problem string
	}{
		"auto, a spec":                  {machine{"", with, makes, hook}, "[/dev/nvidia0]", nil, []string{"NVIDIA_VISIBLE_DEVICES=0", "WAY=cdi"}, ""},
		"auto, a spec, own value":       {machine{"", with, makes, hook}, "[/dev/nvidia0]", map[string]string{"NVIDIA_VISIBLE_DEVICES": "void"}, []string{"NVIDIA_VISIBLE_DEVICES=void", "WAY=cdi"}, ""},
		"auto, no spec":                 {machine{ModeAuto, without, makes, hook}, "[/dev/nvidia0]", nil, []string{"WAY=made"}, ""},
		"auto, no driver":               {machine{ModeAuto, without, cannot, hook}, "[/dev/nvidia0]", nil, []string{"NVIDIA_VISIBLE_DEVICES=0", "NVIDIA_DRIVER_CAPABILITIES=compute"}, ""},
		"auto, nothing":                 {machine{ModeAuto, without, cannot, ""}, "[/dev/nvidia0]", nil, nil, "no driver: not found; and nvidia-container-runtime-hook is not installed"},
		"auto, a spec without it":       {machine{ModeAuto, with, makes, hook}, "[nvidia.com/gpu=1]", nil, nil, "have nvidia.com/gpu=0"},
		"CDI, nothing":                  {machine{ModeCDI, without, cannot, hook}, "[/dev/nvidia0]", nil, nil, "none can be generated: no driver"},
		"hook":                          {machine{ModeHook, with, makes, hook}, "[/dev/nvidia0]", nil, []string{"NVIDIA_VISIBLE_DEVICES=0"}, ""},
		"hook, own capabilities":        {machine{ModeHook, with, makes, hook}, "all", map[string]string{"NVIDIA_DRIVER_CAPABILITIES": "video,compute"}, []string{"NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=video,compute"}, ""},
		"hook, and another vendor":      {machine{ModeHook, without, cannot, hook}, "[/dev/nvidia0, vendor.example/card=0]", nil, []string{"NVIDIA_VISIBLE_DEVICES=0", "CARD=0"}, ""},
		"another vendor, not there":     {machine{ModeAuto, without, makes, hook}, "[vendor.example/card=1]", nil, nil, "have vendor.example/card=0"},
		"none, the image asks for all":  {machine{ModeAuto, with, makes, hook}, "[]", nil, []string{"NVIDIA_VISIBLE_DEVICES="}, ""},
		"none, the sheep's env has all": {machine{ModeAuto, with, makes, hook}, "[]", map[string]string{"NVIDIA_VISIBLE_DEVICES": "all"}, []string{"NVIDIA_VISIBLE_DEVICES=all"}, ""},
		"by count, without a keeper":    {machine{ModeAuto, with, makes, hook}, "{count: 1}", nil, nil, "sheep `dolly` has no GPU: there is no GPU keeper to choose any GPU"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDevices(GPUs{
				Mode: c.mode, Hook: c.hook, Capabilities: []string{"compute"},
				CDI: cdi.Config{Dirs: []string{c.dir}, Own: t.TempDir(), Generate: c.generate},
			})
			o := &Options{Env: c.env}
			if err := yaml.Unmarshal([]byte(c.devices), &o.Devices); err != nil {
				t.Fatal(err)
			}
			edits, err := d.edits(t.Context(), "dolly", o)
			if c.problem != "" {
				if err == nil || !strings.Contains(err.Error(), c.problem) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			spec := &specs.Spec{Process: &specs.Process{Env: []string{"NVIDIA_VISIBLE_DEVICES=all"}}, Linux: &specs.Linux{Resources: &specs.LinuxResources{}}}
			for _, edit := range edits {
				if err := edit(spec); err != nil {
					t.Fatal(err)
				}
			}
			for _, want := range c.want {
				if !slices.Contains(spec.Process.Env, want) {
					t.Errorf("%s is not in %v", want, spec.Process.Env)
				}
			}
		})
	}
}

// Who has which GPUs is asked for every container again.
func TestGranted(t *testing.T) {
	away := fmt.Errorf("it is away: %w", errdefs.ErrUnavailable)
	var asked []string
	d := newDevices(GPUs{Granted: func(_ context.Context, sheep string) ([]gpu.Grant, error) {
		asked = append(asked, sheep)
		return nil, away
	}})
	_, err := d.edits(t.Context(), "dolly", &Options{Devices: gpu.Devices{Count: 1}})
	if !errors.Is(err, away) || !slices.Equal(asked, []string{"dolly"}) {
		t.Errorf("got %v, asked for %v", err, asked)
	}
	for err, again := range map[error]bool{away: true, gpu.ErrHung: true, errdefs.ErrNotFound: false} {
		if load := deviceError(err); errdefs.IsUnavailable(load) != again {
			t.Errorf("%v is of class %v", err, load.Class)
		}
	}
}
