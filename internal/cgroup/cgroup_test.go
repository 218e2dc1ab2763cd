package cgroup

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/testenv"
)

func TestParseGroups(t *testing.T) {
	for _, c := range []struct{ name, mounts, own, v2, memory1 string }{
		{"v2 only",
			"30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
			"0::/system.slice/shepherd.service\n",
			"/sys/fs/cgroup/system.slice/shepherd.service", ""},
		{"v1 beside v2",
			"30 23 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n31 23 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n32 23 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n",
			"4:memory:/a\n3:cpu,cpuacct:/b\n0::/c\n",
			"/sys/fs/cgroup/unified/c", "/sys/fs/cgroup/memory/a"},
		{"part of a hierarchy mounted",
			"30 23 0:26 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
			"0::/docker/x/y\n",
			"/sys/fs/cgroup/y", ""},
		{"our group is not below what is mounted",
			"30 23 0:26 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "0::/docker\n", "", ""},
		{"outside the namespace",
			"30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "0::/../x\n", "", ""},
		{"none", "1 1 8:1 / / rw - ext4 /dev/vda rw\n", "", "", ""},
		{"garbage", " - \n - a b c\n1 2 - cgroup2\n", "0:\n\n:::", "", ""},
	} {
		if g := parseGroups(strings.NewReader(c.mounts), c.own); g.v2 != c.v2 || g.memory1 != c.memory1 {
			t.Errorf("%s: got %+v, want v2 %q, memory %q", c.name, g, c.v2, c.memory1)
		}
	}
}

func TestOpenTakesOnlyItsOwn(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "someone-elses")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if got := Open("ours", []string{dir, "/", "", "/nowhere/ours"}).Dirs(); len(got) != 0 {
		t.Errorf("took up %q", got)
	}
	if got := Open("someone-elses", []string{dir}).Dirs(); !slices.Equal(got, []string{dir}) {
		t.Errorf("got %q, want %q", got, dir)
	}
}

func TestOOMKillsReadsBothVersions(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "memory.events"), []byte("low 0\noom 3\noom_kill 2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "memory.oom_control"), []byte("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if n := (Group{v2: dir}).OOMKills(); n != 2 {
		t.Errorf("v2: got %d, want 2", n)
	}
	if n := (Group{memory1: dir}).OOMKills(); n != 5 {
		t.Errorf("v1: got %d, want 5", n)
	}
	if n := (Group{}).OOMKills(); n != 0 {
		t.Errorf("none: got %d, want 0", n)
	}
}

func TestSharedOOMKills(t *testing.T) {
	dir := t.TempDir()
	if n := (Group{shared: dir}).SharedOOMKills(); n != 0 {
		t.Errorf("%d kills without a counter", n)
	}
	if err := os.WriteFile(filepath.Join(dir, "memory.events"), []byte("low 0\noom 4\noom_kill 3\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if n := (Group{shared: dir}).SharedOOMKills(); n != 3 {
		t.Errorf("%d kills, want 3", n)
	}
	if n := (Group{}).SharedOOMKills(); n != 0 {
		t.Errorf("%d kills of no group", n)
	}
}

// The counter of a scope is removed with it when its last process ends; that of its slice is
// kept.
func TestScopeThatIsGone(t *testing.T) {
	slice := t.TempDir()
	scope := filepath.Join(slice, "shepherd-x.scope")
	if err := os.Mkdir(scope, 0o755); err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{
		filepath.Join(slice, "memory.events"): "oom 4\noom_kill 3\n", filepath.Join(scope, "memory.events"): "oom 1\noom_kill 1\n",
		filepath.Join(scope, "cgroup.procs"): "",
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	g := Open("shepherd-x", []string{scope})
	if own, shared := g.OOMKills(), g.SharedOOMKills(); own != 1 || shared != 3 {
		t.Errorf("%d kills of its own and %d of the slice, want 1 and 3", own, shared)
	}
	if err := os.RemoveAll(scope); err != nil {
		t.Fatal(err)
	}
	if own, shared := g.OOMKills(), g.SharedOOMKills(); own != 0 || shared != 3 {
		t.Errorf("once it is gone, %d kills of its own and %d of the slice, want 0 and 3", own, shared)
	}
}

func TestGroupHoldsAndKillsWhatIsForked(t *testing.T) {
	for _, refused := range []error{nil, unix.ENOSYS, unix.EPERM} {
		t.Run(fmt.Sprint("clone3 ends with ", refused), func(t *testing.T) { holdsAndKills(t, refused) })
	}
}

// holdsAndKills starts processes in a group, where clone3(2) may be refused, as by a
// service's RestrictNamespaces=.
func holdsAndKills(t *testing.T, refused error) {
	name := fmt.Sprintf("shepherd-test-%d", os.Getpid())
	before, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	g := Create(name)
	if len(g.Dirs()) == 0 {
		testenv.Missing(t, "a writable control group", "run the tests as root or in a delegated cgroup")
	}
	t.Cleanup(func() { _ = g.Remove() })
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	cmd := exec.Command("sh", "-c", "setsid sleep 60 & setsid sleep 60 & echo up; wait")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	err = g.Enter(func(fd int) error {
		if fd >= 0 && refused != nil {
			return refused
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: fd >= 0, CgroupFD: fd}
		return cmd.Start()
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	if after, err := os.ReadFile("/proc/self/cgroup"); err != nil || string(after) != string(before) {
		t.Errorf("this process was in\n%sand is in\n%s%v", before, after, err)
	}
	for _, dir := range g.Dirs() {
		if pids := pidsIn(dir); !slices.Contains(pids, cmd.Process.Pid) || slices.Contains(pids, os.Getpid()) {
			t.Errorf("%s holds %v; want %d and not %d", dir, pids, cmd.Process.Pid, os.Getpid())
		}
	}
	if again := Open(name, g.Dirs()); !slices.Equal(again.Dirs(), g.Dirs()) {
		t.Errorf("opened again: %v, want %v", again.Dirs(), g.Dirs())
	}
	if again := Find(name); !slices.Equal(again.Dirs(), g.Dirs()) {
		t.Errorf("found again: %v, want %v", again.Dirs(), g.Dirs())
	}
	g.Kill()
	if err := cmd.Wait(); err == nil {
		t.Error("the process ended by itself")
	}
	for len(g.PIDs()) > 0 {
		g.Kill()
		runtime.Gosched()
	}
	if err := g.Remove(); err != nil {
		t.Error(err)
	}
}

// A process in the subgroup of a unit whose group is delegated creates its groups beside the
// subgroup, not in it.
func TestDelegatedSubgroup(t *testing.T) {
	const role = "SHEPHERD_TEST_OWN_GROUPS"
	if os.Getenv(role) != "" {
		fmt.Println("own:", ownGroups().v2)
		return
	}
	root := ownGroups().v2
	if root == "" {
		testenv.Missing(t, "cgroup v2", "mount it to run this test")
	}
	unit := filepath.Join(root, fmt.Sprintf("shepherd-test-%d.service", os.Getpid()))
	daemon := filepath.Join(unit, "daemon")
	for _, dir := range []string{unit, daemon} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(dir)
	}
	seen := func() string {
		dir, err := os.Open(daemon)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		cmd := exec.Command(os.Args[0], "-test.run=^TestDelegatedSubgroup$", "-test.v")
		cmd.Env = append(os.Environ(), role+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		_, after, _ := strings.Cut(string(out), "own: ")
		own, _, _ := strings.Cut(after, "\n")
		return own
	}
	if got := seen(); got != daemon {
		t.Errorf("without a delegation: got %q, want %q", got, daemon)
	}
	for _, name := range []string{"user.delegate", "trusted.delegate"} {
		if err := unix.Setxattr(unit, name, []byte("1"), 0); err != nil {
			t.Fatalf("mark as delegated: %v", err)
		}
		if got := seen(); got != unit {
			t.Errorf("with %s: got %q, want %q", name, got, unit)
		}
		if err := unix.Removexattr(unit, name); err != nil {
			t.Fatal(err)
		}
	}
}
