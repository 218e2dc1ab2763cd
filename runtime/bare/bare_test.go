package bare_test

import (
	"cmp"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"go.uber.org/goleak"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/runner"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/runtime/bare"
	"github.com/iterait/shepherd/runtime/runtimetest"
)

// The test binary is also the scripted runner and the daemon that is killed.
const (
	roleVar  = "SHEPHERD_TEST_ROLE"
	worldVar = "SHEPHERD_TEST_WORLD"
)

// shimPath is the shepherd-shim that TestMain built.
var shimPath string

func TestMain(m *testing.M) {
	switch os.Getenv(roleVar) {
	case "runner":
		runtimetest.RunnerMain(os.Args[1:])
	case "echo":
		echoMain(os.Args[1:])
	case "sdk":
		runner.Main(sdkRunner)
	case "daemon":
		shimPath = os.Getenv("SHEPHERD_TEST_SHIM")
		daemonMain(os.Args[1:])
	}
	dir, err := os.MkdirTemp("", "shepherd-bare-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	shimPath = filepath.Join(dir, "shepherd-shim")
	if err := testenv.Build(shimPath, "cmd/shepherd-shim"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
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

// world is where sheep of one test live.
type world struct {
	dir  string
	port string // YAML of the port; empty means none
	more string // more of a sheep's configuration
	role string // of the runner; empty means the scripted one
}

func newWorld(t testing.TB) *world {
	// Longer than a unix socket's path may be.
	w := &world{dir: filepath.Join(t.TempDir(), strings.Repeat("deep/", 30))}
	for _, dir := range []string{w.models(), w.dataRoot()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, pid := range w.processes(t) {
			t.Errorf("process %d (%s) is left", pid, commandOf(pid))
			if p, err := os.FindProcess(pid); err == nil {
				_ = p.Kill()
			}
		}
		if t.Failed() {
			for _, name := range []string{"shim.log", "runner.log"} {
				log, _ := os.ReadFile(filepath.Join(w.stateDir(), runtimetest.Sheep, "log", name))
				t.Logf("%s:\n%.8000s", name, log)
			}
		}
	})
	return w
}

func (w *world) models() string   { return filepath.Join(w.dir, "models") }
func (w *world) stateDir() string { return filepath.Join(w.dir, "state") }
func (w *world) dataRoot() string { return filepath.Join(w.dir, "data") }

const grace = 500 * time.Millisecond

func (w *world) driver(log *slog.Logger) *bare.Driver {
	return bare.New(bare.Config{DataRoot: w.dataRoot(), StateDir: w.stateDir(), Shim: shimPath, Grace: grace, Log: log})
}

// config is the sheep's configuration: the runner is this program.
func (w *world) config() string {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	text := fmt.Sprintf("type: bare\nworking_directory: %s\ncommand: [%s]\nenv: {%s: %s, %s: %q}\n",
		w.models(), self, roleVar, cmp.Or(w.role, "runner"), worldVar, w.dir)
	if w.port != "" {
		text += "port: " + w.port + "\n"
	}
	return text + w.more
}

func decode(text string) func(any) error {
	return func(into any) error {
		return yaml.NewDecoder(strings.NewReader(text), yaml.Strict()).Decode(into)
	}
}

func (w *world) addModel(t testing.TB, m job.Model, script string) {
	dir := filepath.Join(w.models(), m.Name, m.Version)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.yaml"), []byte(script), 0o644); err != nil {
		t.Fatal(err)
	}
}

// processes are the runners of the world and what they started, and its shims.
func (w *world) processes(t testing.TB) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		environ, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if strings.Contains("\x00"+string(environ), "\x00"+worldVar+"="+w.dir+"\x00") || strings.Contains(commandOf(pid), w.stateDir()) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func commandOf(pid int) string {
	data, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	return strings.ReplaceAll(string(data), "\x00", " ")
}

func (w *world) lives() []string {
	found, _ := filepath.Glob(filepath.Join(w.stateDir(), runtimetest.Sheep, "lives", "*"))
	return found
}

func (w *world) leftovers(t testing.TB) []string {
	left := w.lives()
	for _, pid := range w.processes(t) {
		left = append(left, fmt.Sprintf("process %d (%s)", pid, commandOf(pid)))
	}
	return left
}

func TestConformance(t *testing.T) {
	runtimetest.Run(t, func(t *testing.T) runtimetest.Harness {
		w := newWorld(t)
		return runtimetest.Harness{
			NewDriver: func(t *testing.T) runtime.Driver {
				return w.driver(slog.New(slog.NewTextHandler(t.Output(), nil)))
			},
			Decode:    decode(w.config()),
			AddModel:  func(t *testing.T, m job.Model, script string) { w.addModel(t, m, script) },
			DataRoot:  filepath.Join(w.dataRoot(), runtimetest.Sheep),
			Grace:     grace,
			Leftovers: func(t *testing.T) []string { return w.leftovers(t) },
		}
	})
}
