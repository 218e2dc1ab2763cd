package container_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/runtime/runtimetest"
)

// What others do to a task, with a job under way: the job fails, or may be tried
// again, with the cause in words; nothing is left; the sheep comes back.
func TestTaskEndedBehindOurBack(t *testing.T) {
	daemon := testenv.StartContainerd(t)
	for _, c := range []struct {
		name   string
		deed   func(w *world, h *successor, task string)
		lost   bool
		signal string // where the kernel tells it
		says   string
	}{
		{"ctr tasks kill", func(w *world, h *successor, task string) {
			w.daemon.Ctr(h.t, namespace, "tasks", "kill", "-s", "SIGKILL", task)
		}, false, "SIGKILL", "SIGKILL"},
		{"ctr tasks delete --force", func(w *world, h *successor, task string) {
			// It kills, and then deletes at the same time as we do: one of us fails.
			_ = exec.Command("ctr", "-a", w.daemon.Address, "-n", namespace, "tasks", "delete", "--force", task).Run()
		}, true, "SIGKILL", "removed from containerd"},
		{"kill -9 of containerd's shim", func(w *world, h *successor, task string) {
			h.killAll(func(command string) bool {
				return strings.Contains(command, "containerd-shim") && strings.Contains(command, task)
			})
		}, true, "SIGKILL", "containerd's shim died"},
		{"kill -9 of our shim", func(w *world, h *successor, _ string) {
			h.killAll(func(command string) bool { return strings.HasPrefix(command, shimPath+" "+w.dir) })
		}, true, "", "shim ended unexpectedly"},
		{"kill -9 of the runner from outside", func(w *world, h *successor, task string) {
			h.killAll(func(command string) bool { return strings.HasPrefix(command, "/runner -p 9999") })
		}, false, "SIGKILL", "SIGKILL"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, daemon)
			h := w.up(t, "")
			h.Send("a", "print about to\nsleep 1h")
			w.eventually(t, "the job runs", func() bool { return strings.Contains(w.log("runner.log"), "about to") })
			c.deed(w, h, w.task(t))
			exit := h.Exit()
			if strings.Contains(c.name, "delete") && !exit.Lost { // we were first: all we know is that it was killed
				c.lost, c.says = false, "SIGKILL"
			}
			if exit.Lost != c.lost || exit.Stopped || exit.OutOfMemory || !strings.Contains(exit.Error(), c.says) {
				t.Errorf("got %+v (%v), want lost %v and that it says %q", exit, exit, c.lost, c.says)
			}
			if exit.Signal != "" && exit.Signal != c.signal {
				t.Errorf("signal %q, want %q", exit.Signal, c.signal)
			}
			h.again()
		})
	}
}

