package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/iterait/shepherd/api"
	"github.com/iterait/shepherd/gpu"
)

// gpuWorld is a world with simulated GPUs, which a stand-in for shepherd-gpu reports.
type gpuWorld struct {
	*world
	gpus string // the stand-in's folder
	inv  gpu.Inventory
}

// newGPUWorld makes a machine with the given number of GPUs of 80 GiB and the named sheep,
// each with these further settings.
func newGPUWorld(t *testing.T, gpus int, sheep map[string]string) *gpuWorld {
	t.Helper()
	w := &gpuWorld{world: newWorld(t, "placeholder"), inv: gpu.Inventory{Driver: "550.54.15", CUDA: "12.4"}}
	w.gpus = filepath.Join(w.dir, "gpus")
	for i := range gpus {
		w.inv.GPUs = append(w.inv.GPUs, gpu.GPU{Index: i, Minor: i, UUID: fmt.Sprintf("GPU-%08d", i), Name: "Made-up A100", Memory: 80 << 30})
	}
	w.tell()
	text, err := os.ReadFile(w.config)
	if err != nil {
		t.Fatal(err)
	}
	general, _, _ := strings.Cut(string(text), "sheep:\n")
	general += "gpu:\n  interval: 100ms\n  retest: 1s\n  turn: 0s\nsheep:\n"
	for name, settings := range sheep {
		general += sheepYAML(t, name, w.dir) + settings
	}
	write(t, w.config, general)

	// A program is looked for beside the daemon first.
	w.bin = filepath.Join(w.dir, "bin")
	if err := os.Mkdir(w.bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"shepherdd", "shepherd-shim"} {
		if out, err := exec.Command("cp", "--reflink=auto", filepath.Join(programs, name), w.bin).CombinedOutput(); err != nil {
			t.Fatalf("copy %s: %v\n%s", name, err, out)
		}
	}
	build := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(w.bin, "shepherd-gpu"), "./standin")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the stand-in: %v\n%s", err, out)
	}
	w.env = append(w.env, "STANDIN_GPUS="+w.gpus)
	return w
}

// tell makes the stand-in report the present state of the world's GPUs.
func (w *gpuWorld) tell() {
	w.t.Helper()
	text, err := json.Marshal(w.inv)
	if err != nil {
		w.t.Fatal(err)
	}
	write(w.t, filepath.Join(w.gpus, "gpus.json.new"), string(text))
	if err := os.Rename(filepath.Join(w.gpus, "gpus.json.new"), filepath.Join(w.gpus, "gpus.json")); err != nil {
		w.t.Fatal(err)
	}
}

