package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/iterait/shepherd/internal/claims"
)

// shepherdd is killed while a job runs: the runner continues, its answer arrives, the job is
// not run a second time, the model is not loaded again.
func TestDaemonKilledWhileAJobRuns(t *testing.T) {
	for _, c := range []struct {
		name     string
		absent   func(w *world) // what happens while no daemon is running
		restarts int
	}{
		{"answered after the restart", nil, 1},
		{"answered while it was away", func(w *world) {
			write(w.t, w.dir+"/gate", "")
			w.eventually("the runner answers", func() bool { return len(w.noted("answer")) == 1 })
		}, 1},
		{"three restarts in a row", nil, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.start()
			gate := w.dir + "/gate"
			w.submit("job-1", "echo:v1", "wait "+gate)
			w.submit("job-2", "echo:v1", "two")
			w.eventually("the job runs", func() bool { return len(w.noted("job")) == 1 })
			for range c.restarts {
				w.kill()
				if c.absent != nil {
					c.absent(w)
				}
				w.start()
			}
			_, text := w.request("GET", "/status", "")
			if !strings.Contains(text, `"running"`) || strings.Contains(compact(t, text), `"running":false`) {
				t.Errorf("the sheep is not shown as running: %s", text)
			}
			write(t, gate, "")
			w.expectDone("job-1", "wait "+gate)
			w.expectDone("job-2", "two")
			if starts := w.noted("start"); len(starts) != 1 {
				t.Errorf("the model was loaded %d times: %v", len(starts), starts)
			}
			if jobs := w.noted("job"); len(jobs) != 2 {
				t.Errorf("runners were given %v", jobs)
			}
		})
	}
}

// The runner ends while no daemon is running: its job fails with the cause.
func TestRunnerEndsWhileDaemonIsAway(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.submit("job-1", "echo:v1", "sleep 1000")
	w.submit("job-2", "echo:v1", "two")
	w.eventually("the job runs", func() bool { return len(w.noted("job")) == 1 })
	w.kill()
	var pid int
	fmt.Sscanf(w.noted("start")[0], "start %d", &pid)
	syscall.Kill(pid, syscall.SIGKILL)
	w.eventually("the runner is gone", func() bool { return syscall.Kill(pid, 0) != nil })
	w.start()
	w.expectFailed("job-1", "Sheep container died without notice", "SIGKILL")
	w.expectDone("job-2", "two")
}

// A shim is killed during a job: its runner is killed, too, and the job is tried again.
func TestShimKilled(t *testing.T) {
	for _, daemon := range []string{"present", "away"} {
		t.Run("daemon "+daemon, func(t *testing.T) {
			w := newWorld(t)
			w.start()
			gate := w.dir + "/gate"
			w.submit("job-1", "echo:v1", "wait "+gate)
			w.eventually("the job runs", func() bool { return len(w.noted("job")) == 1 })
			if daemon == "away" {
				w.kill()
			}
			killed := 0
			for pid, command := range w.processes() {
				if strings.Contains(command, "shepherd-shim") {
					syscall.Kill(pid, syscall.SIGKILL)
					killed++
				}
			}
			if killed != 1 {
				t.Fatalf("%d shims were there: %v", killed, w.processes())
			}
			if daemon == "away" {
				w.start()
			}
			w.eventually("the job runs again", func() bool { return len(w.noted("job")) == 2 })
			write(t, gate, "")
			w.expectDone("job-1", "wait "+gate)
		})
	}
}

// Harmful jobs fail with a message that says what they did, or are done with a warning; the
// same sheep runs the next job.
func TestPoison(t *testing.T) {
	w := newWorld(t)
	w.edit("api:", "scheduling: {max_attempts: 2}\napi:")
	w.start()
	next := 0
	expectWell := func() {
		next++
		id := fmt.Sprint("well-", next)
		w.submit(id, "echo:v1", "fine")
		w.expectDone(id, "fine")
	}
	for id, c := range map[string]struct{ input, says string }{
		"exits":  {"exit 3", "exit code 3"},
		"killed": {"kill", "SIGKILL"},
		"huge":   {fmt.Sprint("sparse ", 6<<40), "up to 5.0 TiB"},
		"sparse": {fmt.Sprint("sparse ", 4<<40), "the whole disk of the storage has"},
	} {
		w.submit(id, "echo:v1", c.input)
		w.expectFailed(id, c.says)
		expectWell()
	}
	w.submit("odd", "echo:v1", "odd")
	w.expectDone("odd", "odd")
	if code, text := w.request("GET", "/jobs/odd/result/"+strings.Repeat("n", 255), ""); code != 200 || text != "long name" {
		t.Errorf("the output with a long name: %d %q", code, text)
	}
	warnings := strings.Join(w.view("odd").Warnings, "\n")
	for _, want := range []string{`"outputs/pipe" is not stored: it is a named pipe`, `"outputs/socket" is not stored: it is a socket`, `"outputs/device" is not stored: it is a device`} {
		if !strings.Contains(warnings, want) {
			t.Errorf("the warnings %q do not say %q", warnings, want)
		}
	}
	w.submit("many", "echo:v1", "many 5000")
	w.expectDone("many", "many 5000")
	if code, text := w.request("GET", "/jobs/many/result/4999", ""); code != 200 || text != "4999" {
		t.Errorf("one of many outputs: %d %q", code, text)
	}
	expectWell()
}

