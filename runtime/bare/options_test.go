package bare

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/goccy/go-yaml"

	"github.com/iterait/shepherd/gpu"
	"github.com/iterait/shepherd/internal/claims"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/runtime"
)

func TestCommand(t *testing.T) {
	m := job.Model{Name: "group/digits", Version: "v1"}
	for _, c := range []struct {
		command Words
		model   job.Model
		want    string
	}{
		{nil, m, "shepherd-runner -p 9001 group/digits/v1/config.yaml"},
		{nil, job.Model{Name: "digits"}, "shepherd-runner -p 9001 digits/config.yaml"},
		{Words{"python3", "run.py"}, m, "python3 run.py -p 9001 group/digits/v1/config.yaml"},
		{Words{"run", "--port={port}", "--model", "{model}:{version}", "{config}"}, m, "run --port=9001 --model group/digits:v1 group/digits/v1/config.yaml"},
		{Words{"run", "{config}"}, job.Model{Name: "{port}"}, "run {port}/config.yaml"}, // a model's name is not a template
	} {
		o := Options{Command: c.command}
		if got := strings.Join(o.command(c.model, 9001), " "); got != c.want {
			t.Errorf("%q with %v: got %q, want %q", c.command, c.model, got, c.want)
		}
	}
}

func TestEnvironment(t *testing.T) {
	daemon := []string{"PATH=/bin", "CUDA_VISIBLE_DEVICES=7", "A=1", "=odd"}
	claims.Hold(t, "L5")
	const order = "CUDA_DEVICE_ORDER=PCI_BUS_ID"
	const host = "SHEPHERD_RUNNER_HOST=127.0.0.1"
	for _, c := range []struct {
		devices string
		env     map[string]string
		want    []string
	}{
		{"[]", nil, []string{"A=1", "CUDA_VISIBLE_DEVICES=", "PATH=/bin", host}},
		{"[/dev/nvidiactl, /dev/nvidia3, /dev/nvidia-uvm, /dev/nvidia12, /dev/dri/card0]", nil, []string{"A=1", order, "CUDA_VISIBLE_DEVICES=3,12", "PATH=/bin", host}},
		{"[nvidia.com/gpu=GPU-0a1b-2c, nvidia.com/gpu=0, nvidia.com/gpu=MIG-GPU-aa/1/0]", nil, []string{"A=1", order, "CUDA_VISIBLE_DEVICES=GPU-0a1b-2c,0,MIG-GPU-aa/1/0", "PATH=/bin", host}},
		{"[nvidia.com/gpu=GPU-0a1b-2c]", nil, []string{"A=1", "CUDA_VISIBLE_DEVICES=GPU-0a1b-2c", "PATH=/bin", host}},
		{"[nvidia.com/gpu=1]", map[string]string{"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, []string{"A=1", "CUDA_DEVICE_ORDER=FASTEST_FIRST", "CUDA_VISIBLE_DEVICES=1", "PATH=/bin", host}},
		{"[amd.com/gpu=0, amd.com/gpu=2]", nil, []string{"A=1", "CUDA_VISIBLE_DEVICES=", "PATH=/bin", "ROCR_VISIBLE_DEVICES=0,2", host}},
		{"[amd.com/gpu=all]", nil, []string{"A=1", "CUDA_VISIBLE_DEVICES=", "PATH=/bin", host}},
		{"all", nil, []string{"A=1", "PATH=/bin", host}},
		{"[]", map[string]string{"A": "2", "B": ""}, []string{"A=2", "B=", "CUDA_VISIBLE_DEVICES=", "PATH=/bin", host}},
		{"[]", map[string]string{"SHEPHERD_RUNNER_HOST": "::"}, []string{"A=1", "CUDA_VISIBLE_DEVICES=", "PATH=/bin", "SHEPHERD_RUNNER_HOST=::"}},
	} {
		p := &programs{options: Options{Env: c.env}}
		if err := yaml.Unmarshal([]byte(c.devices), &p.options.Devices); err != nil {
			t.Fatal(err)
		}
		grants, err := p.grants(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		env, err := visible(p.options.Devices, grants)
		if err != nil {
			t.Fatal(err)
		}
		daemon := daemon
		if p.options.Devices.Asks(gpu.AMD) {
			daemon = append(daemon, "HIP_VISIBLE_DEVICES=7", "ROCR_VISIBLE_DEVICES=7")
		}
		got := p.options.environment(daemon, env)
		if !slices.Contains(got, "SHEPHERD_FEATURES=events") {
			t.Errorf("the runner is not told that it may send events: %q", got)
		}
		got = slices.DeleteFunc(got, func(v string) bool { return v == "SHEPHERD_FEATURES=events" })
		if !slices.Equal(got, c.want) {
			t.Errorf("%v, %v: got %q, want %q", c.devices, c.env, got, c.want)
		}
	}
}

// What the driver says of GPUs makes numbers and UUIDs of what is named
// otherwise.
func TestVisible(t *testing.T) {
	inv := gpu.Machine{Inventory: &gpu.Inventory{GPUs: []gpu.GPU{
		{Index: 0, Minor: 1, UUID: "GPU-aaaa"}, {Index: 1, Minor: 0, UUID: "GPU-bbbb"},
		{Index: 2, Minor: 2, UUID: "GPU-cccc", MIGMode: true, MIG: []gpu.Instance{{Index: 0, UUID: "MIG-0000"}}},
	}}}
	for devices, want := range map[string]string{
		"[/dev/nvidia0]": "1", "[nvidia.com/gpu=0]": "0", "['nvidia.com/gpu=2:0']": "MIG-0000", "{count: 2}": "GPU-aaaa,GPU-bbbb",
	} {
		r := gpu.Request{Sheep: "dolly"}
		if err := yaml.Unmarshal([]byte(devices), &r.Devices); err != nil {
			t.Fatal(err)
		}
		grants, problems := gpu.Allot([]gpu.Request{r}, inv)
		if env, err := visible(r.Devices, grants["dolly"]); err != nil || env["CUDA_VISIBLE_DEVICES"] != want || problems != nil {
			t.Errorf("%s: got %v, %v, %v", devices, env, err, problems)
		}
	}
	if env, err := visible(gpu.Devices{}, []gpu.Grant{{Device: gpu.Device{Kind: gpu.NVIDIA, Name: "2:0"}}}); err == nil {
		t.Errorf("got %v for an instance whose UUID is not known", env)
	}
}

// A sheep whose GPUs cannot be had says so when it is to start.
func TestNoGPU(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "m/v"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "m/v/config.yaml"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	hung := func(context.Context, string) ([]gpu.Grant, error) {
		return nil, fmt.Errorf("it is away: %w", errdefs.ErrUnavailable)
	}
	for _, p := range []*programs{
		{sheep: "dolly", options: Options{WorkingDirectory: dir, Command: Words{"true"}}, gpus: hung},
		{sheep: "dolly", options: Options{WorkingDirectory: dir, Command: Words{"true"}, Devices: gpu.Devices{Count: 1}}},
	} {
		var load *runtime.LoadError
		err := p.Load(t.Context(), job.Model{Name: "m", Version: "v"}, nil)
		if !errors.As(err, &load) || !strings.Contains(err.Error(), "Sheep `dolly` has no GPU") || errdefs.IsUnavailable(err) != (p.gpus != nil) {
			t.Errorf("got %v", err)
		}
	}
}

func TestOptions(t *testing.T) {
	read := func(text string) (o *Options, err error) {
		_, err = New(Config{DataRoot: "/data", StateDir: "/state"}).NewSheep("dolly", func(into any) error {
			o = into.(*Options)
			return yaml.NewDecoder(strings.NewReader(text), yaml.Strict()).Decode(into)
		})
		return o, err
	}
	o, err := read(`
type: bare
port: 9001
devices: [/dev/nvidia0]
working_directory: /models
stdout_file: /var/log/out
stderr_file: /var/log/err
command: python3 -m runner
env: {A: b}
grace: 3s
orphan_timeout: 1h
`)
	if err != nil {
		t.Fatal(err)
	}
	if o.Port != 9001 || !slices.Equal(o.Command, Words{"python3", "-m", "runner"}) || o.Grace != 3*time.Second || o.OrphanTimeout != time.Hour || o.StderrFile != "/var/log/err" {
		t.Errorf("got %+v", o)
	}
	if o, err := read("type: bare\nworking_directory: models\ncommand: [a b, c]\n"); err != nil || !slices.Equal(o.Command, Words{"a b", "c"}) || !filepath.IsAbs(o.WorkingDirectory) {
		t.Errorf("got %+v, %v", o, err)
	}
	for _, c := range []struct{ text, field string }{
		{"type: bare\n", "working_directory"},
		{"type: bare\nworking_directory: /m\nport: 70000\n", "port"},
		{"type: bare\nworking_directory: /m\ndevices: [vendor.example/gpu=0]\n", "devices[0]"},
		{"type: bare\nworking_directory: /m\nenv: {'A=B': c}\n", "env.A=B"},
		{"type: bare\nworking_directory: /m\ngrace: -1s\n", "grace"},
		{"type: bare\nworking_directory: /m\ncommand: ['']\n", "command"},
	} {
		_, err := read(c.text)
		var field *runtime.FieldError
		if !errors.As(err, &field) || field.Field != c.field {
			t.Errorf("%q: got %v, want that %s is wrong", c.text, err, c.field)
		}
	}
	for _, bad := range []string{"type: bare\nworking_directory: /m\nno_such_key: 1\n", "type: bare\nworking_directory: /m\ncommand: {a: b}\n", "type: bare\nworking_directory: /m\ncommand: \"a 'b\"\n"} {
		if _, err := read(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	for _, name := range []string{"", "..", "a/b"} {
		if _, err := New(Config{}).NewSheep(name, func(any) error { return nil }); err == nil {
			t.Errorf("sheep name %q was accepted", name)
		}
	}
}

func TestModelMissingInTheOriginalsWords(t *testing.T) {
	dir := t.TempDir()
	s, err := New(Config{DataRoot: dir, StateDir: dir, Shim: "/bin/true"}).NewSheep("dolly", func(into any) error {
		into.(*Options).WorkingDirectory = dir
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		model job.Model
		want  string
	}{
		{job.Model{Name: "file", Version: "v1"}, "Cannot load model `file:v1`, file `" + dir + "/file/v1/config.yaml` does not exist."},
		{job.Model{Name: "no-such-model", Version: "v9"}, "Cannot load model `no-such-model:v9`, file `" + dir + "/no-such-model/v9/config.yaml` does not exist."},
		{job.Model{Name: "a/b"}, "Cannot load model `a/b:`, file `" + dir + "/a/b/config.yaml` does not exist."},
	} {
		if err := s.Load(t.Context(), c.model, runtime.Discard); err == nil || err.Error() != c.want {
			t.Errorf("got %v\nwant %s", err, c.want)
		} else if !errdefs.IsNotFound(err) { // else it is not looked for on other sheep
			t.Errorf("%v is of another class", err)
		}
	}
	// The model is there, its runner is not.
	if err := os.WriteFile(filepath.Join(dir, "config.yaml"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir, filepath.Join(dir, "here")); err != nil { // where it leads is the operator's choice
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"file/v1": "A bare sheep runs it once there is a directory `" + dir + "/file/v1` with a `config.yaml`.",
		"none":    "A bare sheep runs it once there is a directory `" + dir + "/none` with a `config.yaml`.",
		"empty":   "A bare sheep runs it once there is a file `config.yaml` in `" + dir + "/empty`.",
		"here":    "A bare sheep runs it with the program `shepherd-runner`, which reads `" + dir + "/here/config.yaml`.",
	} {
		if got := s.(runtime.ModelAdviser).ModelAdvice(job.Model{Name: name}); got != want {
			t.Errorf("of %s it says\n     %s\nwant %s", name, got, want)
		}
	}
	t.Setenv("PATH", dir)
	err = s.Load(t.Context(), job.Model{Name: "here"}, runtime.Discard)
	if err == nil || !strings.Contains(err.Error(), "`shepherd-runner` is not found on PATH") {
		t.Errorf("got %v, want to be told what to install", err)
	}
	// Whoever starts the daemon by its path has the runner beside it, and not on PATH.
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	beside := filepath.Join(filepath.Dir(self), defaultRunner)
	if err := os.WriteFile(beside, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(beside) })
	if got, err := findProgram(defaultRunner, dir, []string{"PATH=" + dir}); err != nil || got != beside {
		t.Errorf("got %s, %v, want %s", got, err, beside)
	}
	// The one on PATH comes first: it is what the sheep was set up with.
	first := filepath.Join(dir, defaultRunner)
	if err := os.WriteFile(first, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := findProgram(defaultRunner, dir, []string{"PATH=" + dir}); err != nil || got != first {
		t.Errorf("got %s, %v, want %s", got, err, first)
	}
}
