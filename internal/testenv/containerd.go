package testenv

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Containerd is a separate containerd for a test: its root, state and socket are in a
// temporary folder, and it ends with the test.
type Containerd struct {
	// Address is the path of its socket.
	Address string
	// Root is its directory for persistent data, State that for running containers.
	Root, State string

	dir      string
	binaries string // the folder its programs are in, searched before PATH
	process  *exec.Cmd
	ended    chan struct{} // closed when the process has ended
	log      *os.File
	small    bool // Root is a separate file system
}

// StartContainerd starts the containerd of Debian's package, or the one in the folder
// SHEPHERD_TEST_CONTAINERD. It needs root.
func StartContainerd(t testing.TB) *Containerd {
	t.Helper()
	if dir := os.Getenv("SHEPHERD_TEST_CONTAINERD"); dir != "" {
		return startContainerd(t, dir)
	}
	return startContainerd(t, filepath.Dir(Command(t, "containerd", "containerd")))
}

// StartContainerd2 starts the containerd 2.x that was built into .cache/bin.
func StartContainerd2(t testing.TB) *Containerd {
	t.Helper()
	return startContainerd(t, Containerd2(t))
}

// StartSmallContainerd is StartContainerd with a disk of size bytes.
func StartSmallContainerd(t testing.TB, size int64) *Containerd {
	t.Helper()
	c := StartContainerd(t)
	c.signal(syscall.SIGTERM)
	for _, dir := range []string{c.Root, c.State} {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(c.Root, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", c.Root, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Fatalf("mount a small disk: %v", err)
	}
	c.small = true
	c.Start(t)
	return c
}

// Containerd2 returns the folder with the programs of containerd 2.x.
func Containerd2(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(moduleRoot(t), ".cache", "bin")
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			Missing(t, "containerd 2.x ("+name+" in .cache/bin)",
				"GOBIN=$PWD/.cache/bin go install github.com/containerd/containerd/v2/cmd/{containerd,containerd-shim-runc-v2,ctr}@v2.3.7")
		}
	}
	return dir
}

// containerdConfig disables plugins that tests of images and tasks do not need, above all CRI,
// which needs a network. A release ignores names that it does not know.
const containerdConfig = `version = 2
root = %q
state = %q
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
  "io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.blockfile",
]
[grpc]
  address = %q
`

func startContainerd(t testing.TB, binaries string) *Containerd {
	t.Helper()
	if os.Geteuid() != 0 {
		Missing(t, "root", "containerd's tests mount file systems: run them as root")
	}
	Command(t, "runc", "runc")
	// Not t.TempDir: a socket's path has at most 107 bytes.
	dir, err := os.MkdirTemp("", "ctd")
	if err != nil {
		t.Fatal(err)
	}
	c := &Containerd{
		Address:  filepath.Join(dir, "containerd.sock"),
		Root:     filepath.Join(dir, "root"),
		State:    filepath.Join(dir, "state"),
		dir:      dir,
		binaries: binaries,
	}
	config := fmt.Sprintf(containerdConfig, c.Root, c.State, c.Address)
	if err := os.WriteFile(filepath.Join(dir, "config.toml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if c.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.end(t) })
	c.Start(t)
	return c
}

// Start starts it again after Kill, on the same root.
func (c *Containerd) Start(t testing.TB) {
	t.Helper()
	cmd := exec.Command(filepath.Join(c.binaries, "containerd"), "-c", filepath.Join(c.dir, "config.toml"), "-l", "debug")
	cmd.Env = append(os.Environ(), "PATH="+c.binaries+":"+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = c.log, c.log
	// If the test binary is killed, its containerd is killed, too.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	done := make(chan struct{})
	c.process, c.ended = cmd, done
	go func() {
		// Pdeathsig refers to the thread that started the process, so the thread
		// must live as long as the process.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
		}
		close(done)
	}()
	if err := <-started; err != nil {
		t.Fatalf("start containerd: %v", err)
	}
	deadline := time.After(2 * time.Minute)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if conn, err := net.Dial("unix", c.Address); err == nil {
			conn.Close()
			if exec.Command(filepath.Join(c.binaries, "ctr"), "-a", c.Address, "version").Run() == nil {
				return
			}
		}
		select {
		case <-done:
			t.Fatalf("containerd ended at once: %s", c.lastLog())
		case <-deadline:
			t.Fatalf("containerd does not answer: %s", c.lastLog())
		case <-tick.C:
		}
	}
}

// Kill kills it with SIGKILL and waits until it has ended. Its tasks continue.
func (c *Containerd) Kill(t testing.TB) {
	t.Helper()
	c.signal(syscall.SIGKILL)
}

// Freeze stops it with SIGSTOP until Thaw or the test's end: it accepts connections
// and answers nothing.
func (c *Containerd) Freeze(t testing.TB) {
	t.Helper()
	if err := c.process.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatalf("freeze containerd: %v", err)
	}
	process := c.process.Process
	t.Cleanup(func() { _ = process.Signal(syscall.SIGCONT) }) // it may have ended by then
}

