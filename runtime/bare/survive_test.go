package bare_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/runtime/runtimetest"
)

const hang = 60 * time.Second

var model = job.Model{Name: "digits", Version: "v1"}

// daemonMain is a daemon to be killed: a world's.
func daemonMain(args []string) {
	w := &world{dir: args[0]}
	s, err := w.driver(nil).NewSheep(runtimetest.Sheep, decode(os.Getenv("SHEPHERD_TEST_CONFIG")))
	if err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
	runtimetest.VictimMain(s, model)
}

func (w *world) spawn(t *testing.T) *runtimetest.Victim {
	t.Helper()
	return runtimetest.Spawn(t, []string{roleVar + "=daemon", "SHEPHERD_TEST_CONFIG=" + w.config(), "SHEPHERD_TEST_SHIM=" + shimPath}, w.dir)
}

func (w *world) sheepDir() string { return filepath.Join(w.dataRoot(), runtimetest.Sheep) }

func (w *world) sheep(t testing.TB) runtime.Sheep {
	t.Helper()
	s, err := w.driver(slog.New(slog.NewTextHandler(t.Output(), nil))).NewSheep(runtimetest.Sheep, decode(w.config()))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (w *world) inherit(t testing.TB) *runtimetest.Successor {
	t.Helper()
	return runtimetest.NewSuccessor(t, w.sheep(t), w.sheepDir(), model, func() []string { return w.leftovers(t) })
}

func TestDaemonKilledWithAJob(t *testing.T) {
	w := newWorld(t)
	w.addModel(t, model, "")
	gate := filepath.Join(t.TempDir(), "go")
	runtimetest.Prepare(t, w.sheepDir(), "a", "await "+gate)
	v := w.spawn(t)
	v.Ready()
	pid, _ := strconv.Atoi(v.Tell("run", "started"))
	v.Tell("send a", "sent")
	awaitOutcome(t, w.lives()[0], `:"a"`)
	v.Kill()

	v = w.spawn(t) // the second daemon is killed, too, and so is the third in the middle of it all
	if got := v.Expect("recovered"); got != "true" {
		t.Fatalf("recovered %s, want a running runner", got)
	}
	v.Expect("loaded")
	if got := v.Tell("run", "started"); got != strconv.Itoa(pid) {
		t.Errorf("attached to process %s, was %d", got, pid)
	}
	v.Kill()
	v = w.spawn(t)
	v.Kill()

	if err := os.WriteFile(gate, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	h := w.inherit(t)
	if h.Found == nil || !h.Found.Running || h.Found.Model != model {
		t.Fatalf("found %+v, want the runner", h.Found)
	}
	if got := h.Run(); got != pid {
		t.Errorf("attached to process %d, was %d", got, pid)
	}
	h.Recv("a")
	h.Do("b", "")
	who, _ := h.Output("a")
	if got, jobs := h.Output("b"); got != who || jobs != "2" {
		t.Errorf("the next job was the %s. of runner %s, want the 2. of %s", jobs, got, who)
	}
	h.StopAndClose()
}

func TestDaemonKilledBeforeAcknowledging(t *testing.T) {
	w := newWorld(t)
	w.addModel(t, model, "")
	runtimetest.Prepare(t, w.sheepDir(), "a", "")
	runtimetest.Prepare(t, w.sheepDir(), "b", "")
	v := w.spawn(t)
	v.Ready()
	v.Tell("run", "started")
	for _, id := range []string{"a", "b"} {
		v.Tell("send "+id, "sent")
		v.Tell("recv", "answer")
	}
	v.Kill()
	h := w.inherit(t)
	if h.Found == nil || len(h.Found.Answers) != 2 || h.Found.Job != "" {
		t.Fatalf("found %+v, want two answers", h.Found)
	}
	h.Run()
	h.Recv("a")
	h.Recv("b")
	h.StopAndClose()
}

func TestDaemonKilledAtAnyMomentOfTheStart(t *testing.T) {
	w := newWorld(t)
	w.addModel(t, model, "")
	for wait := time.Duration(0); wait < 60*time.Millisecond; wait += 4 * time.Millisecond {
		v := w.spawn(t)
		v.Ready()
		v.Say("run")
		time.Sleep(wait) // any moment
		v.Kill()
		h := w.inherit(t)
		h.Load()
		h.Run()
		h.Do(job.ID("after-"+wait.String()), "")
		h.StopAndClose()
	}
}

// orphaned is a world with a runner that has a job, whose daemon was killed.
func orphaned(t *testing.T, script string) (w *world, shim, runner int) {
	t.Helper()
	w = newWorld(t)
	w.addModel(t, model, "")
	runtimetest.Prepare(t, w.sheepDir(), "a", script)
	v := w.spawn(t)
	v.Ready()
	runner, _ = strconv.Atoi(v.Tell("run", "started"))
	v.Tell("send a", "sent")
	awaitOutcome(t, w.lives()[0], `:"a"`) // the shim has it
	v.Kill()
	return w, w.shimPID(t), runner
}

func (w *world) shimPID(t testing.TB) int {
	t.Helper()
	for _, pid := range w.processes(t) {
		if strings.HasPrefix(commandOf(pid), shimPath+" ") {
			return pid
		}
	}
	t.Fatal("there is no shim")
	return 0
}

func awaitGone(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(hang); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
	}
	t.Fatalf("process %d does not end", pid)
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	awaitGone(t, pid)
}

func TestShimKilledWithoutDaemon(t *testing.T) {
	marker := filepath.Join(t.TempDir(), "forked")
	w, shim, runner := orphaned(t, "fork\nfork\nprint x\nawait "+marker)
	awaitProcesses(t, w, 4) // shim, runner and two that nobody is the parent of
	kill(t, shim)
	awaitGone(t, runner) // it dies with its shim
	for range 2 {        // until it is forgotten, it can be told again
		h := w.inherit(t)
		if f := h.Found; f == nil || f.Running || f.Job != "a" || f.Exit == nil || !f.Exit.Lost {
			t.Fatalf("found %+v, want job a lost", h.Found)
		}
		if left := w.processes(t); len(left) > 0 {
			t.Errorf("Recover left processes %v", left)
		}
	}
	h := w.inherit(t)
	if err := h.Found.Forget(); err != nil {
		t.Error(err)
	}
	h.Close()
}

func awaitProcesses(t *testing.T, w *world, n int) {
	t.Helper()
	for deadline := time.Now().Add(hang); len(w.processes(t)) < n; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d processes, want %d", len(w.processes(t)), n)
		}
	}
}

