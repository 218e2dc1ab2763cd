package bare_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/runtime/runtimetest"
)

const hang = 60 * time.Second

var model = job.Model{Name: "digits", Version: "v1"}

// daemonMain is a daemon to be killed: it recovers, runs the sheep and does what
// it is told on standard input, a command a line, each answered by a line.
func daemonMain(args []string) {
	w := &world{dir: args[0]}
	if err := runDaemon(w); err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func runDaemon(w *world) error {
	ctx := context.Background()
	s, err := w.driver(nil).NewSheep(runtimetest.Sheep, decode(os.Getenv("SHEPHERD_TEST_CONFIG")))
	if err != nil {
		return err
	}
	found, err := s.(runtime.Recoverer).Recover(ctx)
	if err != nil {
		return err
	}
	fmt.Println("recovered", found != nil && found.Running)
	if err := s.Load(ctx, model, runtime.Discard); err != nil {
		return err
	}
	started := make(chan int, 1)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		verb, rest, _ := strings.Cut(lines.Text(), " ")
		switch verb {
		case "run":
			go func() {
				err := s.Run(ctx, func(e runtime.Event) {
					if e.Stage == runtime.Starting {
						started <- e.PID
					}
				})
				fmt.Println("ended:", err)
			}()
			fmt.Println("started", <-started)
		case "send":
			if err := s.Conn().Send(ctx, messenger.Input{JobID: job.ID(rest)}); err != nil {
				return err
			}
			fmt.Println("sent", rest)
		case "recv":
			a, err := s.Conn().Recv(ctx)
			if err != nil {
				return err
			}
			fmt.Println("answer", a.JobID)
		}
	}
	return lines.Err()
}

// victim is a running daemonMain.
type victim struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func (w *world) spawn(t *testing.T) *victim {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", w.dir)
	cmd.Env = append(os.Environ(), roleVar+"=daemon", "SHEPHERD_TEST_CONFIG="+w.config(), "SHEPHERD_TEST_SHIM="+shimPath)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	v := &victim{t, cmd, in, bufio.NewReader(out)}
	t.Cleanup(v.kill)
	return v
}

// expect reads the daemon's next line, which begins with the word.
func (v *victim) expect(word string) string {
	v.t.Helper()
	line, err := v.out.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, word+" ") {
		v.t.Fatalf("the daemon says %q, %v; expected %q", line, err, word)
	}
	return strings.TrimSpace(line[len(word):])
}

func (v *victim) tell(command, answer string) string {
	v.t.Helper()
	if _, err := fmt.Fprintln(v.in, command); err != nil {
		v.t.Fatal(err)
	}
	return v.expect(answer)
}

// kill ends the daemon as nothing else does.
func (v *victim) kill() {
	_ = v.cmd.Process.Kill()
	_ = v.cmd.Wait()
}

func (w *world) prepare(t testing.TB, id job.ID, script string) {
	t.Helper()
	dir := filepath.Join(w.dataRoot(), runtimetest.Sheep, string(id))
	for _, d := range []string{job.InputDir, job.OutputDir} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, job.InputDir, job.DefaultInput), []byte(script), 0o644); err != nil {
		t.Fatal(err)
	}
}

// heir is this process as the daemon that comes after a killed one.
type heir struct {
	t     testing.TB
	w     *world
	sheep runtime.Sheep
	found *runtime.Recovered
	conn  messenger.Conn
	done  chan error
	stop  context.CancelFunc
}

