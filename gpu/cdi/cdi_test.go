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

var update = flag.Bool("update", false, "rewrite the expected specs")

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
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "there is no CDI spec for vendor.example/accelerator in "+early+", "+late) {
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

// A spec that has nothing but `all` is enough for who has all GPUs there are.
func TestOnlyAll(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "only-all.yaml")
	s := New(Config{Dirs: []string{dir}})
	one := &gpu.Inventory{GPUs: []gpu.GPU{{UUID: "GPU-aaaa"}}}
	two := &gpu.Inventory{GPUs: []gpu.GPU{{UUID: "GPU-aaaa"}, {Index: 1, Minor: 1, UUID: "GPU-bbbb"}}}
	all := gpu.Devices{List: []gpu.Device{{Kind: gpu.NVIDIA, Name: gpu.Every}}}
	first := gpu.Devices{List: []gpu.Device{{Kind: gpu.NVIDIA, Name: "0", Node: true}}}
	for name, c := range map[string]struct {
		inv     *gpu.Inventory
		devices gpu.Devices
		want    bool
	}{
		"all of one": {one, all, true}, "all of two": {two, all, true}, "all without a driver": {nil, all, true},
		"the one": {one, first, true}, "any one of one": {one, gpu.Devices{Count: 1}, true}, "the first, without a driver": {nil, first, true},
		"one of two": {two, first, false}, "any one of two": {two, gpu.Devices{Count: 1}, false},
	} {
		t.Run(name, func(t *testing.T) {
			names, err := s.Devices()
			if err != nil {
				t.Fatal(err)
			}
			granted, problems := gpu.Allot([]gpu.Request{{Sheep: "a", Devices: c.devices}}, gpu.Machine{Inventory: c.inv, CDI: names})
			if problems != nil {
				t.Fatal(problems)
			}
			edit, err := s.Edit(t.Context(), granted["a"])
			if !c.want {
				if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "have nvidia.com/gpu=all") {
					t.Errorf("got %v", err)
				}
				return
			}
			spec := &specs.Spec{}
			if err != nil || edit(spec) != nil || len(spec.Linux.Devices) != 1 || spec.Linux.Devices[0].Path != "/dev/case-gpu" {
				t.Errorf("got %v, %+v", err, spec.Linux)
			}
		})
	}
	// A spec whose `all` has two GPUs is no spec of the first.
	text, err := os.ReadFile(filepath.Join(dir, "only-all.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.Replace(text, []byte("deviceNodes: ["), []byte("deviceNodes: [{path: /dev/nvidia0, type: c, major: 1, minor: 5}, {path: /dev/nvidia1, type: c, major: 1, minor: 5}, "), 1)
	if err := os.WriteFile(filepath.Join(dir, "only-all.yaml"), text, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Edit(t.Context(), grants(t, "/dev/nvidia0")); err == nil {
		t.Error("a sheep that asked for one GPU got two")
	}
}

// Specs that cannot be used are named, with what is wrong and what to do.
func TestUnusable(t *testing.T) {
	for name, c := range map[string]struct{ files, want []string }{
		"conflict": {[]string{"conflict-a.yaml", "conflict-b.yaml"}, []string{"conflict-a.yaml", "conflict-b.yaml", "both define nvidia.com/gpu=0", "remove one of the files"}},
		"too new":  {[]string{"too-new.yaml"}, []string{"too-new.yaml has cdiVersion 99.0.0", "the newest that is understood is 1.", "update shepherd"}},
		"broken":   {[]string{"broken.yaml"}, []string{"broken.yaml has a syntax error (line 5", "correct it"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			put(t, dir, c.files...)
			failing := &generator{err: fmt.Errorf("the driver is away: %w", errdefs.ErrUnavailable)}
			for _, generate := range []func(context.Context) ([]byte, error){nil, failing.generate} {
				s := New(Config{Dirs: []string{dir}, Own: filepath.Join(t.TempDir(), "own"), Generate: generate})
				_, err := s.Edit(t.Context(), grants(t, "/dev/nvidia0"))
				_, listed := s.Devices()
				for _, err := range []error{err, listed} {
					if err == nil {
						t.Fatal("nothing is said")
					}
					for _, want := range c.want {
						if !strings.Contains(err.Error(), want) {
							t.Errorf("%q is not in: %v", want, err)
						}
					}
					if strings.Contains(err.Error(), "there is no CDI spec") || strings.Contains(err.Error(), "\n") {
						t.Errorf("got %v", err)
					}
				}
			}
			// Another kind's devices are not concerned, and other files are used.
			put(t, dir, "vendor.yaml")
			s := New(Config{Dirs: []string{dir}})
			if _, err := s.Edit(t.Context(), grants(t, "vendor.example/accelerator=card-0")); err != nil {
				t.Error(err)
			}
			if _, err := s.Edit(t.Context(), grants(t, "vendor.example/accelerator=card-9")); err == nil || strings.Contains(err.Error(), c.files[0]) {
				t.Errorf("got %v", err)
			}
		})
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
	if _, err := s.Edit(t.Context(), grants(t, "/dev/nvidia0")); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "nvidia.yaml has a syntax error") {
		t.Errorf("got %v", err)
	}
	s = New(Config{Dirs: []string{dir}})
	if _, err := s.Edit(t.Context(), grants(t, "/dev/nvidia0")); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("got %v", err)
	}
}

// The library panics at a spec with an empty entry: the file is named, and nothing ends.
func TestSpecWithAnEmptyEntry(t *testing.T) {
	for _, edits := range []string{"deviceNodes: [null]", "mounts: [null]", "hooks: [null]"} {
		dir := t.TempDir()
		put(t, dir, "vendor.yaml")
		path := filepath.Join(dir, "broken.yaml")
		text := "cdiVersion: 0.5.0\nkind: broken.example/gpu\ndevices:\n- name: a\n  containerEdits: {" + edits + "}\n"
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		devices, err := New(Config{Dirs: []string{dir}}).Devices()
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), path) || len(devices) > 0 {
			t.Errorf("%s: %v, %v", edits, devices, err)
		}
	}
}