func TestShimKilledWithDaemon(t *testing.T) {
	for _, signal := range []unix.Signal{unix.SIGKILL, unix.SIGTERM} {
		w := newWorld(t)
		w.addModel(t, model, "")
		runtimetest.Prepare(t, w.sheepDir(), "a", "fork\nsleep 1h")
		h := w.inherit(t)
		h.Load()
		h.Run()
		if err := h.Conn.Send(t.Context(), messenger.Input{JobID: "a"}); err != nil {
			t.Fatal(err)
		}
		awaitProcesses(t, w, 3)
		if err := unix.Kill(w.shimPID(t), signal); err != nil {
			t.Fatal(err)
		}
		var exit *runtime.Exit
		if err := h.Wait(); !errors.As(err, &exit) || !exit.Lost || exit.Stopped {
			t.Errorf("%v: Run: %v, want that it was lost", signal, err)
		}
		if left := w.processes(t); len(left) > 0 {
			t.Errorf("%v: left processes %v", signal, left)
		}
		h.Close()
	}
}

// freeze stops a process as a debugger would.
func freeze(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(hang); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		running := slices.ContainsFunc(tasks, func(path string) bool {
			stat, err := os.ReadFile(path)
			return err == nil && !strings.Contains(string(stat), ") T ")
		})
		if len(tasks) > 0 && !running {
			return
		}
	}
	t.Fatalf("process %d does not stop", pid)
}

