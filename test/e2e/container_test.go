package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/iterait/shepherd/internal/testenv"
)

// containerWorld is a world with a container sheep, dock: a containerd and a registry of
// its own, with the image echo in the versions v1 and v2, whose runner obeys
// scripts.
type containerWorld struct {
	*world
	containerd *testenv.Containerd
	registry   *testenv.Registry
	gate       string // a file that jobs can wait for
}

func newContainerWorld(t *testing.T) *containerWorld {
	t.Helper()
	w := newWorld(t)
	p := &containerWorld{world: w, containerd: testenv.StartContainerd(t), registry: testenv.StartRegistry(t, testenv.RegistryConfig{}), gate: w.dir + "/gates/open"}
	// Registered before the world's own: the daemon is to be gone.
	w.t.Cleanup(func() {
		w.end()
		w.daemon = nil
		for _, left := range p.containerd.Leftovers(t, "shepherd") {
			t.Errorf("left behind: %s", left)
		}
	})
	runner := filepath.Join(t.TempDir(), "runner")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", runner, "../../runtime/container/testdata/runner")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the runner: %v: %s", err, out)
	}
	program, err := os.ReadFile(runner)
	if err != nil {
		t.Fatal(err)
	}
	for _, version := range []string{"v1", "v2"} {
		p.registry.Push(t, "echo:"+version, testenv.Image(t,
			v1.Config{Entrypoint: []string{"/runner", "-p", "9999", "/config.yaml"}},
			testenv.Layer(t, map[string][]byte{"runner": program}),
			testenv.Layer(t, map[string][]byte{"config.yaml": []byte("print " + version + "\n")})))
	}
	if err := os.Mkdir(filepath.Dir(p.gate), 0o755); err != nil {
		t.Fatal(err)
	}
	p.edit("sheep:\n", fmt.Sprintf(`registry: {url: %q}
containerd: {address: %q, allowed_mounts: [%q]}
sheep:
  dock: {type: docker, port: 9001, mounts: ["%[4]s:%[4]s"]}
`, p.registry.URL, p.containerd.Address, w.dir, filepath.Dir(p.gate)))
	return p
}

// did reads the report of a job's runner: its identity and the number of its jobs.
func (p *containerWorld) did(id string) (who, jobs string) {
	p.t.Helper()
	if s := p.await(id); s.Status != "done" {
		p.t.Fatalf("job %s is %s: %+v; log:\n%s", id, s.Status, s.Error, p.log)
	}
	who, jobs, _ = strings.Cut(p.result(id), " ")
	return who, jobs
}

func (p *containerWorld) tasks() string {
	return p.containerd.Ctr(p.t, "shepherd", "tasks", "ls", "-q")
}

func TestJobsInContainers(t *testing.T) {
	p := newContainerWorld(t)
	p.start()
	p.submit("job-1", "echo:v1", "print hello", "sheep_id", "dock")
	first, _ := p.did("job-1")
	if got := p.containerd.Ctr(t, "shepherd", "containers", "ls"); !strings.Contains(got, "dock-") || !strings.Contains(got, "/echo:v1") {
		t.Errorf("ctr containers ls says %s", got)
	}
	if got := p.tasks(); !strings.HasPrefix(got, "dock-") || strings.Count(got, "\n") != 1 {
		t.Errorf("ctr tasks ls says %q, want one of dock", got)
	}
	p.submit("job-2", "echo:v1", "print again", "sheep_id", "dock")
	if who, jobs := p.did("job-2"); who != first || jobs != "2" {
		t.Errorf("job-2 was the %s. of runner %s, want the 2. of %s", jobs, who, first)
	}
	p.submit("job-3", "echo:v2", "print other", "sheep_id", "dock")
	if who, jobs := p.did("job-3"); who == first || jobs != "1" {
		t.Errorf("job-3 was the %s. of runner %s, want the first of another", jobs, who)
	}
	p.submit("job-4", "no-such-model:v9", "x", "sheep_id", "dock")
	p.expectFailed("job-4", "Failed to start sheep for this job (Cannot load model `no-such-model:v9`", "does not have it")
	p.submit("job-5", "echo:v2", "print so be it\nexit 3", "sheep_id", "dock")
	p.expectFailed("job-5", "Sheep container died without notice", "exit code 3", "so be it")
}

// While containerd does not answer, jobs of its sheep wait; other sheep's jobs run, and the
// daemon can be stopped.
func TestStopWhileContainerdHangs(t *testing.T) {
	p := newContainerWorld(t)
	p.edit("api:\n", "drain_timeout: 2s\napi:\n")
	p.start()
	p.submit("job-1", "echo:v1", "print one", "sheep_id", "dock")
	p.did("job-1")
	p.containerd.Freeze(t)
	p.submit("job-2", "echo:v2", "print two", "sheep_id", "dock") // takes another container
	p.eventually("job-2 is prepared", func() bool { return p.getStatus("job-2", "status").Status == "processing" })
	p.submit("job-3", "echo:v1", "three", "sheep_id", "bare_sheep")
	p.expectDone("job-3", "three")
	if code := p.stop(); code != 0 {
		t.Errorf("the daemon ends with %d", code)
	}
	p.containerd.Thaw(t)
	p.start()
	p.did("job-2")
}