// Everything is killed, as by a power cut: queued, prepared and running jobs all end.
func TestEverythingKilled(t *testing.T) {
	w := newWorld(t, "one", "two")
	w.start()
	gate := w.dir + "/gate"
	for i := range 20 {
		w.submit(fmt.Sprintf("job-%02d", i), "echo:v1", "wait "+gate)
	}
	w.eventually("two run", func() bool { return len(w.noted("job")) == 2 })
	w.kill()
	// Shims first: a shim reports the death of its runner as a failure.
	for _, shims := range []bool{true, false} {
		for pid, command := range w.processes() {
			if strings.Contains(command, "shepherd-shim") == shims {
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
	w.eventually("all are gone", func() bool { return len(w.processes()) == 0 })
	write(t, gate, "")
	w.start()
	for i := range 20 {
		w.expectDone(fmt.Sprintf("job-%02d", i), "wait "+gate)
	}
}

// The daemon is killed at random moments while clients submit and jobs run:
// acknowledged jobs are never lost, and end once.
func TestDaemonKilledAtRandom(t *testing.T) {
	w := newWorld(t, "one", "two")
	w.start()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	dice := rand.New(rand.NewPCG(seed, 0))
	var acknowledged []string
	for round := range 8 {
		end := time.Now().Add(time.Duration(dice.IntN(400)) * time.Millisecond)
		for i := 0; time.Now().Before(end); i++ {
			id := fmt.Sprintf("r%d-%d", round, i)
			code, text, err := w.try("POST", "/start-job", jobBody(id, fmt.Sprintf("echo:v%d", 1+i%2), id))
			if err != nil || code != 200 {
				t.Fatalf("start-job %s: %d %s %v", id, code, text, err)
			}
			acknowledged = append(acknowledged, id)
		}
		w.kill()
		w.start()
	}
	for _, id := range acknowledged {
		w.expectDone(id, id)
	}
	given := make(map[string]int)
	for _, line := range w.noted("job") {
		given[strings.Fields(line)[1]]++
	}
	for id, n := range given {
		if n > 1 {
			t.Errorf("job %s was run %d times, though its runner outlived the daemon", id, n)
		}
	}
	t.Logf("%d jobs through 8 kills", len(acknowledged))
}

// SIGTERM lets the running job finish, hands the others back and stops all
// sheep; the next daemon continues.
func TestDrain(t *testing.T) {
	w := newWorld(t)
	w.start()
	gate := w.dir + "/gate"
	w.submit("job-1", "echo:v1", "wait "+gate)
	w.submit("job-2", "echo:v1", "two")
	w.submit("job-3", "echo:v1", "three")
	w.eventually("the job runs", func() bool { return len(w.noted("job")) == 1 })
	w.daemon.Process.Signal(syscall.SIGTERM)
	w.logged("Stopping: running jobs may finish")
	if code, text := w.request("POST", "/start-job", jobBody("job-4", "echo:v1", "x")); code != http.StatusServiceUnavailable {
		t.Errorf("start-job while draining: %d %s", code, text)
	}
	write(t, gate, "")
	w.awaitExit()
	if code := w.daemon.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if left := w.processes(); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	w.start()
	w.expectDone("job-1", "wait "+gate)
	w.expectDone("job-2", "two")
	w.expectDone("job-3", "three")
	if jobs := w.noted("job"); len(jobs) != 3 {
		t.Errorf("runners were given %v", jobs)
	}
}

// The end of the terminal that the daemon was started in stops it as well.
func TestTerminalGoes(t *testing.T) {
	// Under nohup the signal is ignored, and the daemon would inherit that; a signal that
	// is caught here has its default action there.
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGHUP)
	defer signal.Stop(caught)
	w := newWorld(t)
	w.start()
	w.submit("job-1", "echo:v1", "one")
	w.expectDone("job-1", "one")
	w.daemon.Process.Signal(syscall.SIGHUP)
	w.awaitExit()
	if code := w.daemon.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if left := w.processes(); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
}

// When the time to drain is over, the running job goes back to the queue.
func TestDrainTimeout(t *testing.T) {
	w := newWorld(t)
	w.edit("api:", "drain_timeout: 100ms\napi:")
	w.start()
	gate := w.dir + "/gate"
	w.submit("job-1", "echo:v1", "wait "+gate)
	w.eventually("the job runs", func() bool { return len(w.noted("job")) == 1 })
	if code := w.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	write(t, gate, "")
	w.start()
	w.expectDone("job-1", "wait "+gate)
	if jobs := w.noted("job"); len(jobs) != 2 {
		t.Errorf("runners were given %v", jobs)
	}
}

// A runner's children do not outlive it, however they hide.
func TestForkedChildrenAreKilled(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.submit("job-1", "echo:v1", "fork 1000")
	w.expectDone("job-1", "fork 1000")
	sleeping := func() bool {
		for _, command := range w.processes() {
			if strings.HasPrefix(command, "sleep") {
				return true
			}
		}
		return false
	}
	if !sleeping() {
		t.Fatalf("the runner has no child: %v", w.processes())
	}
	w.submit("job-2", "echo:v2", "another model")
	w.expectDone("job-2", "another model")
	if sleeping() {
		t.Errorf("a child outlived its runner: %v", w.processes())
	}
}

// A second daemon on the same state directory or port reports that and exits; the first is
// not affected.
func TestSecondDaemon(t *testing.T) {
	w := newWorld(t)
	w.start()
	first, exited, log, api := w.daemon, w.exited, w.log, w.api
	w.log = &lockedBuffer{}
	w.launch()
	w.awaitExit()
	if text := w.log.String(); w.daemon.ProcessState.ExitCode() != 1 || !strings.Contains(text, "another shepherdd (pid "+fmt.Sprint(first.Process.Pid)+") uses the state directory "+filepath.Join(w.dir, "state")) {
		t.Errorf("second daemon: %v\n%s", w.daemon.ProcessState, text)
	}
	w.edit("state_dir: "+w.dir+"/state", "state_dir: "+w.dir+"/state2")
	w.edit("  port: 0", "  port: "+api[strings.LastIndexByte(api, ':')+1:])
	w.launch()
	w.awaitExit()
	if text := w.log.String(); w.daemon.ProcessState.ExitCode() != 1 || !strings.Contains(text, "choose another port") {
		t.Errorf("second daemon: %v\n%s", w.daemon.ProcessState, text)
	}
	w.daemon, w.exited, w.log = first, exited, log
	w.submit("job-1", "echo:v1", "one")
	w.expectDone("job-1", "one")
}

// What attempts left in a sheep's directory is removed at start-up; nothing else is.
func TestOnlyWorkingDirectoriesAreCleaned(t *testing.T) {
	claims.Hold(t, "L10")
	w := newWorld(t)
	const mark = "/.shepherd-attempt"
	for _, left := range []string{"/data/bare_sheep/attempt-7", "/data/.staging/attempt-8"} {
		write(t, w.dir+left+mark, "")
		write(t, w.dir+left+"/left-over/inputs/input", "x")
	}
	write(t, w.dir+"/data/bare_sheep/attempt-9/notes", "x")
	write(t, w.dir+"/data/bare_sheep/attempt-10/run/inputs/a", "x")
	write(t, w.dir+"/data/bare_sheep/attempt-10/run/outputs/a", "x")
	write(t, w.dir+"/data/bare_sheep/run/inputs/a", "x")
	write(t, w.dir+"/data/bare_sheep/run/outputs/a", "x")
	write(t, w.dir+"/data/bare_sheep/thesis/chapter-1", "x")
	write(t, w.dir+"/data/somebody-elses/file", "x")
	write(t, w.dir+"/data/file", "x")
	w.start()
	for _, gone := range []string{"/data/bare_sheep/attempt-7", "/data/.staging/attempt-8"} {
		if _, err := os.Stat(w.dir + gone); !os.IsNotExist(err) {
			t.Errorf("left-over working directory %s: %v", gone, err)
		}
	}
	for _, kept := range []string{
		"/data/bare_sheep/thesis/chapter-1", "/data/somebody-elses/file", "/data/file", "/data/bare_sheep/attempt-9/notes",
		"/data/bare_sheep/attempt-10/run/outputs/a", "/data/bare_sheep/run/outputs/a",
	} {
		if _, err := os.Stat(w.dir + kept); err != nil {
			t.Errorf("%s: %v", kept, err)
		}
	}
	w.logged("carry no mark of shepherd")
}

// A sheep that is removed from the configuration while no daemon is running is stopped.
func TestSheepTakenOut(t *testing.T) {
	w := newWorld(t, "one", "two")
	w.start()
	w.submit("on-two", "echo:v1", "x", "sheep_id", "two")
	w.expectDone("on-two", "x")
	w.kill()
	if len(w.processes()) == 0 {
		t.Fatal("no runner outlived the daemon")
	}
	text, err := os.ReadFile(w.config)
	if err != nil {
		t.Fatal(err)
	}
	before, _, _ := strings.Cut(string(text), "  two:\n")
	write(t, w.config, before)
	w.start()
	if left := w.processes(); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	w.submit("on-one", "echo:v1", "x")
	w.expectDone("on-one", "x")
}