// A shim that is frozen, as by a debugger, a freezer or a machine out of memory,
// keeps its runner and the job; the daemon goes on with both when it answers.
func TestFrozenShim(t *testing.T) {
	t.Run("when a daemon reconnects", func(t *testing.T) {
		t.Parallel()
		gate := filepath.Join(t.TempDir(), "go")
		w, shim, runner := orphaned(t, "await "+gate)
		freeze(t, shim)
		h := w.inherit(t)
		if f := h.Found; f == nil || !f.Running || f.Job != "a" || f.Model != model {
			t.Fatalf("found %+v, want job a under way", h.Found)
		}
		if got := h.Run(); got != runner {
			t.Errorf("attached to process %d, was %d", got, runner)
		}
		if err := os.WriteFile(gate, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := unix.Kill(shim, unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
		h.Recv("a")
		h.Do("b", "")
		h.StopAndClose()
	})
	t.Run("with an unacknowledged answer", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.addModel(t, model, "")
		runtimetest.Prepare(t, w.sheepDir(), "a", "")
		v := w.spawn(t)
		v.Ready()
		v.Tell("run", "started")
		v.Tell("send a", "sent")
		v.Tell("recv", "answer")
		awaitOutcome(t, w.lives()[0], `"answers"`)
		v.Kill()
		shim := w.shimPID(t)
		freeze(t, shim)
		h := w.inherit(t)
		if f := h.Found; f == nil || !f.Running || len(f.Answers) != 1 || f.Answers[0].JobID != "a" {
			t.Fatalf("found %+v, want the answer to a", h.Found)
		}
		h.Run()
		time.AfterFunc(200*time.Millisecond, func() { _ = unix.Kill(shim, unix.SIGCONT) })
		h.Recv("a") // and its acknowledgement waits for the shim
		h.Do("b", "")
		h.StopAndClose()
	})
	t.Run("while it stops its runner", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.addModel(t, model, "")
		h := w.inherit(t)
		h.Load()
		h.Run()
		freeze(t, w.shimPID(t))
		h.Stop()
		var exit *runtime.Exit
		if err := h.Wait(); !errors.As(err, &exit) || !exit.Lost {
			t.Errorf("Run: %v, want that it went down with its shim", err)
		}
		h.Close()
	})
}

func TestRunnerKilledWithoutDaemon(t *testing.T) {
	w, _, runner := orphaned(t, "sleep 1h")
	kill(t, runner)
	h := w.inherit(t)
	if h.Found != nil && h.Found.Running { // found in its last moment
		h.Run()
		h.Wait()
		h = w.inherit(t)
	}
	if f := h.Found; f == nil || f.Job != "a" || f.Exit == nil || f.Exit.Signal != "SIGKILL" || f.Exit.Lost {
		t.Fatalf("found %+v, want job a with SIGKILL", h.Found)
	}
	if err := h.Found.Forget(); err != nil {
		t.Error(err)
	}
	h.Close()
}

func TestAnswerOutlivesShimAndRunner(t *testing.T) {
	w, shim, _ := orphaned(t, "")
	life := w.lives()[0]
	awaitOutcome(t, life, `"answers":[{"job":"a"`)
	kill(t, shim)
	h := w.inherit(t)
	if f := h.Found; f == nil || f.Running || f.Job != "" || len(f.Answers) != 1 || f.Answers[0].JobID != "a" {
		t.Fatalf("found %+v, want the answer to a", h.Found)
	}
	if err := h.Found.Forget(); err != nil {
		t.Error(err)
	}
	h.Close()
}

func awaitOutcome(t *testing.T, life, text string) {
	t.Helper()
	for deadline := time.Now().Add(hang); ; time.Sleep(2 * time.Millisecond) {
		data, _ := os.ReadFile(filepath.Join(life, "outcome.json"))
		if strings.Contains(string(data), text) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the outcome stays %s", data)
		}
	}
}

