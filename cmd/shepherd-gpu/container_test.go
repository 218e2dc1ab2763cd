//go:build cgo

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/iterait/shepherd/gpu"
	"github.com/iterait/shepherd/gpu/cdi"
	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/oci"
)

// compile makes a program or library of testdata.
func compile(t *testing.T, out, source string, flags ...string) {
	t.Helper()
	cc := testenv.Command(t, "gcc", "gcc")
	if text, err := exec.Command(cc, append([]string{"-o", out, filepath.Join("testdata", source)}, flags...)...).CombinedOutput(); err != nil {
		t.Fatalf("compile %s: %v: %s", source, err, text)
	}
}

// TestContainer goes the whole way: from a DGX that go-nvml makes up, by the CDI
// spec of it and the OCI spec of a sheep, to a container that runc starts for
// containerd. In it a program looks for its GPU as CUDA programs do: by opening
// libcuda.so.1 as the dynamic linker finds it, and the device nodes.
func TestContainer(t *testing.T) {
	daemon := testenv.StartContainerd(t)
	root := driverRoot(t, 8)
	const libraries = "usr/lib/x86_64-linux-gnu"
	compile(t, filepath.Join(root, libraries, "libcuda.so."+driverVersion), "libcuda.c", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	hook := filepath.Join(t.TempDir(), hookName)
	if err := os.Symlink(self, hook); err != nil {
		t.Fatal(err)
	}

	m := machines()["dgxh100"]()
	inv := inventory(t, m)
	specDir := t.TempDir()
	const vendor = `{"cdiVersion": "0.6.0", "kind": "vendor.example/card", "devices": [{"name": "one", "containerEdits": {
		"env": ["CARD=one"], "deviceNodes": [{"path": "/dev/vendor/card1", "hostPath": "/dev/null", "type": "c", "major": 1, "minor": 3}]}}]}`
	if err := os.WriteFile(filepath.Join(specDir, "vendor.json"), []byte(vendor), 0o644); err != nil {
		t.Fatal(err)
	}
	specs := cdi.New(cdi.Config{
		Dirs: []string{specDir}, Own: t.TempDir(),
		Generate: func(ctx context.Context) ([]byte, error) {
			var spec bytes.Buffer
			err := run(ctx, m, []string{"cdi", "--mode", "nvml", "--driver-root", root, "--dev-root", root, "--hook", hook}, &spec)
			return spec.Bytes(), err
		},
	})

	k := newKennel(t, daemon)
	type found struct {
		Cuda  string            // what libcuda says, or why it is not found
		Nodes map[string]string // numbers, and what comes of opening it
		Env   map[string]string
	}
	const (
		// No driver is there to answer, which is said only to who may ask.
		nvidia1 = "195:1 No such device or address"
		control = "195:255 No such device or address"
		absent  = "No such file or directory"
	)
	for name, c := range map[string]struct {
		devices []string
		want    found
	}{
		"none": {nil, found{
			Cuda:  "libcuda.so.1: cannot open shared object file: No such file or directory",
			Nodes: map[string]string{"/dev/nvidia0": absent, "/dev/nvidia1": absent, "/dev/nvidiactl": absent, "/dev/vendor/card1": absent},
			Env:   map[string]string{"NVIDIA_VISIBLE_DEVICES": "", "CARD": ""},
		}},
		"by UUID": {[]string{"nvidia.com/gpu=" + uuidOf(1)}, found{
			Cuda:  "made-up CUDA 12040",
			Nodes: map[string]string{"/dev/nvidia0": absent, "/dev/nvidia1": nvidia1, "/dev/nvidiactl": control, "/dev/vendor/card1": absent},
			Env:   map[string]string{"NVIDIA_VISIBLE_DEVICES": "void", "CARD": ""},
		}},
		"two vendors'": {[]string{"/dev/nvidia1", "vendor.example/card=one"}, found{
			Cuda:  "made-up CUDA 12040",
			Nodes: map[string]string{"/dev/nvidia0": absent, "/dev/nvidia1": nvidia1, "/dev/nvidiactl": control, "/dev/vendor/card1": "1:3 opened"},
			Env:   map[string]string{"NVIDIA_VISIBLE_DEVICES": "void", "CARD": "one"},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r := gpu.Request{Sheep: "dolly"}
			for _, d := range c.devices {
				parsed, err := gpu.ParseDevice(d)
				if err != nil {
					t.Fatal(err)
				}
				r.Devices.List = append(r.Devices.List, parsed)
			}
			grants, problems := gpu.Allot([]gpu.Request{r}, gpu.Machine{Inventory: &inv})
			if problems != nil {
				t.Fatal(problems)
			}
			edit, err := specs.Edit(t.Context(), grants["dolly"])
			if err != nil {
				t.Fatal(err)
			}
			var got found
			text := k.run(t, edit)
			if err := json.Unmarshal(text, &got); err != nil {
				t.Fatalf("%s: %v", text, err)
			}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("found %+v\nwant  %+v", got, c.want)
			}
		})
	}
}

