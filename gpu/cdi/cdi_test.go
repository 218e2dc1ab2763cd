package cdi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"go.uber.org/goleak"

	"github.com/iterait/shepherd/gpu"
	"github.com/iterait/shepherd/oci"
)

var update = flag.Bool("update", false, "write the expected specs anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// put copies specs into a folder.
func put(t *testing.T, dir string, files ...string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		text, err := os.ReadFile(filepath.Join("testdata", f))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, f), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func grants(t *testing.T, names ...string) []gpu.Grant {
	t.Helper()
	var list []gpu.Grant
	for _, n := range names {
		d, err := gpu.ParseDevice(n)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, gpu.Grant{Device: d})
	}
	return list
}

// A container's whole spec, with devices as the last thing in it.
func TestGolden(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "vendor.yaml", "nvidia.yaml")
	s := New(Config{Dirs: []string{dir}})
	for name, granted := range map[string][]gpu.Grant{
		"nvidia": grants(t, "/dev/nvidia0", "nvidia.com/gpu=1:0"),
		"vendor": grants(t, "vendor.example/accelerator=card-0", "vendor.example/accelerator=card-1"),
		"both":   grants(t, "nvidia.com/gpu=0", "vendor.example/accelerator=card-1"),
	} {
		t.Run(name, func(t *testing.T) {
			edit, err := s.Edit(t.Context(), granted)
			if err != nil {
				t.Fatal(err)
			}
			spec, err := oci.Spec(oci.Config{
				DataDir: "/var/lib/shepherd/data/sheep", Hostname: "sheep", CgroupPath: "/shepherd/sheep", Host: oci.Host{Unified: true},
				Options: oci.Options{Command: []string{"/run"}}, Edits: []func(*specs.Spec) error{edit},
			})
			if err != nil {
				t.Fatal(err)
			}
			spec.Linux.Seccomp = nil // which takes most of the page, and is in package oci's
			got, err := json.MarshalIndent(spec, "", "\t")
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join("testdata", name+".json")
			if got = append(got, '\n'); *update {
				if err := os.WriteFile(path, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
				t.Errorf("got\n%s\nwant\n%s%v", got, want, err)
			}
		})
	}
}

// Specs name one GPU in different ways.
func TestNames(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "nvidia.yaml")
	s := New(Config{Dirs: []string{dir}})
	inv := &gpu.Inventory{GPUs: []gpu.GPU{
		{Index: 0, Minor: 5, UUID: "GPU-aaaa"},
		{Index: 1, UUID: "GPU-bbbb", MIGMode: true, MIG: []gpu.Instance{{Index: 0, UUID: "MIG-0000"}}},
		{Index: 2, UUID: "GPU-cccc"},
	}}
	for name, want := range map[string]string{
		"nvidia.com/gpu=GPU-aaaa": "/dev/nvidia0", "/dev/nvidia5": "/dev/nvidia0", "nvidia.com/gpu=MIG-0000": "/dev/nvidia1", "nvidia.com/gpu=GPU-cccc": "",
	} {
		d, err := gpu.ParseDevice(name)
		if err != nil {
			t.Fatal(err)
		}
		allotted, problems := gpu.Allot([]gpu.Request{{Sheep: "a", Devices: gpu.Devices{List: []gpu.Device{d}}}}, gpu.Machine{Inventory: inv})
		if problems != nil {
			t.Fatal(problems)
		}
		edit, err := s.Edit(t.Context(), allotted["a"])
		if want == "" {
			if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "nvidia.com/gpu=0, nvidia.com/gpu=1:0") {
				t.Errorf("%s: got %v", name, err)
			}
			continue
		}
		spec := &specs.Spec{}
		if err != nil || edit(spec) != nil || !slices.ContainsFunc(spec.Linux.Devices, func(d specs.LinuxDevice) bool { return d.Path == want }) {
			t.Errorf("%s: got %v, %+v", name, err, spec.Linux)
		}
	}
}