// killAll kills processes by their command line.
func (h *successor) killAll(match func(command string) bool) {
	h.t.Helper()
	killed := 0
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range all {
		data, _ := os.ReadFile(path)
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil && match(strings.ReplaceAll(string(data), "\x00", " ")) {
			if h.w.owns(pid) {
				killed++
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
	}
	if killed == 0 {
		h.t.Fatal("there was nothing to kill")
	}
}

// owns reports whether a process belongs to the world: by its command line, or
// its control group, which carries the name of one of the world's lives.
func (w *world) owns(pid int) bool {
	command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if strings.Contains(string(command), w.dir) || strings.Contains(string(command), w.daemon.Address) {
		return true
	}
	group, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	for _, life := range w.lives() {
		if strings.Contains(string(group), life) {
			return true
		}
	}
	return false
}

func (w *world) lives() []string {
	found, _ := filepath.Glob(filepath.Join(w.stateDir(), "*", "lives", "*"))
	for i, f := range found {
		found[i] = filepath.Base(f)
	}
	return found
}

func (w *world) log(name string) string {
	data, _ := os.ReadFile(filepath.Join(w.stateDir(), runtimetest.Sheep, "log", name))
	return string(data)
}

func (w *world) eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(hang); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func TestOutOfMemory(t *testing.T)            { outOfMemory(t, testenv.StartContainerd(t)) }
func TestOutOfMemoryContainerd2(t *testing.T) { outOfMemory(t, testenv.StartContainerd2(t)) }

func outOfMemory(t *testing.T, daemon *testenv.Containerd) {
	w := newWorld(t, daemon)
	w.more = "memory: 67108864\n"
	h := w.up(t, "")
	h.Send("a", "print hungry\nallocate 256")
	if exit := h.Exit(); !exit.OutOfMemory || exit.Lost || exit.Stopped || !strings.Contains(exit.Error(), "out of memory") {
		t.Errorf("got %+v, want out of memory", exit)
	}
	h.again()
}

// A child that the kernel kills for memory while its runner goes on is in the log,
// and told with the job's answer.
func TestChildOutOfMemory(t *testing.T)            { childOutOfMemory(t, testenv.StartContainerd(t)) }
func TestChildOutOfMemoryContainerd2(t *testing.T) { childOutOfMemory(t, testenv.StartContainerd2(t)) }

func childOutOfMemory(t *testing.T, daemon *testenv.Containerd) {
	w := newWorld(t, daemon)
	w.more = "memory: 67108864\n"
	h := w.up(t, "")
	h.Send("a", "starve 256")
	a, err := h.Conn.Recv(t.Context())
	if err != nil || a.JobID != "a" || len(a.Warnings) != 1 || !strings.Contains(a.Warnings[0], "for lack of memory") {
		t.Errorf("got %+v, %v", a, err)
	}
	if err := h.Conn.Ack(t.Context(), "a"); err != nil {
		t.Error(err)
	}
	w.eventually(t, "the log tells of the child", func() bool {
		return strings.Contains(w.log("shim.log"), "killed a process that the runner had started, for lack of memory")
	})
	h.Do("b", "")
	h.StopAndClose()
}

// containerd is killed at each of the moments when it is not, and when it is,
// needed.
func TestContainerdKilled(t *testing.T) {
	daemon := testenv.StartContainerd(t)
	w := newWorld(t, daemon)
	h := w.up(t, "")

	gate := filepath.Join(w.dataRoot(), runtimetest.Sheep, "go")
	h.Send("a", "await "+gate)
	daemon.Kill(t)
	if err := os.WriteFile(gate, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	h.Recv("a") // without containerd
	daemon.Start(t)
	h.Do("b", "")
	if who, jobs := h.Output("b"); jobs != "2" || who == "" {
		t.Errorf("the next job was the %s. of its runner, want the 2.", jobs)
	}

	daemon.Kill(t)
	h.Stop()
	if exit := h.Exit(); !exit.Stopped { // stopped without containerd
		t.Errorf("got %+v, want stopped", exit)
	}
	err := h.Sheep.Load(t.Context(), model, runtime.Discard)
	var load *runtime.LoadError
	if !errors.As(err, &load) || !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "containerd") {
		t.Errorf("Load without containerd: %v, want a *runtime.LoadError that names it", err)
	}
	var exit *runtime.Exit
	if err := h.Sheep.Run(t.Context(), runtime.Discard); !errors.As(err, &load) && !errors.As(err, &exit) {
		t.Errorf("Run without containerd: %v", err)
	}
	daemon.Start(t)
	h.Load() // which removes what could not be before
	h.again()
}

func TestContainerdAbsent(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "containerd.sock")
	refusing := filepath.Join(t.TempDir(), "refusing.sock")
	l, err := net.Listen("unix", refusing)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	for _, c := range []struct{ address, says string }{
		{missing, "does not exist; install and start containerd"},
		{refusing, "nothing listens on containerd's socket " + refusing + "; start containerd"},
	} {
		w := &world{dir: t.TempDir(), daemon: &testenv.Containerd{Address: c.address}, registry: testenv.StartRegistry(t, testenv.RegistryConfig{})}
		d := w.driver(t)
		if err := d.Begin(t.Context(), []string{runtimetest.Sheep}); err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("Begin: %v, want one line that says %q", err, c.says)
		}
		if err := d.Begin(t.Context(), nil); err != nil {
			t.Errorf("Begin without sheep: %v", err)
		}
		h := w.inheritFrom(t, d, runtimetest.Sheep)
		err := h.Sheep.Load(t.Context(), model, runtime.Discard)
		var load *runtime.LoadError
		if !errors.As(err, &load) || !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("Load: %v, want a *runtime.LoadError that says %q", err, c.says)
		}
	}
}