func (w *world) sheep(t testing.TB) runtime.Sheep {
	t.Helper()
	s, err := w.driver(slog.New(slog.NewTextHandler(t.Output(), nil))).NewSheep(runtimetest.Sheep, decode(w.config()))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (w *world) inherit(t testing.TB) *heir {
	t.Helper()
	s := w.sheep(t)
	ctx, cancel := context.WithTimeout(t.Context(), hang)
	defer cancel()
	found, err := s.(runtime.Recoverer).Recover(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return &heir{t: t, w: w, sheep: s, found: found}
}

func (h *heir) load() {
	h.t.Helper()
	if err := h.sheep.Load(h.t.Context(), model, runtime.Discard); err != nil {
		h.t.Fatal(err)
	}
}

// run attaches to the runner or starts one, and returns its process id.
func (h *heir) run() int {
	h.t.Helper()
	ctx, cancel := context.WithCancel(h.t.Context())
	h.stop, h.done = cancel, make(chan error, 1)
	started := make(chan int, 1)
	go func() {
		h.done <- h.sheep.Run(ctx, func(e runtime.Event) {
			if e.Stage == runtime.Starting {
				started <- e.PID
			}
		})
	}()
	select {
	case pid := <-started:
		h.conn = h.sheep.Conn()
		return pid
	case err := <-h.done:
		h.t.Fatalf("Run: %v", err)
	case <-time.After(hang):
		h.t.Fatal("Run does not start")
	}
	return 0
}

func (h *heir) recv(want job.ID) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), hang)
	defer cancel()
	a, err := h.conn.Recv(ctx)
	if err != nil || a.JobID != want || a.Failure != nil {
		h.t.Fatalf("received %+v, %v, want that %s is done", a, err, want)
	}
	if err := h.conn.Ack(ctx, want); err != nil {
		h.t.Fatal(err)
	}
}

func (h *heir) do(id job.ID) {
	h.t.Helper()
	h.w.prepare(h.t, id, "")
	if err := h.conn.Send(h.t.Context(), messenger.Input{JobID: id}); err != nil {
		h.t.Fatal(err)
	}
	h.recv(id)
}

func (h *heir) wait() error {
	h.t.Helper()
	select {
	case err := <-h.done:
		return err
	case <-time.After(hang):
		h.t.Fatal("Run does not return")
		return nil
	}
}

// slaughter stops the runner; nothing may be left.
func (h *heir) slaughter() {
	h.t.Helper()
	h.stop()
	var exit *runtime.Exit
	if err := h.wait(); !errors.As(err, &exit) || !exit.Stopped {
		h.t.Errorf("Run: %v, want that it was stopped", err)
	}
	h.close()
}

func (h *heir) close() {
	h.t.Helper()
	if err := h.sheep.Close(h.t.Context()); err != nil {
		h.t.Error(err)
	}
	for _, left := range h.w.leftovers(h.t) {
		h.t.Errorf("left behind: %s", left)
	}
}

// outputOf is the runner that did the job and how many it had had.
func (w *world) outputOf(t *testing.T, id job.ID) (who, jobs int) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(w.dataRoot(), runtimetest.Sheep, string(id), job.OutputDir, job.DefaultOutput))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(string(data), &who, &jobs); err != nil {
		t.Fatalf("output %q: %v", data, err)
	}
	return who, jobs
}