// kennel runs a program that looks for GPUs in containers.
type kennel struct {
	client *containerd.Client
	image  containerd.Image
}

// newKennel makes the image: the program, its C library and linker, and nothing
// else.
func newKennel(t *testing.T, daemon *testenv.Containerd) *kennel {
	t.Helper()
	program := filepath.Join(t.TempDir(), "look")
	compile(t, program, "look.c", "-ldl")
	files := map[string][]byte{"etc/hostname": nil, "tmp/x": nil}
	for inside, path := range map[string]string{
		"look": program, "lib64/ld-linux-x86-64.so.2": "/lib64/ld-linux-x86-64.so.2",
		"usr/lib/x86_64-linux-gnu/libc.so.6": "/lib/x86_64-linux-gnu/libc.so.6", "lib/x86_64-linux-gnu/libc.so.6": "/lib/x86_64-linux-gnu/libc.so.6",
	} {
		text, err := os.ReadFile(path)
		if err != nil {
			testenv.Missing(t, path, "run this test on an x86-64 Debian or Ubuntu")
		}
		files[inside] = text
	}
	registry := testenv.StartRegistry(t, testenv.RegistryConfig{})
	registry.Push(t, "look:v1", testenv.Image(t, v1.Config{}, testenv.Layer(t, files)))
	daemon.Ctr(t, "shepherd", "images", "pull", "--plain-http", registry.Host+"/look:v1")
	client, err := containerd.New(daemon.Address, containerd.WithDefaultNamespace("shepherd"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	image, err := client.GetImage(t.Context(), registry.Host+"/look:v1")
	if err != nil {
		t.Fatal(err)
	}
	return &kennel{client, image}
}

// run runs the program in a container and returns what it prints.
func (k *kennel) run(t *testing.T, edit func(*specs.Spec) error) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	id := fmt.Sprintf("sheep-gpu-%d", os.Getpid())
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	spec, err := oci.Spec(oci.Config{
		DataDir: t.TempDir(), Hostname: "sheep", CgroupPath: "/shepherd-gpu-test/" + id, Host: oci.Host{Unified: err == nil},
		Options: oci.Options{Command: []string{"/look"}}, Edits: []func(*specs.Spec) error{edit},
	})
	if err != nil {
		t.Fatal(err)
	}
	container, err := k.client.NewContainer(ctx, id, containerd.WithImage(k.image), containerd.WithNewSnapshot(id, k.image), containerd.WithSpec(spec))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := container.Delete(context.WithoutCancel(ctx), containerd.WithSnapshotCleanup); err != nil {
			t.Error(err)
		}
		for _, pattern := range []string{"/sys/fs/cgroup/shepherd-gpu-test", "/sys/fs/cgroup/*/shepherd-gpu-test"} {
			parents, _ := filepath.Glob(pattern)
			for _, p := range parents {
				os.Remove(p)
			}
		}
	}()
	output := filepath.Join(t.TempDir(), "log")
	task, err := container.NewTask(ctx, cio.LogFile(output))
	if err != nil {
		t.Fatal(err)
	}
	defer task.Delete(context.WithoutCancel(ctx), containerd.WithProcessKill) // unless it ran to its end
	exited, err := task.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Start(ctx); err != nil {
		t.Fatal(err)
	}
	status := <-exited
	if _, err := task.Delete(ctx); err != nil { // only then all output is written
		t.Fatal(err)
	}
	text, err := os.ReadFile(output)
	if err != nil {
		t.Fatal(err)
	}
	if code, _, err := status.Result(); code != 0 || err != nil {
		t.Fatalf("exit code %d, %v: %s", code, err, strings.TrimSpace(string(text)))
	}
	return text
}