// Two sheep of the same image run side by side, with the same port in each.
func TestSideBySide(t *testing.T) {
	w := newWorld(t, testenv.StartContainerd(t))
	w.addModel(t, model, "")
	d := w.driver(t)
	var flock []*successor
	for _, name := range []string{runtimetest.Sheep, "molly_2.x", "polly"} {
		h := w.inheritFrom(t, d, name)
		h.Load()
		h.Run()
		flock = append(flock, h)
	}
	if tasks := strings.Fields(w.daemon.Ctr(t, namespace, "tasks", "ls", "-q")); len(tasks) != len(flock) {
		t.Errorf("the tasks are %q", tasks)
	}
	seen := map[string]bool{}
	for round := range 3 {
		for i, h := range flock {
			id := job.ID(fmt.Sprint("job-", round))
			h.Do(id, "")
			who, jobs := h.Output(id)
			seen[who] = true
			if jobs != strconv.Itoa(round+1) {
				t.Errorf("job %s of sheep %d was its %s.", id, i, jobs)
			}
		}
	}
	if len(seen) != len(flock) {
		t.Errorf("%d runners did the jobs, want %d", len(seen), len(flock))
	}
	for _, h := range flock {
		h.StopRunner()
	}
	flock[0].NothingLeft()
}

// A model reaches nothing with network none, and what it may with host.
func TestNetwork(t *testing.T) {
	daemon := testenv.StartContainerd(t)
	// A listener on every address, one on loopback, and one that needs no file.
	var targets []string
	for _, address := range []string{"0.0.0.0:0", "127.0.0.1:0"} {
		l, err := net.Listen("tcp4", address)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		targets = append(targets, fmt.Sprintf("tcp 127.0.0.1:%d", l.Addr().(*net.TCPAddr).Port))
	}
	port := strings.Split(targets[0], ":")[1]
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		if ip := a.(*net.IPNet).IP; ip.To4() != nil && !ip.IsLoopback() {
			targets = append(targets, "tcp "+net.JoinHostPort(ip.String(), port))
		}
	}
	abstract := fmt.Sprintf("@shepherd-test-%d", os.Getpid())
	l, err := net.Listen("unix", abstract)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	targets = append(targets, "unix "+abstract)

	script := func(verb string, more ...string) string {
		var lines []string
		for _, target := range append(more, targets...) {
			lines = append(lines, verb+" "+target)
		}
		return strings.Join(lines, "\n")
	}
	t.Run("none", func(t *testing.T) {
		w := newWorld(t, daemon)
		h := w.up(t, "")
		h.Do("a", script("miss", "udp 1.1.1.1:53", "tcp 1.1.1.1:443", "dns example.com", "udp [2001:4860:4860::8888]:53",
			"unix /run/containerd/containerd.sock", "unix "+daemon.Address))
		h.Do("b", "reach tcp 127.0.0.1:9999\nreach tcp localhost:9999\nexpect SHEPHERD_RUNNER_HOST=127.0.0.1") // its own
		h.StopAndClose()
	})
	t.Run("cni", func(t *testing.T) {
		testenv.Command(t, "/usr/lib/cni/ptp", "containernetworking-plugins")
		w := newWorld(t, daemon)
		w.more = "network: cni\n"
		h := w.inherit(t)
		w.addModel(t, model, "")
		h.Load()
		err := h.Sheep.Run(t.Context(), runtime.Discard)
		if err == nil || !strings.Contains(err.Error(), "there is no CNI configuration") {
			t.Errorf("without a configuration: %v", err)
		}
		h.NothingLeft()
		leases := filepath.Join(t.TempDir(), "leases")
		if err := os.WriteFile(filepath.Join(w.cniDir(), "10-test.conflist"), fmt.Appendf(nil, `{
			"cniVersion": "0.4.0", "name": "shepherd-test",
			"plugins": [{"type": "ptp", "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "198.18.7.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]},
				"dns": {"nameservers": ["198.18.7.53"], "search": ["farm.example"]}}]
		}`, leases), 0o644); err != nil {
			t.Fatal(err)
		}
		h.Run()
		h.Do("a", "reach tcp 127.0.0.1:9999\nreach tcp 198.18.7.1:"+port+"\nmiss unix "+abstract+
			"\nexpect SHEPHERD_RUNNER_HOST=127.0.0.1\nholds /etc/resolv.conf nameserver 198.18.7.53\nholds /etc/resolv.conf search farm.example")
		given := func() int {
			found, _ := filepath.Glob(filepath.Join(leases, "*", "198.18.7.*"))
			return len(found)
		}
		if n := given(); n != 1 {
			t.Errorf("%d addresses are given out, want 1", n)
		}
		h.StopAndClose()
		if n := given(); n != 0 {
			t.Errorf("%d addresses are still given out", n)
		}
	})
	t.Run("host", func(t *testing.T) { // which shows that there is something to be reached
		w := newWorld(t, daemon)
		w.more = "network: host\n"
		h := w.up(t, "")
		h.Do("a", script("reach", "tcp 127.0.0.1:9999")+"\nexpect SHEPHERD_RUNNER_HOST=127.0.0.1")
		h.StopAndClose()
	})
}

