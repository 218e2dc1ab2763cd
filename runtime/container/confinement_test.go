package container_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/apparmor"

	"github.com/iterait/shepherd/internal/claims"
	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/runtime"
)

// unified reports whether this machine has cgroup v2 alone.
func unified() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

// scopes reports whether containers' groups are systemd's to make.
func scopes() bool {
	_, err := os.Stat("/run/systemd/system")
	return err == nil && unified()
}

// process is the first process of the world's one container.
func (w *world) process(t testing.TB) int {
	t.Helper()
	listed := w.daemon.Ctr(t, namespace, "tasks", "ls")
	found := regexp.MustCompile(`(?m)^\S+ +([1-9][0-9]*) +RUNNING$`).FindAllStringSubmatch(strings.ReplaceAll(listed, "\r", ""), -1)
	if len(found) != 1 {
		t.Fatalf("the tasks are %q, want one", listed)
	}
	pid, err := strconv.Atoi(found[0][1])
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func ofProcess(t testing.TB, pid int, file string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), file))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// A container's processes are in a control group of its own below shepherd.slice with
// the sheep's limit: a scope where systemd manages cgroup v2, else a group in each
// hierarchy.
func TestControlGroup(t *testing.T) { controlGroup(t, testenv.StartContainerd(t)) }

func TestControlGroupContainerd2(t *testing.T) { controlGroup(t, testenv.StartContainerd2(t)) }

func controlGroup(t *testing.T, daemon *testenv.Containerd) {
	w := newWorld(t, daemon)
	w.more = "memory: 67108864\n"
	limit := "memory.limit_in_bytes"
	if unified() {
		w.more += "oom_group: true\n"
		limit = "memory.max"
	}
	h := w.up(t, "")
	pid := w.process(t)
	want := "/shepherd.slice/shepherd-" + w.lives()[0]
	if scopes() {
		want += ".scope"
	}
	folder := ""
	for line := range strings.Lines(ofProcess(t, pid, "cgroup")) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if root := filepath.Join("/sys/fs/cgroup", parts[1]); unified() || parts[1] == "memory" {
			if folder = root + parts[2]; parts[2] != want {
				t.Errorf("its control group is %s, want %s", parts[2], want)
			}
		}
	}
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(folder, name))
		if err != nil {
			t.Error(err)
		}
		return strings.TrimSpace(string(text))
	}
	if got := read(limit); got != "67108864" {
		t.Errorf("%s is %s", limit, got)
	}
	if unified() {
		if got := read("memory.oom.group"); got != "1" {
			t.Errorf("memory.oom.group is %q", got)
		}
		if got := read("memory.swap.max"); got != "0" {
			t.Errorf("memory.swap.max is %q", got)
		}
	}
	if scopes() {
		unit := filepath.Base(want)
		out, err := exec.Command("systemctl", "show", "--property=ActiveState,Slice,MemoryMax", unit).CombinedOutput()
		if text := string(out); err != nil || !strings.Contains(text, "ActiveState=active") || !strings.Contains(text, "Slice=shepherd.slice") || !strings.Contains(text, "MemoryMax=67108864") {
			t.Errorf("systemctl show %s: %v\n%s", unit, err, out)
		}
	}
	h.StopAndClose()
	if scopes() {
		// A scope whose container is gone is not listed, not even as failed.
		out, err := exec.Command("systemctl", "list-units", "--all", "--plain", "--no-legend", filepath.Base(want)).CombinedOutput()
		if err != nil || strings.TrimSpace(string(out)) != "" {
			t.Errorf("systemd knows of %s, %v", out, err)
		}
	}
}

// AppArmor's profile confines containers exactly where the machine has AppArmor.
func TestAppArmor(t *testing.T) {
	claims.Hold(t, "M1")
	appArmor(t, testenv.StartContainerd(t))
}

func TestAppArmorContainerd2(t *testing.T) { appArmor(t, testenv.StartContainerd2(t)) }

func appArmor(t *testing.T, daemon *testenv.Containerd) {
	w := newWorld(t, daemon)
	h := w.up(t, "")
	const profile = "shepherd-default"
	info := w.daemon.Ctr(t, namespace, "containers", "info", w.task(t))
	if got := strings.Contains(info, `"apparmorProfile": "`+profile+`"`); got != apparmor.HostSupports() {
		t.Errorf("AppArmor: machine %t, container %t:\n%s", apparmor.HostSupports(), got, info)
	}
	if apparmor.HostSupports() {
		if got := strings.TrimSpace(ofProcess(t, w.process(t), "attr/current")); got != profile+" (enforce)" {
			t.Errorf("the runner is confined by %q", got)
		}
	}
	// The daemon's, the shim's and the runtime's signals get through.
	h.Do("a", "")
	h.StopAndClose()
}

// With oom_group the kernel kills all of a container together; with cgroup v1, which
// cannot, the sheep says so.
func TestOOMGroup(t *testing.T)            { oomGroup(t, testenv.StartContainerd(t)) }
func TestOOMGroupContainerd2(t *testing.T) { oomGroup(t, testenv.StartContainerd2(t)) }

func oomGroup(t *testing.T, daemon *testenv.Containerd) {
	w := newWorld(t, daemon)
	w.more = "memory: 67108864\noom_group: true\n"
	if unified() {
		h := w.up(t, "")
		h.Send("a", "starve 256")
		if exit := h.Exit(); !exit.OutOfMemory || exit.Lost || exit.Stopped || !strings.Contains(exit.Error(), "out of memory") {
			t.Errorf("got %+v, want out of memory", exit)
		}
		h.again()
		return
	}
	w.addModel(t, model, "")
	h := w.inherit(t)
	h.Load()
	err := h.Sheep.Run(t.Context(), runtime.Discard)
	var load *runtime.LoadError
	if !errors.As(err, &load) || !strings.Contains(err.Error(), "oom_group") || !strings.Contains(err.Error(), "memory.oom.group needs cgroup v2; leave it out") {
		t.Errorf("Run: %v, want a *runtime.LoadError that names the key", err)
	}
	h.Close()
}