func TestDaemonKilledWithAJob(t *testing.T) {
	w := newWorld(t)
	w.addModel(t, model, "")
	gate := filepath.Join(t.TempDir(), "go")
	w.prepare(t, "a", "await "+gate)
	v := w.spawn(t)
	v.expect("recovered")
	pid, _ := strconv.Atoi(v.tell("run", "started"))
	v.tell("send a", "sent")
	awaitOutcome(t, w.lives()[0], `:"a"`)
	v.kill()

	v = w.spawn(t) // the second daemon is killed, too, and so is the third in the middle of it all
	if got := v.expect("recovered"); got != "true" {
		t.Fatalf("recovered %s, want a running runner", got)
	}
	if got := v.tell("run", "started"); got != strconv.Itoa(pid) {
		t.Errorf("attached to process %s, was %d", got, pid)
	}
	v.kill()
	v = w.spawn(t)
	v.kill()

	if err := os.WriteFile(gate, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	h := w.inherit(t)
	if h.found == nil || !h.found.Running || h.found.Model != model {
		t.Fatalf("found %+v, want the runner", h.found)
	}
	if got := h.run(); got != pid {
		t.Errorf("attached to process %d, was %d", got, pid)
	}
	h.recv("a")
	h.do("b")
	who, _ := w.outputOf(t, "a")
	if got, jobs := w.outputOf(t, "b"); got != who || jobs != 2 {
		t.Errorf("the next job was the %d. of runner %d, want the 2. of %d", jobs, got, who)
	}
	h.slaughter()
}

func TestDaemonKilledBeforeAcknowledging(t *testing.T) {
	w := newWorld(t)
	w.addModel(t, model, "")
	w.prepare(t, "a", "")
	w.prepare(t, "b", "")
	v := w.spawn(t)
	v.expect("recovered")
	v.tell("run", "started")
	for _, id := range []string{"a", "b"} {
		v.tell("send "+id, "sent")
		v.tell("recv", "answer")
	}
	v.kill()
	h := w.inherit(t)
	if h.found == nil || len(h.found.Answers) != 2 || h.found.Job != "" {
		t.Fatalf("found %+v, want two answers", h.found)
	}
	h.run()
	h.recv("a")
	h.recv("b")
	h.slaughter()
}

func TestDaemonKilledAtAnyMomentOfTheStart(t *testing.T) {
	w := newWorld(t)
	w.addModel(t, model, "")
	for wait := time.Duration(0); wait < 60*time.Millisecond; wait += 4 * time.Millisecond {
		v := w.spawn(t)
		v.expect("recovered")
		if _, err := fmt.Fprintln(v.in, "run"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(wait) // any moment
		v.kill()
		h := w.inherit(t)
		h.load()
		h.run()
		h.do(job.ID("after-" + wait.String()))
		h.slaughter()
	}
}

// orphaned is a world with a runner that has a job, whose daemon was killed.
func orphaned(t *testing.T, script string) (w *world, shim, runner int) {
	t.Helper()
	w = newWorld(t)
	w.addModel(t, model, "")
	w.prepare(t, "a", script)
	v := w.spawn(t)
	v.expect("recovered")
	runner, _ = strconv.Atoi(v.tell("run", "started"))
	v.tell("send a", "sent")
	awaitOutcome(t, w.lives()[0], `:"a"`) // the shim has it
	v.kill()
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
		if f := h.found; f == nil || f.Running || f.Job != "a" || f.Exit == nil || !f.Exit.Lost {
			t.Fatalf("found %+v, want job a lost", h.found)
		}
		if left := w.processes(t); len(left) > 0 {
			t.Errorf("Recover left processes %v", left)
		}
	}
	h := w.inherit(t)
	if err := h.found.Forget(); err != nil {
		t.Error(err)
	}
	h.close()
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
		w.prepare(t, "a", "fork\nsleep 1h")
		h := w.inherit(t)
		h.load()
		h.run()
		if err := h.conn.Send(t.Context(), messenger.Input{JobID: "a"}); err != nil {
			t.Fatal(err)
		}
		awaitProcesses(t, w, 3)
		if err := unix.Kill(w.shimPID(t), signal); err != nil {
			t.Fatal(err)
		}
		var exit *runtime.Exit
		if err := h.wait(); !errors.As(err, &exit) || !exit.Lost || exit.Stopped {
			t.Errorf("%v: Run: %v, want that it was lost", signal, err)
		}
		if left := w.processes(t); len(left) > 0 {
			t.Errorf("%v: left processes %v", signal, left)
		}
		h.close()
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

func TestShimThatHangsIsKilled(t *testing.T) {
	t.Run("when a daemon comes back", func(t *testing.T) {
		t.Parallel()
		w, shim, _ := orphaned(t, "sleep 1h")
		freeze(t, shim)
		h := w.inherit(t)
		if f := h.found; f == nil || f.Running || f.Job != "a" || !f.Exit.Lost {
			t.Fatalf("found %+v, want job a lost", h.found)
		}
		if err := h.found.Forget(); err != nil {
			t.Error(err)
		}
		h.close()
	})
	t.Run("when it is to stop its runner", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.addModel(t, model, "")
		h := w.inherit(t)
		h.load()
		h.run()
		freeze(t, w.shimPID(t))
		h.stop()
		var exit *runtime.Exit
		if err := h.wait(); !errors.As(err, &exit) || !exit.Lost {
			t.Errorf("Run: %v, want that it went down with its shim", err)
		}
		h.close()
	})
}

func TestRunnerKilledWithoutDaemon(t *testing.T) {
	w, _, runner := orphaned(t, "sleep 1h")
	kill(t, runner)
	h := w.inherit(t)
	if h.found != nil && h.found.Running { // found in its last moment
		h.run()
		h.wait()
		h = w.inherit(t)
	}
	if f := h.found; f == nil || f.Job != "a" || f.Exit == nil || f.Exit.Signal != "SIGKILL" || f.Exit.Lost {
		t.Fatalf("found %+v, want job a with SIGKILL", h.found)
	}
	if err := h.found.Forget(); err != nil {
		t.Error(err)
	}
	h.close()
}

func TestAnswerOutlivesShimAndRunner(t *testing.T) {
	w, shim, _ := orphaned(t, "")
	life := w.lives()[0]
	awaitOutcome(t, life, `"answers":[{"job":"a"}]`)
	kill(t, shim)
	h := w.inherit(t)
	if f := h.found; f == nil || f.Running || f.Job != "" || len(f.Answers) != 1 || f.Answers[0].JobID != "a" {
		t.Fatalf("found %+v, want the answer to a", h.found)
	}
	if err := h.found.Forget(); err != nil {
		t.Error(err)
	}
	h.close()
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
			if h.found != nil {
				if h.found.Running {
					t.Fatalf("found %+v, want it dead", h.found)
				}
				if err := h.found.Forget(); err != nil {
					t.Error(err)
				}
			}
			h.close()
		})
	}
}