// Others' containers, in our namespace and elsewhere, are left alone, and so are
// those of another daemon's sheep with the same name.
func TestOthersAreLeftAlone(t *testing.T) {
	daemon := testenv.StartContainerd(t)
	w := newWorld(t, daemon)
	h := w.up(t, "")
	image := strings.Fields(daemon.Ctr(t, namespace, "images", "ls", "-q"))[0]
	theirs := newWorld(t, daemon)
	theirs.node = "meadow"
	other := theirs.up(t, "")
	for _, ns := range []string{"default", namespace} {
		daemon.Ctr(t, ns, "images", "pull", "--plain-http", image)
		daemon.Ctr(t, ns, "run", "-d", image, "theirs", "/runner", "sleeper")
	}
	inDefault := func() string {
		return strings.Join(slices.DeleteFunc(daemon.Leftovers(t, "default"), func(left string) bool {
			return strings.Contains(left, "/"+namespace+"/") // mounts are those of all namespaces
		}), "\n")
	}
	before := inDefault()
	h.StopRunner()
	h.Load()
	d := w.driver(t)
	if err := d.Begin(t.Context(), nil); err != nil { // the sheep is gone
		t.Error(err)
	}
	if after := inDefault(); before != after {
		t.Errorf("the namespace default held\n%s\nholds\n%s", before, after)
	}
	if got := daemon.Ctr(t, namespace, "tasks", "ls"); strings.Count(got, "RUNNING") != 2 || !strings.Contains(got, "theirs") {
		t.Errorf("the tasks are\n%s\nwant theirs and the other daemon's", got)
	}
	other.Do("a", "")
	for _, ns := range []string{"default", namespace} {
		daemon.Ctr(t, ns, "tasks", "delete", "--force", "theirs")
		daemon.Ctr(t, ns, "containers", "delete", "theirs")
	}
	other.StopAndClose()
}

// A sheep that is not configured any more is stopped and removed.
func TestSheepThatIsGone(t *testing.T) {
	daemon := testenv.StartContainerd(t)
	w := newWorld(t, daemon)
	h := w.up(t, "")
	h.Sheep.Detach()
	if err := h.Wait(); !errors.Is(err, runtime.ErrDetached) {
		t.Fatal(err)
	}
	if err := h.Sheep.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := w.driver(t).Begin(t.Context(), []string{"polly"}); err != nil {
		t.Error(err)
	}
	h.NothingLeft()
	if _, err := os.Stat(filepath.Join(w.stateDir(), runtimetest.Sheep)); err == nil {
		t.Error("its state is left")
	}
}

