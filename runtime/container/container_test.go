package container_test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"go.uber.org/goleak"

	"github.com/iterait/shepherd/image"
	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/runtime/container"
	"github.com/iterait/shepherd/runtime/runtimetest"
)

// What TestMain built: shepherd-shim, and the scripted runner for images.
// shepherd-runner is on PATH.
var shimPath, runnerPath string

const roleVar = "SHEPHERD_TEST_ROLE"

func TestMain(m *testing.M) {
	if os.Getenv(roleVar) == "daemon" {
		daemonMain(os.Args[1:])
	}
	dir, err := os.MkdirTemp("", "shepherd-container-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	shimPath, runnerPath = filepath.Join(dir, "shepherd-shim"), filepath.Join(dir, "runner")
	os.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	for path, pkg := range map[string]string{
		shimPath: "cmd/shepherd-shim", runnerPath: "runtime/container/testdata/runner", filepath.Join(dir, "shepherd-runner"): "cmd/shepherd-runner",
	} {
		if err := testenv.Build(path, pkg); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	code := m.Run()
	os.RemoveAll(dir)
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

const namespace = "shepherd"

// grace is how long runners have between TERM and KILL.
const grace = 500 * time.Millisecond

// world is where container sheep of one test live.
type world struct {
	dir      string
	daemon   *testenv.Containerd
	registry *testenv.Registry
	more     string   // more of a sheep's configuration
	mounts   []string // what sheep may mount
	gpus     container.GPUs
	node     string // of the daemon
	base     v1.Layer
	// contracts and budget are the driver's.
	contracts []container.ModelContract
	budget    int64
}

func newWorld(t testing.TB, daemon *testenv.Containerd) *world {
	w := &world{dir: t.TempDir(), node: "box", daemon: daemon, registry: testenv.StartRegistry(t, testenv.RegistryConfig{})}
	runner, err := os.ReadFile(runnerPath)
	if err != nil {
		t.Fatal(err)
	}
	w.base = testenv.Layer(t, map[string][]byte{"runner": runner})
	t.Cleanup(func() {
		if t.Failed() {
			for _, name := range []string{"shim.log", "runner.log"} {
				log, _ := os.ReadFile(filepath.Join(w.stateDir(), runtimetest.Sheep, "log", name))
				t.Logf("%s:\n%.8000s", name, log)
			}
		}
	})
	return w
}

func (w *world) stateDir() string { return filepath.Join(w.dir, "state") }
func (w *world) dataRoot() string { return filepath.Join(w.dir, "data") }

// cniDir is an empty folder, to begin with.
func (w *world) cniDir() string {
	dir := filepath.Join(w.dir, "cni")
	_ = os.MkdirAll(dir, 0o755)
	return dir
}

func (w *world) newDriver(log *slog.Logger) *container.Driver {
	return container.New(container.Config{
		Address: w.daemon.Address, Namespace: namespace, Registry: image.Registry{URL: w.registry.URL},
		Contracts: w.contracts, ImageBudget: w.budget, CNIConfDir: w.cniDir(), GPUs: w.gpus, AllowedMounts: w.mounts,
		Node: w.node, DataRoot: w.dataRoot(), StateDir: w.stateDir(), Shim: shimPath, Grace: grace, Log: log,
	})
}

func (w *world) driver(t testing.TB) *container.Driver {
	d := w.newDriver(slog.New(slog.NewTextHandler(t.Output(), nil)))
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func (w *world) config() string { return "type: docker\n" + w.more }

func decode(text string) func(any) error {
	return func(into any) error {
		return yaml.NewDecoder(strings.NewReader(text), yaml.Strict()).Decode(into)
	}
}

// runner is the configuration of the images.
func (w *world) runner() v1.Config {
	return v1.Config{Entrypoint: []string{"/runner", "-p", "9999"}, Cmd: []string{"/config.yaml"}}
}

// addModel pushes an image whose runner obeys the script.
func (w *world) addModel(t testing.TB, m job.Model, script string) {
	version := m.Version
	if version == "" {
		version = "latest"
	}
	w.registry.Push(t, m.Name+":"+version, testenv.Image(t, w.runner(), w.base, testenv.Layer(t, map[string][]byte{"config.yaml": []byte(script)})))
}

// processes are the shims of the world, ours and containerd's.
func (w *world) processes() []string {
	var found []string
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range all {
		data, _ := os.ReadFile(path)
		if text := strings.ReplaceAll(string(data), "\x00", " "); strings.HasPrefix(text, shimPath+" "+w.dir) ||
			strings.Contains(text, "containerd-shim") && strings.Contains(text, "-namespace "+namespace+" ") && strings.Contains(text, w.daemon.Address) {
			found = append(found, "process "+filepath.Base(filepath.Dir(path))+" "+text)
		}
	}
	return found
}

func (w *world) leftovers(t testing.TB) []string {
	left, _ := filepath.Glob(filepath.Join(w.stateDir(), runtimetest.Sheep, "lives", "*"))
	left = append(left, w.processes()...)
	log, _ := os.ReadFile(filepath.Join(w.stateDir(), runtimetest.Sheep, "log", "shim.log"))
	lives := regexp.MustCompile(`life=([0-9a-f]+)`).FindAllStringSubmatch(string(log), -1)
	slices.SortFunc(lives, slices.Compare)
	for _, life := range slices.CompactFunc(lives, slices.Equal) {
		for _, pattern := range []string{"/sys/fs/cgroup/shepherd.slice/shepherd-", "/sys/fs/cgroup/*/shepherd.slice/shepherd-"} {
			for _, suffix := range []string{"", ".scope"} {
				groups, _ := filepath.Glob(pattern + life[1] + suffix)
				left = append(left, groups...)
			}
		}
	}
	return append(left, w.daemon.Leftovers(t, namespace)...)
}

func conformance(t *testing.T, daemon *testenv.Containerd) {
	runtimetest.Run(t, func(t *testing.T) runtimetest.Harness {
		w := newWorld(t, daemon)
		return runtimetest.Harness{
			NewDriver: func(t *testing.T) runtime.Driver { return w.driver(t) },
			Decode:    decode(w.config()),
			AddModel:  func(t *testing.T, m job.Model, script string) { w.addModel(t, m, script) },
			DataRoot:  filepath.Join(w.dataRoot(), runtimetest.Sheep),
			Init:      true,
			Grace:     grace,
			Leftovers: func(t *testing.T) []string { return w.leftovers(t) },
		}
	})
}

func TestConformance(t *testing.T) { conformance(t, testenv.StartContainerd(t)) }

func TestConformanceContainerd2(t *testing.T) { conformance(t, testenv.StartContainerd2(t)) }
