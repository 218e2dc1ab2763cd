package container_test

import (
	"bufio"
	"context"
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

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/runtime/runtimetest"
)

// daemonMain is a daemon to be killed, called with the folder of a world, the
// address of containerd and that of the registry: it recovers, loads the model,
// and does what it is told on standard input, a command a line, each answered by
// a line.
func daemonMain(args []string) {
	shimPath = os.Getenv("SHEPHERD_TEST_SHIM")
	w := &world{dir: args[0], node: "pasture", daemon: &testenv.Containerd{Address: args[1]}, registry: &testenv.Registry{URL: args[2]}}
	if err := runDaemon(w); err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func runDaemon(w *world) error {
	ctx := context.Background()
	s, err := w.newDriver(slog.New(slog.DiscardHandler)).NewSheep(runtimetest.Sheep, decode(w.config()))
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
	fmt.Println("loaded", model)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		verb, rest, _ := strings.Cut(lines.Text(), " ")
		switch verb {
		case "run":
			started := make(chan int, 1)
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
	cmd := exec.Command("/proc/self/exe", w.dir, w.daemon.Address, w.registry.URL)
	cmd.Env = append(os.Environ(), roleVar+"=daemon", "SHEPHERD_TEST_SHIM="+shimPath)
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

func (v *victim) ready() {
	v.t.Helper()
	v.expect("recovered")
	v.expect("loaded")
}

// The daemon, and containerd, are killed while a job runs: it is taken up with
// the runner, and done once.
func TestDaemonKilledWithAJob(t *testing.T) {
	daemon := testenv.StartContainerd(t)
	w := newWorld(t, daemon)
	w.addModel(t, model, "")
	gate := filepath.Join(w.dataRoot(), runtimetest.Sheep, "go")
	(&heir{t: t, w: w, name: runtimetest.Sheep}).prepare("a", "await "+gate)
	v := w.spawn(t)
	v.ready()
	pid := v.tell("run", "started")
	v.tell("send a", "sent")
	w.eventually(t, "the shim has the job", func() bool {
		outcome, _ := os.ReadFile(filepath.Join(w.stateDir(), runtimetest.Sheep, "lives", w.lives()[0], "outcome.json"))
		return strings.Contains(string(outcome), `:"a"`)
	})
	v.kill()

	v = w.spawn(t)
	if got := v.expect("recovered"); got != "true" {
		t.Fatalf("recovered %s, want a running runner", got)
	}
	v.expect("loaded")
	if got := v.tell("run", "started"); got != pid {
		t.Errorf("attached to process %s, was %s", got, pid)
	}
	v.kill()
	daemon.Kill(t) // both are gone
	v = w.spawn(t)
	v.kill()

	// One that comes when there is no containerd takes the runner up all the same.
	h := w.inherit(t)
	if h.found == nil || !h.found.Running || h.found.Model != model || h.found.Job != "a" {
		t.Fatalf("found %+v, want the runner with its job", h.found)
	}
	if got := strconv.Itoa(h.run()); got != pid {
		t.Errorf("attached to process %s, was %s", got, pid)
	}
	if err := os.WriteFile(gate, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	h.recv("a")
	daemon.Start(t)
	h.do("b", "")
	who, jobs := h.output("a")
	if got, n := h.output("b"); got != who || jobs != "1" || n != "2" {
		t.Errorf("job a was the %s. of %s, b the %s. of %s", jobs, who, n, got)
	}
	h.slaughter()
}

// The daemon is killed at moments all over the start of a container. The next one
// takes it up, or removes what there is of it.
func TestDaemonKilledAtAnyMomentOfTheStart(t *testing.T) {
	daemon := testenv.StartContainerd(t)
	w := newWorld(t, daemon)
	w.addModel(t, model, "")
	const started = -1 // not before it has
	moments := []time.Duration{0, 2, 5, 8, 12, 16, 20, 25, 30, 40, 50, 60, 75, 90, 110, 130, 160, 200, 300, started}
	var ends []string
	for _, moment := range moments {
		v := w.spawn(t)
		v.ready()
		if _, err := fmt.Fprintln(v.in, "run"); err != nil {
			t.Fatal(err)
		}
		if moment == started {
			v.expect("started")
		}
		time.Sleep(moment * time.Millisecond) // the moment is the point
		v.kill()
		h := w.inherit(t)
		if h.found != nil && h.found.Running {
			ends = append(ends, "taken up")
			h.run()
			h.do(job.ID(fmt.Sprint("job-", int(moment))), "")
			h.slaughterOnly()
		} else {
			ends = append(ends, "removed")
			if h.found != nil {
				if err := h.found.Forget(); err != nil {
					t.Error(err)
				}
			}
		}
		h.load()
		if err := h.sheep.Close(t.Context()); err != nil {
			t.Error(err)
		}
		// A shim that was about to begin finds that it shall not, in a moment.
		w.eventually(t, "nothing is left", func() bool { return len(w.leftovers(t)) == 0 })
	}
	t.Logf("killed after %d ms: %v", moments, ends)
	if !slices.Contains(ends, "taken up") || !slices.Contains(ends, "removed") {
		t.Errorf("all were alike: the moments are not well chosen: %v", ends)
	}
}

// A shim that is killed while there is no daemon takes its runner, and the job,
// with it.
func TestShimKilledWithoutDaemon(t *testing.T) {
	daemon := testenv.StartContainerd(t)
	w := newWorld(t, daemon)
	h := w.up(t, "")
	h.send("a", "print about to\nsleep 1h")
	w.eventually(t, "the job runs", func() bool { return strings.Contains(w.log("runner.log"), "about to") })
	h.sheep.Detach()
	if err := h.wait(); !errors.Is(err, runtime.ErrDetached) {
		t.Fatal(err)
	}
	h.killAll(func(command string) bool { return strings.HasPrefix(command, shimPath+" "+w.dir) })
	h = w.inherit(t)
	if h.found == nil || h.found.Running || h.found.Job != "a" || h.found.Exit == nil || !h.found.Exit.Lost {
		t.Fatalf("found %+v, want that the job was lost", h.found)
	}
	if err := h.found.Forget(); err != nil {
		t.Error(err)
	}
	h.again()
}

// A runner that ends while there is no daemon is known to have, with its exit
// code, even after the container was removed.
func TestRunnerEndsWithoutDaemon(t *testing.T) {
	daemon := testenv.StartContainerd(t)
	w := newWorld(t, daemon)
	h := w.up(t, "")
	gate := filepath.Join(w.dataRoot(), runtimetest.Sheep, "go")
	h.send("a", "await "+gate+"\nprint farewell\nexit 9")
	h.sheep.Detach()
	h.wait()
	if err := os.WriteFile(gate, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	w.eventually(t, "the shim has seen the end", func() bool {
		outcome, _ := os.ReadFile(filepath.Join(w.stateDir(), runtimetest.Sheep, "lives", w.lives()[0], "outcome.json"))
		return strings.Contains(string(outcome), `"exit"`)
	})
	for range 2 {
		h = w.inherit(t)
		if h.found == nil || h.found.Running || h.found.Job != "a" || h.found.Exit == nil || h.found.Exit.Code != 9 || h.found.Exit.LastLog != "farewell" {
			t.Fatalf("found %+v, %+v", h.found, h.found.Exit)
		}
	}
	if err := h.found.Forget(); err != nil {
		t.Error(err)
	}
	h.again()
}
