package hook

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/iterait/shepherd/gpu"
	"github.com/iterait/shepherd/oci"
)

var update = flag.Bool("update", false, "rewrite the expected specs")

// nodes are those of a made-up machine.
func nodes(path string) (major, minor int64, err error) {
	known := map[string][2]int64{
		"/dev/nvidiactl": {195, 255}, "/dev/nvidia-uvm": {510, 0}, "/dev/nvidia-uvm-tools": {510, 1},
		"/dev/nvidia0": {195, 0}, "/dev/nvidia1": {195, 1}, "/dev/nvidia5": {195, 5}, "/dev/nvidia-caps/nvidia-cap1": {237, 1},
	}
	n, ok := known[path]
	if !ok {
		return 0, 0, fs.ErrNotExist
	}
	return n[0], n[1], nil
}

// A container's whole spec: the image's own wishes give way.
func TestGolden(t *testing.T) {
	inv := gpu.Inventory{GPUs: []gpu.GPU{
		{Index: 0, Minor: 5, UUID: "GPU-aaaa"},
		{Index: 1, Minor: 1, UUID: "GPU-bbbb", MIGMode: true, MIG: []gpu.Instance{{Index: 0, UUID: "MIG-0000"}}},
	}}
	for name, c := range map[string]struct {
		machine gpu.Machine
		devices []string
	}{
		"known":     {gpu.Machine{Inventory: &inv}, []string{"nvidia.com/gpu=0", "nvidia.com/gpu=1:0"}},
		"by-number": {gpu.Machine{}, []string{"/dev/nvidia0", "nvidia.com/gpu=1:0"}},
		"by-uuid":   {gpu.Machine{}, []string{"nvidia.com/gpu=GPU-aaaa"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := gpu.Request{Sheep: "a"}
			for _, n := range c.devices {
				d, err := gpu.ParseDevice(n)
				if err != nil {
					t.Fatal(err)
				}
				r.Devices.List = append(r.Devices.List, d)
			}
			grants, problems := gpu.Allot([]gpu.Request{r}, c.machine)
			if problems != nil {
				t.Fatal(problems)
			}
			edit, err := Edit(Config{Program: "/usr/bin/nvidia-container-runtime-hook", Capabilities: []string{"compute", "utility"}, Node: nodes}, grants["a"])
			if err != nil {
				t.Fatal(err)
			}
			spec, err := oci.Spec(oci.Config{
				Image:   ocispec.ImageConfig{Env: []string{"NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=all"}},
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

func TestTroubles(t *testing.T) {
	if _, err := Edit(Config{}, []gpu.Grant{{Device: gpu.Device{Kind: gpu.AMD, Name: "0"}}}); err == nil {
		t.Error("another vendor's GPU was taken")
	}
	odd := errors.New("odd")
	if _, err := Edit(Config{Node: func(string) (int64, int64, error) { return 0, 0, odd }}, nil); !errors.Is(err, odd) {
		t.Errorf("got %v", err)
	}
	if major, minor, err := node("/dev/null"); major != 1 || minor != 3 || err != nil {
		t.Errorf("/dev/null is %d, %d, %v", major, minor, err)
	}
	if _, _, err := node("/dev"); err == nil {
		t.Error("a folder is a device")
	}
	if _, _, err := node("/dev/no-such-node"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	if path, err := Find(); err == nil {
		t.Errorf("got %s", path)
	}
}

// A runner counts the GPUs it has in the variable, whatever a CDI spec put there;
// an image that asks for GPUs by it gets none.
func TestShow(t *testing.T) {
	two := []gpu.Grant{
		{Device: gpu.Device{Kind: gpu.NVIDIA, Name: "0", Node: true}},
		{Device: gpu.Device{Kind: gpu.NVIDIA, Name: "GPU-bbbb"}, GPU: &gpu.GPU{Index: 1, UUID: "GPU-bbbb"}},
	}
	mig := []gpu.Grant{{Device: gpu.Device{Kind: gpu.NVIDIA, Name: "1:0"}, GPU: &gpu.GPU{Index: 1}, Instance: &gpu.Instance{UUID: "MIG-0000"}}}
	other := []gpu.Grant{{Device: gpu.Device{Kind: gpu.AMD, Name: "0"}}}
	for name, c := range map[string]struct {
		grants    []gpu.Grant
		env, want []string
	}{
		"a spec's void":       {two, []string{"A=b", "NVIDIA_VISIBLE_DEVICES=void"}, []string{"A=b", "NVIDIA_VISIBLE_DEVICES=0,1"}},
		"not set":             {two, []string{"A=b"}, []string{"A=b", "NVIDIA_VISIBLE_DEVICES=0,1"}},
		"a MIG instance":      {mig, nil, []string{"NVIDIA_VISIBLE_DEVICES=MIG-0000"}},
		"an image's all":      {nil, []string{"NVIDIA_VISIBLE_DEVICES=all", "A=b"}, []string{"NVIDIA_VISIBLE_DEVICES=", "A=b"}},
		"no GPU":              {nil, []string{"A=b"}, []string{"A=b"}},
		"another vendor's":    {other, []string{"NVIDIA_VISIBLE_DEVICES=all"}, []string{"NVIDIA_VISIBLE_DEVICES="}},
		"all, without driver": {[]gpu.Grant{{Device: gpu.Device{Kind: gpu.NVIDIA, Name: gpu.Every}}}, nil, []string{"NVIDIA_VISIBLE_DEVICES=all"}},
	} {
		s := &specs.Spec{Process: &specs.Process{Env: c.env}}
		if err := Show(c.grants)(s); err != nil || !slices.Equal(s.Process.Env, c.want) {
			t.Errorf("%s: got %v, %v", name, s.Process.Env, err)
		}
	}
}