func TestMachineRestarted(t *testing.T) {
	w, shim, _ := orphaned(t, "")
	life := w.lives()[0]
	awaitOutcome(t, life, `"answers":[{"job":"a"}]`)
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
	f := h.found
	if f == nil || f.Running || f.Job != "a" || len(f.Answers) > 0 || !f.Exit.Lost || !strings.Contains(f.Exit.Detail, "restarted") {
		t.Fatalf("found %+v, want job a lost with the machine", f)
	}
	if err := f.Forget(); err != nil {
		t.Error(err)
	}
	h.close()
}

func TestIdleOrphanEndsItself(t *testing.T) {
	w := newWorld(t)
	w.more = "orphan_timeout: 200ms\n"
	w.addModel(t, model, "")
	w.prepare(t, "a", "sleep 1s")
	v := w.spawn(t)
	v.expect("recovered")
	runner, _ := strconv.Atoi(v.tell("run", "started"))
	shim := w.shimPID(t)
	v.tell("send a", "sent")
	awaitOutcome(t, w.lives()[0], `"job":"a"`)
	v.kill()
	awaitOutcome(t, w.lives()[0], `"answers":[{"job":"a"}]`) // a job under way keeps it
	h := w.inherit(t)
	if got := h.run(); got != runner {
		t.Fatalf("attached to process %d, was %d", got, runner)
	}
	h.recv("a")
	h.sheep.Detach()
	if err := h.wait(); !errors.Is(err, runtime.ErrDetached) {
		t.Fatalf("Run: %v", err)
	}
	awaitGone(t, shim)
	awaitGone(t, runner)
	h.close()
	if h := w.inherit(t); h.found != nil {
		t.Errorf("found %+v, want nothing", h.found)
	}
}

func TestSecondDaemonTakesOver(t *testing.T) {
	w := newWorld(t)
	w.addModel(t, model, "")
	first := w.inherit(t)
	first.load()
	pid := first.run()
	second := w.inherit(t)
	if err := first.wait(); !errors.Is(err, runtime.ErrDetached) {
		t.Errorf("the first daemon's Run: %v, want %v", err, runtime.ErrDetached)
	}
	if got := second.run(); got != pid {
		t.Errorf("attached to process %d, was %d", got, pid)
	}
	second.do("a")
	second.slaughter()
}

func TestProcessesAreSortedByWorld(t *testing.T) {
	a, b := newWorld(t), newWorld(t)
	a.addModel(t, model, "")
	h := a.inherit(t)
	h.load()
	pid := h.run()
	if !slices.Contains(a.processes(t), pid) || len(b.processes(t)) > 0 {
		t.Errorf("processes %v and %v; want %d in the first only", a.processes(t), b.processes(t), pid)
	}
	h.slaughter()
}