// xid makes a GPU report an Xid.
func (w *gpuWorld) xid(index, code int) {
	w.t.Helper()
	f, err := os.OpenFile(filepath.Join(w.gpus, "xids"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, "%s %d\n", w.inv.GPUs[index].UUID, code); err != nil {
		w.t.Fatal(err)
	}
}

// seen returns the answer of GET /gpus.
func (w *gpuWorld) seen() api.GPUList {
	w.t.Helper()
	var seen api.GPUList
	code, text := w.request("GET", "/gpus", "")
	if err := json.Unmarshal([]byte(text), &seen); code != 200 || err != nil {
		w.t.Fatalf("GET /gpus: %d %v %s", code, err, text)
	}
	return seen
}

// user returns the sheep's share of a GPU as shown by the API.
func (w *gpuWorld) user(index int, sheep string) api.DeviceUser {
	w.t.Helper()
	for _, u := range w.seen().Gpus[index].Sheep {
		if u.Name == sheep {
			return u
		}
	}
	w.t.Fatalf("sheep %s has no share of GPU %d", sheep, index)
	return api.DeviceUser{}
}

// TestSharedGPU: two sheep take turns on one GPU.
func TestSharedGPU(t *testing.T) {
	shared := "    devices: [/dev/nvidia0]\n    shared: true\n    gpu_memory: 60GiB\n"
	w := newGPUWorld(t, 1, map[string]string{"a": shared, "b": shared})
	foreign := os.Getpid()
	w.inv.GPUs[0].Processes = []gpu.Process{{PID: foreign, Used: 1 << 30}}
	busy, watts, degrees, errors := 93, 312.5, 61, uint64(0)
	w.inv.GPUs[0].Utilization, w.inv.GPUs[0].Power, w.inv.GPUs[0].Temperature, w.inv.GPUs[0].Uncorrectable = &busy, &watts, &degrees, &errors
	w.tell()
	w.start()

	// A job is accounted for, and shown.
	go_ := filepath.Join(w.dir, "go")
	w.submit("job-a", "echo:v1", "wait "+go_, "sheep_id", "a")
	w.eventually("the job's memory is seen", func() bool { return w.user(0, "a").Used == 10<<30 })
	u := w.user(0, "a")
	if u.Job == nil || *u.Job != "job-a" || u.Model.Name == nil || *u.Model.Name != "echo" || u.Budget == nil || *u.Budget != 60<<30 || !u.Shared {
		t.Errorf("the sheep is shown as %+v", u)
	}
	w.eventually("the foreign process is seen", func() bool { return len(w.seen().Gpus[0].Foreign) == 1 })
	if p := w.seen().Gpus[0].Foreign[0]; p.Pid != foreign || p.Used != 1<<30 || p.Name == "?" {
		t.Errorf("the foreign process is shown as %+v", p)
	}
	w.logged("A process that is not shepherd's uses a GPU")
	if out, err := exec.Command(w.bin+"/shepherdd", "gpus", "-c", w.config).CombinedOutput(); err != nil ||
		!regexp.MustCompile(`(?s)0 Made-up A100 +11\.0 GiB / 80\.0 GiB.*sheep a: echo:v1, job job-a +10\.0 GiB / 60\.0 GiB.*not shepherd's: process \d+`).Match(out) {
		t.Errorf("shepherdd gpus: %v\n%s", err, out)
	}

	// The metrics of the alert rules and the dashboard exist.
	figures := w.metrics()
	for _, file := range []string{"../../contrib/prometheus/shepherd.rules.yml", "../../contrib/grafana/shepherd.json"} {
		for _, name := range regexp.MustCompile(`\bshepherd_gpu_[a-z_]+[a-z]\b`).FindAllString(expressions(t, file), -1) {
			if !strings.Contains(figures, "\n"+name+"{") {
				t.Errorf("%s asks for %s, which a daemon does not show", file, name)
			}
		}
	}
	for _, want := range []string{`shepherd_gpu_healthy{gpu="0",uuid="GPU-00000000"} 1`, `shepherd_gpu_sheep_memory_used_bytes{gpu="0",sheep="a",uuid="GPU-00000000"} 1.073741824e+10`} {
		if !strings.Contains(figures, want) {
			t.Errorf("the metrics lack %s:\n%s", want, figures)
		}
	}

	// The other waits for it: its job is queued, and taken when a is idle.
	w.submit("job-b", "echo:v2", "devices", "sheep_id", "b")
	w.eventually("b says that it waits", func() bool {
		_, text := w.request("GET", "/sheep", "")
		return strings.Contains(text, "waiting for GPU 0 (Made-up A100, GPU-00000000), in use by sheep a")
	})
	if s := w.status("job-b"); s.Status != "queued" {
		t.Errorf("the job that waits is %s", s.Status)
	}
	write(t, go_, "")
	w.expectDone("job-a", "wait "+go_)
	w.expectDone("job-b", "0")
	if left := w.user(0, "a"); left.Model.Name != nil {
		t.Errorf("a still has its model: %+v", left)
	}
	w.logged("Unloading the model of an idle sheep.*echo:v1")
	w.submit("job-a2", "echo:v1", "back", "sheep_id", "a")
	w.expectDone("job-a2", "back")
	if starts := w.noted("start"); len(starts) != 3 {
		t.Errorf("%d runners were started, want 3: %q", len(starts), starts)
	}

	var told struct {
		GPU *struct {
			Seconds float64 `json:"seconds"`
			Peak    *int64  `json:"peak_memory"`
		} `json:"gpu"`
	}
	_, text := w.request("GET", "/jobs/job-a", "")
	if err := json.Unmarshal([]byte(text), &told); err != nil || told.GPU == nil || told.GPU.Seconds <= 0 || told.GPU.Peak == nil || *told.GPU.Peak != 10<<30 {
		t.Errorf("the job's use of the GPU is not told: %v %s", err, text)
	}
}

// TestXidFailsTheJob: an Xid of the program is in its job's failure, and the next job begins
// with a new runner.
func TestXidFailsTheJob(t *testing.T) {
	w := newGPUWorld(t, 1, map[string]string{"a": "    devices: [/dev/nvidia0]\n"})
	w.start()
	go_ := filepath.Join(w.dir, "go")
	w.submit("job-1", "echo:v1", "broken "+go_)
	w.eventually("the job's memory is seen", func() bool { return w.user(0, "a").Used > 0 })
	w.xid(0, 31)
	w.logged("A GPU reported an Xid")
	write(t, go_, "")
	w.expectFailed("job-1", "RuntimeError: CUDA error", "GPU 0 (Made-up A100, GPU-00000000): it reported Xid 31, GPU memory page fault")
	w.submit("job-2", "echo:v1", "count")
	if s := w.await("job-2"); s.Status != "done" {
		t.Fatalf("the next job is %s: %+v", s.Status, s.Error)
	}
	if got := w.result("job-2"); !strings.HasSuffix(got, " 1") {
		t.Errorf("the next job ran in the same runner: %q", got)
	}
	if h := w.seen().Gpus[0].Health; h != api.Ok {
		t.Errorf("the GPU is %s", h)
	}
}

// TestLostGPU: a job continues on another sheep when its GPU is lost, and the GPU is used
// again when it is back.
func TestLostGPU(t *testing.T) {
	w := newGPUWorld(t, 2, map[string]string{"a": "    devices: [/dev/nvidia0]\n", "b": "    devices: [\"nvidia.com/gpu=1\"]\n", "plain": ""})
	w.start()
	go_ := filepath.Join(w.dir, "go")
	w.submit("job-1", "echo:v1", "wait "+go_, "sheep_id", "a")
	w.eventually("the job runs", func() bool { return w.user(0, "a").Used > 0 })
	w.inv.GPUs[0].Lost = true
	w.tell()
	w.expectFailed("job-1", "A device was lost under this job", "GPU 0 (Made-up A100, GPU-00000000) is out: it does not answer any more")
	w.submit("job-2", "echo:v1", "later", "sheep_id", "a")
	w.submit("job-3", "echo:v1", "now", "sheep_id", "plain")
	w.expectDone("job-3", "now")
	if s := w.status("job-2"); s.Status != "queued" {
		t.Errorf("the job for the sheep without its GPU is %s", s.Status)
	}
	out, err := exec.Command(w.bin+"/shepherdd", "gpus", "-c", w.config).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "GPU 0 (GPU-00000000) is out: it does not answer any more (it fell off the bus); tested again at ") {
		t.Errorf("shepherdd gpus: %v\n%s", err, out)
	}
	if _, text := w.request("GET", "/sheep", ""); !strings.Contains(text, "is out: it does not answer any more") {
		t.Errorf("the sheep does not say why it rests: %s", text)
	}
	w.inv.GPUs[0].Lost = false
	w.tell()
	w.expectDone("job-2", "later")

	// A job for any sheep runs on another one.
	w.submit("job-4", "echo:v1", "wait "+go_, "sheep_id", "plain") // which is at work until go_ is there
	w.submit("job-5", "echo:v2", "wait "+go_)
	on := -1
	w.eventually("a sheep with a GPU has it", func() bool {
		for i, g := range w.seen().Gpus {
			if u := g.Sheep[0]; u.Job != nil && *u.Job == "job-5" && u.Used > 0 {
				on = i
			}
		}
		return on >= 0
	})
	w.xid(on, 79)
	w.logged("cause=device")
	w.eventually("the other has it", func() bool { return w.user(1-on, map[int]string{0: "a", 1: "b"}[1-on]).Job != nil })
	write(t, go_, "")
	w.expectDone("job-5", "wait "+go_)
	w.expectDone("job-4", "wait "+go_)
}

// TestBrokenDriver: jobs run although the driver crashes every process that queries it.
func TestBrokenDriver(t *testing.T) {
	w := newGPUWorld(t, 1, map[string]string{"a": "    devices: [/dev/nvidia0]\n", "plain": ""})
	write(t, filepath.Join(w.gpus, "mode"), "crash\n")
	w.start()
	w.submit("job-1", "echo:v1", "devices", "sheep_id", "a")
	w.expectDone("job-1", "0")
	w.submit("job-2", "echo:v1", "plain", "sheep_id", "plain")
	w.expectDone("job-2", "plain")
	seen := w.seen()
	if seen.Trouble == nil || !strings.Contains(*seen.Trouble, "shepherd-gpu") || !strings.Contains(*seen.Trouble, "crashed") {
		t.Errorf("shown is %+v", seen)
	}
	if len(seen.Others) != 1 || seen.Others[0].Name != "/dev/nvidia0" || seen.Others[0].Sheep[0].Name != "a" {
		t.Errorf("the sheep's device is shown as %+v", seen.Others)
	}
}