// autoremove_containers: false keeps the last container, stopped.
func TestKeptContainer(t *testing.T) {
	daemon := testenv.StartContainerd(t)
	w := newWorld(t, daemon)
	w.more = "autoremove_containers: false\n"
	h := w.up(t, "")
	id := w.task(t)
	h.StopRunner()
	if got := strings.TrimSpace(daemon.Ctr(t, namespace, "containers", "ls", "-q")); got != id {
		t.Errorf("the containers are %q, want %q", got, id)
	}
	if got := daemon.Ctr(t, namespace, "tasks", "ls", "-q"); got != "" {
		t.Errorf("the tasks are %q, want none", got)
	}
	h.Load()
	h.Run()
	if got := strings.TrimSpace(daemon.Ctr(t, namespace, "containers", "ls", "-q")); got == id || strings.Contains(got, "\n") {
		t.Errorf("the containers are %q, want one other than %q", got, id)
	}
	h.StopRunner()
	w.more = ""
	h = w.inherit(t)
	h.Load()
	h.NothingLeft()
}

// The disk that containerd keeps images on is full.
func TestFullDisk(t *testing.T) {
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=48m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	t.Setenv("TMPDIR", disk)
	daemon := testenv.StartContainerd(t)
	t.Setenv("TMPDIR", "")
	w := newWorld(t, daemon)
	h := w.up(t, "")
	h.Do("a", "")

	full := filepath.Join(disk, "full")
	fill(t, full)
	large := job.Model{Name: "large", Version: "v1"}
	w.registry.Push(t, "large:v1", testenv.Image(t, w.runner(), w.base, testenv.RandomLayer(t, "weights", 8<<20, 1)))
	err := h.Sheep.Load(t.Context(), large, runtime.Discard)
	var load *runtime.LoadError
	if !errors.As(err, &load) || !strings.Contains(err.Error(), "full") {
		t.Errorf("Load: %v, want to be told that the disk is full", err)
	}
	h.Do("b", "") // the runner goes on
	h.StopRunner()
	// What is removed of the first runner, at once or when containerd collects garbage,
	// makes room for another: that is filled, too.
	files := []string{full}
	for try := range 5 {
		files = append(files, fmt.Sprint(full, try))
		fill(t, files[len(files)-1])
		if err = h.Sheep.Load(t.Context(), model, runtime.Discard); err == nil {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			err = h.Sheep.Run(ctx, runtime.Discard)
			cancel()
		}
		if errors.As(err, &load) {
			break
		}
	}
	if !errors.As(err, &load) || !strings.Contains(err.Error(), "full") {
		t.Errorf("Run: %v, want to be told that the disk is full", err)
	}
	for _, file := range files {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	h.Load()
	h.again()
}

// fill takes all the space that is left.
func fill(t testing.TB, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, 1<<20); len(block) > 0; {
		if _, err := f.Write(block); err != nil {
			block = block[:len(block)/2]
		}
	}
}

// Another runtime, here a program that notes that it was called and calls runc.
func TestOtherRuntime(t *testing.T) {
	daemon := testenv.StartContainerd(t)
	program := filepath.Join(t.TempDir(), "other-runc")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho \"$@\" >>\"$0.called\"\nexec runc \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, daemon)
	w.more = "runtime: " + program + "\n"
	h := w.up(t, "")
	h.Do("a", "")
	h.StopAndClose()
	if called, _ := os.ReadFile(program + ".called"); !strings.Contains(string(called), "create") {
		t.Errorf("the runtime was called with %q", called)
	}
	w.more = "runtime: no-such-runtime\n"
	h = w.inherit(t)
	h.Load()
	err := h.Sheep.Run(t.Context(), runtime.Discard)
	var load *runtime.LoadError
	if !errors.As(err, &load) || !strings.Contains(err.Error(), "no-such-runtime") {
		t.Errorf("Run: %v, want a *runtime.LoadError that names the runtime", err)
	}
	h.Close()
}