func TestDamagedState(t *testing.T) {
	for _, c := range []struct{ file, content string }{
		{"state.json", ""}, {"state.json", `{"version":1,"boot":"`}, {"state.json", "\x00\x00\x00"},
		{"outcome.json", `{"version":1,"job":"a`}, {"spec.json", "{"}, {"outcome.json", `{"version":99}`},
	} {
		t.Run(c.file, func(t *testing.T) {
			w, shim, _ := orphaned(t, "fork\nsleep 1h")
			awaitProcesses(t, w, 3)
			kill(t, shim)
			if err := os.WriteFile(filepath.Join(w.lives()[0], c.file), []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
			h := w.inherit(t)
			if h.Found != nil {
				if h.Found.Running {
					t.Fatalf("found %+v, want it dead", h.Found)
				}
				if err := h.Found.Forget(); err != nil {
					t.Error(err)
				}
			}
			h.Close()
		})
	}
}

func TestMachineRestarted(t *testing.T) {
	w, shim, _ := orphaned(t, "")
	life := w.lives()[0]
	awaitOutcome(t, life, `"answers":[{"job":"a"`)
	kill(t, shim)
	for _, name := range []string{"state.json", "outcome.json"} {
		path := filepath.Join(life, name)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var content map[string]any
		if err := json.Unmarshal(data, &content); err != nil {
			t.Fatal(err)
		}
		content["boot"] = "another-boot"
		if data, err = json.Marshal(content); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h := w.inherit(t)
	f := h.Found
	if f == nil || f.Running || f.Job != "a" || len(f.Answers) > 0 || !f.Exit.Lost || !strings.Contains(f.Exit.Detail, "restarted") {
		t.Fatalf("found %+v, want job a lost with the machine", f)
	}
	if err := f.Forget(); err != nil {
		t.Error(err)
	}
	h.Close()
}

func TestIdleOrphanEndsItself(t *testing.T) {
	w := newWorld(t)
	w.more = "orphan_timeout: 200ms\n"
	w.addModel(t, model, "")
	runtimetest.Prepare(t, w.sheepDir(), "a", "sleep 1s")
	v := w.spawn(t)
	v.Ready()
	runner, _ := strconv.Atoi(v.Tell("run", "started"))
	shim := w.shimPID(t)
	v.Tell("send a", "sent")
	awaitOutcome(t, w.lives()[0], `"job":"a"`)
	v.Kill()
	awaitOutcome(t, w.lives()[0], `"answers":[{"job":"a"`) // a job under way keeps it
	h := w.inherit(t)
	if got := h.Run(); got != runner {
		t.Fatalf("attached to process %d, was %d", got, runner)
	}
	h.Recv("a")
	h.Sheep.Detach()
	if err := h.Wait(); !errors.Is(err, runtime.ErrDetached) {
		t.Fatalf("Run: %v", err)
	}
	awaitGone(t, shim)
	awaitGone(t, runner)
	h.Close()
	if h := w.inherit(t); h.Found != nil {
		t.Errorf("found %+v, want nothing", h.Found)
	}
}

func TestSecondDaemonTakesOver(t *testing.T) {
	w := newWorld(t)
	w.addModel(t, model, "")
	first := w.inherit(t)
	first.Load()
	pid := first.Run()
	second := w.inherit(t)
	if err := first.Wait(); !errors.Is(err, runtime.ErrSuperseded) || !errors.Is(err, runtime.ErrDetached) {
		t.Errorf("the first daemon's Run: %v, want %v", err, runtime.ErrSuperseded)
	}
	// It starts no runner beside the other's.
	var load *runtime.LoadError
	if err := first.Sheep.Run(t.Context(), runtime.Discard); !errors.As(err, &load) || !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "another daemon") {
		t.Errorf("the first daemon's next Run: %v", err)
	}
	if got := second.Run(); got != pid {
		t.Errorf("attached to process %d, was %d", got, pid)
	}
	second.Do("a", "")
	second.StopAndClose()
}

func TestProcessesAreSortedByWorld(t *testing.T) {
	a, b := newWorld(t), newWorld(t)
	a.addModel(t, model, "")
	h := a.inherit(t)
	h.Load()
	pid := h.Run()
	if !slices.Contains(a.processes(t), pid) || len(b.processes(t)) > 0 {
		t.Errorf("processes %v and %v; want %d in the first only", a.processes(t), b.processes(t), pid)
	}
	h.StopAndClose()
}

// A sheep that is not configured any more is stopped and removed; the others stay.
func TestSheepThatIsGone(t *testing.T) {
	w := newWorld(t)
	w.addModel(t, model, "")
	h := w.inherit(t)
	h.Load()
	pid := h.Run()
	h.Sheep.Detach()
	if err := h.Wait(); !errors.Is(err, runtime.ErrDetached) {
		t.Fatal(err)
	}
	driver := w.driver(slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err := driver.Begin(t.Context(), []string{runtimetest.Sheep, "polly"}); err != nil {
		t.Error(err)
	}
	if !slices.Contains(w.processes(t), pid) {
		t.Error("the runner of a configured sheep is gone")
	}
	if err := driver.Begin(t.Context(), []string{"polly"}); err != nil {
		t.Error(err)
	}
	awaitGone(t, pid)
	h.Close()
	if _, err := os.Stat(filepath.Join(w.stateDir(), runtimetest.Sheep)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its state is still there: %v", err)
	}
}
