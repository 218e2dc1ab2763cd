package container_test

import (
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

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/runtime/runtimetest"
)

// daemonMain is a daemon to be killed, called with the folder of a world, the
// address of containerd and that of the registry.
func daemonMain(args []string) {
	shimPath = os.Getenv("SHEPHERD_TEST_SHIM")
	w := &world{dir: args[0], node: "box", daemon: &testenv.Containerd{Address: args[1]}, registry: &testenv.Registry{URL: args[2]}}
	s, err := w.newDriver(slog.New(slog.DiscardHandler)).NewSheep(runtimetest.Sheep, decode(w.config()))
	if err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
	runtimetest.VictimMain(s, model)
}

func (w *world) spawn(t *testing.T) *runtimetest.Victim {
	t.Helper()
	return runtimetest.Spawn(t, []string{roleVar + "=daemon", "SHEPHERD_TEST_SHIM=" + shimPath}, w.dir, w.daemon.Address, w.registry.URL)
}

// The daemon, and containerd, are killed while a job runs: it is adopted with
// the runner, and done once.
func TestDaemonKilledWithAJob(t *testing.T) {
	daemon := testenv.StartContainerd(t)
	w := newWorld(t, daemon)
	w.addModel(t, model, "")
	gate := filepath.Join(w.dataRoot(), runtimetest.Sheep, "go")
	runtimetest.Prepare(t, filepath.Join(w.dataRoot(), runtimetest.Sheep), "a", "await "+gate)
	v := w.spawn(t)
	v.Ready()
	pid := v.Tell("run", "started")
	v.Tell("send a", "sent")
	w.eventually(t, "the shim has the job", func() bool {
		outcome, _ := os.ReadFile(filepath.Join(w.stateDir(), runtimetest.Sheep, "lives", w.lives()[0], "outcome.json"))
		return strings.Contains(string(outcome), `:"a"`)
	})
	v.Kill()

	v = w.spawn(t)
	if got := v.Expect("recovered"); got != "true" {
		t.Fatalf("recovered %s, want a running runner", got)
	}
	v.Expect("loaded")
	if got := v.Tell("run", "started"); got != pid {
		t.Errorf("attached to process %s, was %s", got, pid)
	}
	v.Kill()
	daemon.Kill(t) // both are gone
	v = w.spawn(t)
	v.Kill()

	// One that comes when there is no containerd takes the runner up all the same.
	h := w.inherit(t)
	if h.Found == nil || !h.Found.Running || h.Found.Model != model || h.Found.Job != "a" {
		t.Fatalf("found %+v, want the runner with its job", h.Found)
	}
	if got := strconv.Itoa(h.Run()); got != pid {
		t.Errorf("attached to process %s, was %s", got, pid)
	}
	if err := os.WriteFile(gate, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	h.Recv("a")
	daemon.Start(t)
	h.Do("b", "")
	who, jobs := h.Output("a")
	if got, n := h.Output("b"); got != who || jobs != "1" || n != "2" {
		t.Errorf("job a was the %s. of %s, b the %s. of %s", jobs, who, n, got)
	}
	h.StopAndClose()
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
		v.Ready()
		v.Say("run")
		if moment == started {
			v.Expect("started")
		}
		time.Sleep(moment * time.Millisecond) // the moment is the point
		v.Kill()
		h := w.inherit(t)
		if h.Found != nil && h.Found.Running {
			ends = append(ends, "adopted")
			h.Run()
			h.Do(job.ID(fmt.Sprint("job-", int(moment))), "")
			h.StopRunner()
		} else {
			ends = append(ends, "removed")
			if h.Found != nil {
				if err := h.Found.Forget(); err != nil {
					t.Error(err)
				}
			}
		}
		// A shim that was about to begin finds that it shall not, in a moment, and containerd
		// may still be doing what the daemon has asked for: the next load removes that.
		for end := time.Now().Add(hang); ; time.Sleep(2 * time.Millisecond) {
			h.Load()
			left := w.leftovers(t)
			if len(left) == 0 {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("killed after %d ms, which %v: left: %q", moment, ends, left)
			}
		}
		if err := h.Sheep.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	t.Logf("killed after %d ms: %v", moments, ends)
	if !slices.Contains(ends, "adopted") || !slices.Contains(ends, "removed") {
		t.Errorf("all were alike: the moments are not well chosen: %v", ends)
	}
}

// containerd may do what a killed daemon has asked for after its successor has looked for
// what there is: the successor looks again for a while.
func TestLateRequestOfKilledDaemon(t *testing.T) {
	daemon := testenv.StartContainerd(t)
	w := newWorld(t, daemon)
	w.addModel(t, model, "")
	h := w.inherit(t)
	h.Load()
	daemon.Ctr(t, namespace, "leases", "create", "--id", "late", "io.shepherd.sheep="+runtimetest.Sheep, "io.shepherd.node="+w.node)
	if left := w.leftovers(t); len(left) != 1 {
		t.Fatalf("left: %q, want the lease", left)
	}
	h.Load()
	if left := w.leftovers(t); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	if err := h.Sheep.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// A shim that is killed while there is no daemon takes its runner, and the job,
// with it.
func TestShimKilledWithoutDaemon(t *testing.T) {
	daemon := testenv.StartContainerd(t)
	w := newWorld(t, daemon)
	h := w.up(t, "")
	h.Send("a", "print about to\nsleep 1h")
	w.eventually(t, "the job runs", func() bool { return strings.Contains(w.log("runner.log"), "about to") })
	h.Sheep.Detach()
	if err := h.Wait(); !errors.Is(err, runtime.ErrDetached) {
		t.Fatal(err)
	}
	h.killAll(func(command string) bool { return strings.HasPrefix(command, shimPath+" "+w.dir) })
	h = w.inherit(t)
	if h.Found == nil || h.Found.Running || h.Found.Job != "a" || h.Found.Exit == nil || !h.Found.Exit.Lost {
		t.Fatalf("found %+v, want that the job was lost", h.Found)
	}
	if err := h.Found.Forget(); err != nil {
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
	h.Send("a", "await "+gate+"\nprint farewell\nexit 9")
	h.Sheep.Detach()
	h.Wait()
	if err := os.WriteFile(gate, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	w.eventually(t, "the shim has seen the end", func() bool {
		outcome, _ := os.ReadFile(filepath.Join(w.stateDir(), runtimetest.Sheep, "lives", w.lives()[0], "outcome.json"))
		return strings.Contains(string(outcome), `"exit"`)
	})
	for range 2 {
		h = w.inherit(t)
		if h.Found == nil || h.Found.Running || h.Found.Job != "a" || h.Found.Exit == nil || h.Found.Exit.Code != 9 || h.Found.Exit.LastLog != "farewell" {
			t.Fatalf("found %+v, %+v", h.Found, h.Found.Exit)
		}
	}
	if err := h.Found.Forget(); err != nil {
		t.Error(err)
	}
	h.again()
}