// The daemon, containerd, or both, are killed while a job runs in a container:
// the runner goes on, and the job is not run a second time.
func TestKilledWhileAContainerRuns(t *testing.T) {
	for _, c := range []struct {
		name               string
		daemon, containerd bool
	}{{"the daemon", true, false}, {"containerd", false, true}, {"both", true, true}} {
		t.Run(c.name, func(t *testing.T) {
			p := newContainerWorld(t)
			p.start()
			p.submit("job-0", "echo:v1", "print up", "sheep_id", "dock")
			who, _ := p.did("job-0")
			p.submit("job-1", "echo:v1", "print has it\nawait "+p.gate, "sheep_id", "dock")
			p.submit("job-2", "echo:v1", "print next", "sheep_id", "dock")
			p.eventually("the runner has the job", func() bool {
				logs, _ := filepath.Glob(filepath.Join(p.dir, "state", "containers", "dock", "log", "runner.log"))
				return len(logs) == 1 && strings.Contains(read(t, logs[0]), "has it")
			})
			if c.daemon {
				p.kill()
			}
			if c.containerd {
				p.containerd.Kill(t)
				p.containerd.Start(t)
			}
			if c.daemon {
				p.start()
			}
			write(t, p.gate, "")
			if got, jobs := p.did("job-1"); got != who || jobs != "2" {
				t.Errorf("job-1 was the %s. of runner %s, want the 2. of %s", jobs, got, who)
			}
			if got, jobs := p.did("job-2"); got != who || jobs != "3" {
				t.Errorf("job-2 was the %s. of runner %s, want the 3. of %s", jobs, got, who)
			}
		})
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// shepherdd models fetches ahead, lists and removes, beside a daemon or without.
func TestModelsCommand(t *testing.T) {
	p := newContainerWorld(t)
	models := func(args ...string) (string, error) {
		out, err := exec.Command(programs+"/shepherdd", append([]string{"models", "-c", p.config}, args...)...).CombinedOutput()
		return string(out), err
	}
	for range 2 {
		if out, err := models("pull", "echo:v1"); err != nil || !strings.Contains(out, "echo:v1 is here") {
			t.Errorf("pull: %v\n%s", err, out)
		}
	}
	if out, err := models("pull", "no-such:v9"); err == nil || !strings.Contains(out, "does not have it") || strings.Count(strings.TrimSpace(out), "\n") > 1 {
		t.Errorf("pull of what is not there: %v\n%s", err, out)
	}
	listed := regexp.MustCompile(`(?m)^echo +v1 .* sha256:`)
	if out, err := models("ls"); err != nil || !listed.MatchString(out) {
		t.Errorf("ls: %v\n%s", err, out)
	}
	p.start()
	p.registry.Requests()
	p.submit("job-1", "echo:v1", "print hello", "sheep_id", "dock")
	p.did("job-1")
	for _, r := range p.registry.Requests() {
		if strings.Contains(r.Path, "/blobs/") {
			t.Errorf("the daemon fetched %s again", r.Path)
		}
	}
	if out, err := models("rm", "echo:v1"); err == nil || !strings.Contains(out, "is loaded by sheep `dock`") {
		t.Errorf("rm of a model in use: %v\n%s", err, out)
	}
	if out, err := models("pull", "echo:v2"); err != nil || !strings.Contains(out, "echo:v2 is here") {
		t.Errorf("pull by the daemon: %v\n%s", err, out)
	}
	if out, err := models("ls"); err != nil || !listed.MatchString(out) || !strings.Contains(out, "v2") {
		t.Errorf("ls by the daemon: %v\n%s", err, out)
	}
	if out, err := models("rm", "echo:v2"); err != nil || !strings.Contains(out, "echo:v2 is removed") {
		t.Errorf("rm by the daemon: %v\n%s", err, out)
	}
	p.stop()
	if out, err := models("rm", "echo:v1"); err != nil || !strings.Contains(out, "echo:v1 is removed") {
		t.Errorf("rm: %v\n%s", err, out)
	}
	if out, err := models("ls"); err != nil || listed.MatchString(out) {
		t.Errorf("ls: %v\n%s", err, out)
	}
	if out, err := models("rm", "echo:v1"); err == nil || !strings.Contains(out, "it is not on this machine") {
		t.Errorf("rm of what is not there: %v\n%s", err, out)
	}
}