// What changes in the folders counts at once, and later folders go first.
func TestReadAgain(t *testing.T) {
	early, late := filepath.Join(t.TempDir(), "etc"), filepath.Join(t.TempDir(), "run")
	s := New(Config{Dirs: []string{early, late}})
	ask := grants(t, "vendor.example/accelerator=card-1")
	_, err := s.Edit(t.Context(), ask)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "there is no CDI spec for vendor.example/accelerator (in "+early+", "+late+")") {
		t.Errorf("got %v", err)
	}
	put(t, early, "vendor.yaml")
	if names, err := s.Devices(); err != nil || !slices.Equal(names, []string{"vendor.example/accelerator=card-0", "vendor.example/accelerator=card-1"}) {
		t.Errorf("got %v, %v", names, err)
	}
	if _, err := s.Edit(t.Context(), ask); err != nil {
		t.Error(err)
	}
	text, err := os.ReadFile(filepath.Join(early, "vendor.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(late, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(late, "new.yaml"), bytes.ReplaceAll(text, []byte("minor: 1"), []byte("minor: 77")), 0o644); err != nil {
		t.Fatal(err)
	}
	edit, err := s.Edit(t.Context(), ask)
	if err != nil {
		t.Fatal(err)
	}
	spec := &specs.Spec{}
	if err := edit(spec); err != nil || spec.Linux.Devices[0].Minor != 77 {
		t.Errorf("got %v, %+v", err, spec.Linux)
	}
	if err := os.WriteFile(filepath.Join(late, "broken.yaml"), []byte("kind: ["), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Edit(t.Context(), ask); err != nil {
		t.Errorf("a spec that cannot be read is in the way of another: %v", err)
	}
	if _, err := s.Edit(t.Context(), grants(t, "vendor.example/accelerator=card-9")); err == nil || !strings.Contains(err.Error(), "broken.yaml") {
		t.Errorf("got %v", err)
	}
}

// generator counts how often it is asked for a spec.
type generator struct {
	spec  string
	err   error
	calls int
}

func (g *generator) generate(context.Context) ([]byte, error) {
	g.calls++
	return []byte(g.spec), g.err
}

func TestGenerate(t *testing.T) {
	dir := t.TempDir()
	lib := filepath.Join(dir, "libcuda.so.1")
	if err := os.WriteFile(lib, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	spec := func(name string) string {
		return fmt.Sprintf(`{"cdiVersion":"0.5.0","kind":"nvidia.com/gpu","devices":[{"name":%q,"containerEdits":{"env":["GOT=%s"]}}],
			"containerEdits":{"mounts":[{"hostPath":%q,"containerPath":"/lib/libcuda.so.1"}]}}`, name, name, lib)
	}
	host, own := filepath.Join(dir, "etc"), filepath.Join(dir, "own")
	g := &generator{spec: spec("0")}
	s := New(Config{Dirs: []string{host}, Own: own, Generate: g.generate})
	ask := func(name, want string, calls int) {
		t.Helper()
		edit, err := s.Edit(t.Context(), grants(t, name))
		if err != nil {
			t.Fatal(err)
		}
		spec := &specs.Spec{}
		if err := edit(spec); err != nil || spec.Process == nil || !slices.Contains(spec.Process.Env, want) || g.calls != calls {
			t.Errorf("got %v, %+v after %d calls", err, spec.Process, g.calls)
		}
	}
	ask("nvidia.com/gpu=0", "GOT=0", 1)
	ask("/dev/nvidia0", "GOT=0", 1) // it is there
	g.spec = spec("1")
	ask("nvidia.com/gpu=1", "GOT=1", 2) // what it lacks may be new
	if _, err := s.Edit(t.Context(), grants(t, "nvidia.com/gpu=7")); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "have nvidia.com/gpu=1") {
		t.Errorf("got %v", err)
	}
	ask("nvidia.com/gpu=1", "GOT=1", 3)
	if err := os.Remove(lib); err != nil { // as a new driver's package does
		t.Fatal(err)
	}
	lib = filepath.Join(dir, "libcuda.so.2")
	if err := os.WriteFile(lib, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	g.spec = spec("1")
	ask("nvidia.com/gpu=1", "GOT=1", 4)
	ask("nvidia.com/gpu=1", "GOT=1", 4)
	// What an earlier daemon made may be old.
	s = New(Config{Dirs: []string{host}, Own: own, Generate: g.generate})
	ask("nvidia.com/gpu=1", "GOT=1", 5)
	if s.Describes(gpu.NVIDIA) {
		t.Error("its own spec is taken for the machine's")
	}
	// The machine's own is preferred as soon as it is there.
	put(t, host, "nvidia.yaml")
	ask("nvidia.com/gpu=0", "NVIDIA_VISIBLE_DEVICES=void", 5)
	if !s.Describes(gpu.NVIDIA) {
		t.Error("the machine's spec is not seen")
	}
}

func TestGenerateTroubles(t *testing.T) {
	dir := t.TempDir()
	away := fmt.Errorf("the driver is away: %w", errdefs.ErrUnavailable)
	g := &generator{err: away}
	s := New(Config{Dirs: []string{dir}, Own: filepath.Join(dir, "own"), Generate: g.generate})
	if _, err := s.Edit(t.Context(), grants(t, "/dev/nvidia0")); !errors.Is(err, away) || !strings.Contains(err.Error(), "no CDI spec for nvidia.com/gpu in "+dir) {
		t.Errorf("got %v", err)
	}
	g.err, g.spec = nil, "this is no spec"
	if _, err := s.Edit(t.Context(), grants(t, "/dev/nvidia0")); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "cannot be read") {
		t.Errorf("got %v", err)
	}
	s = New(Config{Dirs: []string{dir}})
	if _, err := s.Edit(t.Context(), grants(t, "/dev/nvidia0")); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("got %v", err)
	}
}
