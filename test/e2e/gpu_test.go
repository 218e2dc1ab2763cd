package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/iterait/shepherd/gpu"
	"github.com/iterait/shepherd/internal/testenv"
)

// A farm is a machine whose sheep multiply matrices on a GPU. With
// SHEPHERD_TEST_GPU set, as `make test-gpu` does, it is this machine's first GPU.
// Otherwise a stand-in for NVIDIA's library computes, so that everything but the GPU itself
// is tested everywhere.
type farm struct {
	*world
	python string
	real   bool
	device string // as the sheep's devices name it
	name   string // of the GPU
	libs   string // the stand-in's folder
}

func newFarm(t *testing.T) *farm {
	t.Helper()
	f := &farm{world: emptyWorld(t), real: os.Getenv("SHEPHERD_TEST_GPU") != "", python: testenv.Python(t, "ctypes", "python3")}
	helper := exec.Command("go", "build", "-o", programs+"/", "../../cmd/shepherd-gpu")
	helper.Env = append(os.Environ(), "CGO_ENABLED=1", "CGO_CFLAGS=-O2 -w")
	cc := testenv.Command(t, "gcc", "gcc")
	if out, err := helper.CombinedOutput(); err != nil {
		t.Fatalf("build shepherd-gpu: %v: %s", err, out)
	}
	if f.real {
		inv, err := gpu.NewHelper(gpu.HelperConfig{Program: programs + "/shepherd-gpu"}).Inventory(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(inv.GPUs, func(g gpu.GPU) bool { return !g.MIGMode && !g.Lost })
		if i < 0 {
			t.Skipf("a GPU that can be used as a whole is missing: %+v", inv.GPUs)
		}
		f.device, f.name = "nvidia.com/gpu="+inv.GPUs[i].UUID, inv.GPUs[i].Name
		t.Logf("driver %s, CUDA %s, GPU %d: %s (%s)", inv.Driver, inv.CUDA, inv.GPUs[i].Index, f.name, inv.GPUs[i].UUID)
	} else {
		f.device, f.name, f.libs = "/dev/nvidia0", "Stand-in", f.dir+"/lib"
		if err := os.Mkdir(f.libs, 0o755); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(cc, "-O2", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", f.libs+"/libcuda.so.1", "testdata/gpu/standin.c").CombinedOutput(); err != nil {
			t.Fatalf("compile the stand-in: %v: %s", err, out)
		}
	}
	return f
}

// multiplied checks a job's result.
func (f *farm) multiplied(id string) {
	f.t.Helper()
	if s := f.await(id); s.Status != "done" {
		f.t.Fatalf("job %s is %s: %+v; log:\n%s", id, s.Status, s.Error, f.log)
	}
	var result struct {
		By, GPU     string
		Count, Size int
	}
	text := f.result(id)
	if err := json.Unmarshal([]byte(text), &result); err != nil {
		f.t.Fatalf("%v in %s", err, text)
	}
	f.t.Logf("job %s: two matrices of %d×%d, %s on %s", id, result.Size, result.Size, result.By, result.GPU)
	if result.Count != 1 || result.GPU != f.name || result.Size == 0 {
		f.t.Errorf("job %s says %s; want one GPU, %s", id, text, f.name)
	}
}

// model is what shepherd-runner runs.
func (f *farm) model(program string, env ...string) string {
	text := fmt.Sprintf("command: [%q, %q, \"{outputs}\"]\n", f.python, program)
	if len(env) > 0 {
		text += "env:\n  " + strings.Join(env, "\n  ") + "\n"
	}
	return text
}

func TestGPUBare(t *testing.T) {
	f := newFarm(t)
	program, err := filepath.Abs("testdata/gpu/multiply.py")
	if err != nil {
		t.Fatal(err)
	}
	write(t, f.dir+"/models/multiply/v1/config.yaml", f.model(program))
	write(t, f.dir+"/models/multiply/wrong/config.yaml", f.model(program, "STANDIN: wrong"))
	sheep := fmt.Sprintf("    devices: [%q]\n    command: [%q, \"-p\", \"{port}\", \"{config}\"]\n", f.device, programs+"/shepherd-runner")
	if !f.real {
		sheep += fmt.Sprintf("    env: {LD_LIBRARY_PATH: %q}\n", f.libs)
	}
	f.edit("    type: bare\n", "    type: bare\n"+sheep)
	f.start()
	f.submit("job-1", "multiply:v1", "x")
	f.multiplied("job-1")
	f.submit("job-2", "multiply:v1", "x")
	f.multiplied("job-2")
	if !f.real { // a wrong product does not pass
		f.submit("job-3", "multiply:wrong", "x")
		f.expectFailed("job-3", "the product is wrong")
	}
}

func TestGPUContainer(t *testing.T) {
	f := newFarm(t)
	daemon := testenv.StartContainerd(t)
	f.t.Cleanup(func() { // before the world's own: the daemon is to be gone
		f.end()
		f.daemon = nil
		for _, left := range daemon.Leftovers(t, "shepherd") {
			t.Errorf("left behind: %s", left)
		}
	})
	if !f.real {
		f.describe()
	}
	files := f.pythonFiles()
	for inside, path := range map[string]string{"shepherd-runner": programs + "/shepherd-runner", "multiply.py": "testdata/gpu/multiply.py"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		files[inside] = text
	}
	files["model/config.yaml"] = []byte(f.model("/multiply.py"))
	files["etc/passwd"], files["tmp/x"] = []byte("root:x:0:0:root:/:/bin/false\n"), nil
	registry := testenv.StartRegistry(t, testenv.RegistryConfig{})
	registry.Push(t, "multiply:v1", testenv.Image(t, v1.Config{
		Entrypoint: []string{"/shepherd-runner", "-p", "9999", "/model"}, Env: []string{"PYTHONDONTWRITEBYTECODE=1"},
	}, testenv.Layer(t, files)))
	f.edit("sheep:\n", fmt.Sprintf("registry: {url: %q}\ncontainerd: {address: %q}\ngpu: {mode: cdi, cdi_dirs: [/etc/cdi, /var/run/cdi, %q]}\nsheep:\n  dock: {type: docker, devices: [%q]}\n",
		registry.URL, daemon.Address, f.dir+"/cdi", f.device))
	f.start()
	f.submit("job-1", "multiply:v1", "x", "sheep_id", "dock")
	f.multiplied("job-1")
}

// describe writes a CDI spec of the stand-in.
func (f *farm) describe() {
	f.t.Helper()
	spec := fmt.Sprintf(`{"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu",
		"devices": [{"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0", "type": "c", "major": 195, "minor": 0}]}}],
		"containerEdits": {"mounts": [{"hostPath": %q, "containerPath": "/usr/lib/x86_64-linux-gnu/libcuda.so.1", "options": ["ro", "nosuid", "nodev", "bind"]}]}}`,
		f.libs+"/libcuda.so.1")
	write(f.t, f.dir+"/cdi/nvidia.json", spec)
}

// pythonFiles are those of this machine's Python that multiply.py needs, by their
// paths without the first slash: what it has loaded, and the libraries of that.
func (f *farm) pythonFiles() map[string][]byte {
	f.t.Helper()
	const list = `
import array, ctypes, encodings.ascii, json, os, random, sys
files = {sys.executable, os.__file__}
for m in list(sys.modules.values()):
    if getattr(m, "__file__", None):
        files.add(m.__file__)
print("\n".join(files))`
	out, err := exec.Command(f.python, "-S", "-c", list).Output()
	if err != nil {
		f.t.Fatalf("list Python's files: %v", err)
	}
	files := make(map[string][]byte)
	add := func(path string) {
		text, err := os.ReadFile(path)
		if err != nil {
			f.t.Fatal(err)
		}
		files[strings.TrimPrefix(path, "/")] = text
	}
	needed := regexp.MustCompile(`(?m)^\t(?:\S+ => )?(/\S+) \(`)
	for _, path := range strings.Fields(string(out)) {
		add(path)
		libraries, _ := exec.Command("ldd", path).Output() // fails for files that are no programs
		for _, m := range needed.FindAllSubmatch(libraries, -1) {
			add(string(m[1]))
		}
	}
	return files
}