// Thaw continues it after Freeze.
func (c *Containerd) Thaw(t testing.TB) {
	t.Helper()
	if err := c.process.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatalf("thaw containerd: %v", err)
	}
}

// signal sends a signal to the process and waits until it has ended.
func (c *Containerd) signal(s syscall.Signal) {
	if c.process == nil || c.process.Process == nil {
		return
	}
	_ = c.process.Process.Signal(s) // it may have ended already
	select {
	case <-c.ended:
	case <-time.After(time.Minute):
		_ = c.process.Process.Kill()
		<-c.ended
	}
}

func (c *Containerd) end(t testing.TB) {
	c.signal(syscall.SIGTERM)
	c.log.Close()
	c.awaitShims(t)
	if c.small {
		if err := syscall.Unmount(c.Root, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount the small disk: %v", err)
		}
	}
	for _, m := range c.Mounts(t) {
		t.Errorf("containerd leaves %s mounted", m)
		syscall.Unmount(m, syscall.MNT_DETACH)
	}
	if t.Failed() && testing.Verbose() {
		t.Logf("containerd's log ends with: %s", c.lastLog())
	}
	if err := os.RemoveAll(c.dir); err != nil {
		t.Errorf("remove containerd's folder: %v", err)
	}
}

// awaitShims waits for containerd's shims, which clean up after containerd has exited.
func (c *Containerd) awaitShims(t testing.TB) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		var up []string
		commands, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, path := range commands {
			command, _ := os.ReadFile(path)
			if bytes.Contains(command, []byte("containerd-shim")) && bytes.Contains(command, []byte(c.dir+"/")) {
				up = append(up, strings.ReplaceAll(string(command), "\x00", " "))
			}
		}
		if len(up) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("containerd leaves %q", up)
			return
		}
	}
}

func (c *Containerd) lastLog() string {
	data, _ := os.ReadFile(filepath.Join(c.dir, "log"))
	return string(data[max(0, len(data)-4000):])
}

// Ctr runs containerd's command line in a namespace and returns what it prints.
func (c *Containerd) Ctr(t testing.TB, namespace string, args ...string) string {
	t.Helper()
	cmd := exec.Command(filepath.Join(c.binaries, "ctr"), append([]string{"-a", c.Address, "-n", namespace}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("ctr %s: %v: %s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return string(out)
}

// Leftovers lists the objects of a namespace that a finished run must not leave: containers,
// tasks, leases and active snapshots, and their mounts and cgroups. Images, their content and
// their committed snapshots are not leftovers, nor is the lease of a pull that did not complete:
// it keeps the fetched content for the next pull.
func (c *Containerd) Leftovers(t testing.TB, namespace string) []string {
	t.Helper()
	var found []string
	list := func(what string, keep func(string) bool, args ...string) {
		for line := range strings.Lines(c.Ctr(t, namespace, args...)) {
			if line = strings.TrimSpace(line); line != "" && keep(line) {
				found = append(found, what+" "+line)
			}
		}
	}
	all := func(string) bool { return true }
	list("container", all, "containers", "ls", "-q")
	list("task", all, "tasks", "ls", "-q")
	images := strings.Fields(c.Ctr(t, namespace, "images", "ls", "-q"))
	list("lease", func(line string) bool {
		if strings.HasPrefix(line, "ID ") {
			return false
		}
		_, pull, ok := strings.Cut(line, "io.shepherd.pull=")
		pull, _, _ = strings.Cut(pull, ",")
		return !ok || slices.Contains(images, pull)
	}, "leases", "ls")
	list("snapshot", func(line string) bool { return strings.HasSuffix(line, "Active") || strings.HasSuffix(line, "View") }, "snapshots", "ls")
	for _, m := range c.Mounts(t) {
		found = append(found, "mount "+m)
	}
	slices.Sort(found)
	return found
}

// Mounts lists the mount points below its folders.
func (c *Containerd) Mounts(t testing.TB) []string {
	t.Helper()
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var mounts []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 4 && strings.HasPrefix(fields[4], c.dir+"/") && fields[4] != c.Root {
			mounts = append(mounts, fields[4])
		}
	}
	slices.Reverse(mounts) // the innermost first
	return mounts
}
