package testenv

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// debianPackages are in the root of every Debian, beside the essential ones.
var debianPackages = []string{"systemd", "systemd-sysv", "dbus", "containerd", "runc", "ca-certificates"}

// DebianRoot unpacks a fresh Debian into a temporary folder and returns its path. It has the
// essential packages, systemd, containerd and runc, but not shepherd. mmdebstrap builds the
// root once, and it is kept in .cache.
func DebianRoot(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		Missing(t, "root", "tests on a Debian of their own unpack its devices and boot it: run them as root")
	}
	archive := debianArchive(t)
	dir := t.TempDir()
	// A folder that every user can enter, unlike t.TempDir.
	root := filepath.Join(dir, "root")
	if err := errors.Join(os.Mkdir(root, 0o755), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("tar", "-xpf", archive, "-C", root).CombinedOutput(); err != nil {
		t.Fatalf("unpack %s: %v: %s", archive, err, out)
	}
	return root
}

// debianArchive creates the root's archive, unless it exists.
func debianArchive(t testing.TB) string {
	t.Helper()
	args := []string{
		"--variant=minbase", "--include=" + strings.Join(debianPackages, ","),
		`--aptopt=Acquire::Retries "5"`, `--aptopt=Acquire::Languages "none"`,
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-include=/usr/share/doc/shepherd*",
		"--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-include=/usr/share/man/*/shepherd*",
		"--dpkgopt=path-exclude=/usr/share/locale/*",
		"bookworm",
	}
	hash := sha256.Sum256([]byte(strings.Join(args, "\x00")))
	cache := filepath.Join(moduleRoot(t), ".cache")
	archive := filepath.Join(cache, "debian-"+hex.EncodeToString(hash[:6])+".tar")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	// Tests of several packages run at once; one creates it, the others wait.
	lock, err := os.OpenFile(filepath.Join(cache, "debian.lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(archive); err == nil {
		return archive
	}
	mmdebstrap := Command(t, "mmdebstrap", "mmdebstrap")
	made := archive + ".new"
	out, err := exec.Command(mmdebstrap, append(args, made, "--format=tar")...).CombinedOutput()
	if err == nil {
		err = os.Rename(made, archive)
	}
	if err != nil {
		_ = os.Remove(made)
		t.Fatalf("make a Debian: %v: %s", err, tail(out))
	}
	return archive
}

func tail(out []byte) []byte { return out[max(0, len(out)-4096):] }

// Debian is a booted Debian: systemd runs in a container that ends with the
// test, in a network namespace with only a loopback interface.
type Debian struct {
	// Root is its root folder.
	Root string

	leader  int // systemd's process
	console bytes.Buffer
	nspawn  *exec.Cmd
	ended   chan struct{}
	groups  []string
}

// BootDebian boots the Debian in root, a folder that DebianRoot returned, by
// systemd-nspawn, and returns when it is up.
func BootDebian(t testing.TB, root string) *Debian {
	t.Helper()
	d := &Debian{Root: root}
	t.Cleanup(d.end)
	d.boot(t)
	return d
}

// Crash kills all its processes at once, like a power failure, and boots it again.
func (d *Debian) Crash(t testing.TB) {
	t.Helper()
	d.end()
	d.boot(t)
}

func (d *Debian) boot(t testing.TB) {
	t.Helper()
	nspawn := Command(t, "systemd-nspawn", "systemd-container")
	Command(t, "nsenter", "util-linux")
	name := "shepherd-test-" + strconv.Itoa(os.Getpid()) + "-" + filepath.Base(filepath.Dir(d.Root))
	d.groups = newGroups(t, name)
	d.leader = 0
	d.console.Reset()
	d.writeGroupsUnit(t)
	// It joins the control groups before it starts anything: all processes and
	// groups inside are then in them, and can be removed.
	script := "for g in " + strings.Join(d.groups, " ") + `; do echo $$ >$g/cgroup.procs || exit 1; done; exec "$@"`
	d.nspawn = exec.Command("sh", "-c", script, "sh", nspawn,
		"--register=no", "--keep-unit", "--boot", "--private-network", "--console=pipe", "--quiet",
		"--directory="+d.Root, "--machine="+shorten(name), "--kill-signal=SIGKILL",
		"--system-call-filter=@keyring bpf") // for runc
	d.nspawn.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "SYSTEMD_LOG_LEVEL=warning"}
	d.nspawn.Stdout, d.nspawn.Stderr = &d.console, &d.console
	d.nspawn.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.nspawn.Start(); err != nil {
		t.Fatal(err)
	}
	d.ended = make(chan struct{})
	go func() {
		_ = d.nspawn.Wait()
		close(d.ended)
	}()

	d.await(t, "systemd runs", func() bool { return d.findLeader() })
	d.await(t, "Debian is up", func() bool {
		out, _ := d.Try("systemctl", "is-system-running")
		return strings.Contains(out, "running") || strings.Contains(out, "degraded")
	})
}

// writableGroups is a unit that is started before all services: systemd-nspawn mounts the v1
// control groups read-only.
const writableGroups = `[Unit]
Description=Control groups that can be changed
DefaultDependencies=no
Before=sysinit.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'for g in /sys/fs/cgroup/*; do mountpoint -q $$g && mount -o remount,bind,rw $$g; done; true'
`

func (d *Debian) writeGroupsUnit(t testing.TB) {
	t.Helper()
	units := filepath.Join(d.Root, "etc/systemd/system")
	wants := filepath.Join(units, "sysinit.target.wants")
	err := os.MkdirAll(wants, 0o755)
	if err == nil {
		err = os.WriteFile(filepath.Join(units, "writable-groups.service"), []byte(writableGroups), 0o644)
	}
	if err == nil {
		err = os.Symlink("../writable-groups.service", filepath.Join(wants, "writable-groups.service"))
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
}

// shorten makes a host name.
func shorten(name string) string {
	sum := sha256.Sum256([]byte(name))
	return "debian-" + hex.EncodeToString(sum[:4])
}

// await waits for a condition that takes a second or two.
func (d *Debian) await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		select {
		case <-d.ended:
			t.Fatalf("Debian ended before %s: %s", what, d.console.Bytes())
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// findLeader looks for systemd among systemd-nspawn's children.
func (d *Debian) findLeader() bool {
	pid := strconv.Itoa(d.nspawn.Process.Pid)
	children, _ := os.ReadFile("/proc/" + pid + "/task/" + pid + "/children")
	for _, child := range strings.Fields(string(children)) {
		if name, _ := os.ReadFile("/proc/" + child + "/comm"); strings.TrimSpace(string(name)) == "systemd" {
			d.leader, _ = strconv.Atoi(child)
			return true
		}
	}
	return false
}

// Command is a command to run in it, as root.
func (d *Debian) Command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{
		"-t", strconv.Itoa(d.leader), "-m", "-u", "-i", "-n", "-p", "-C", "--", name}, args...)...)
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8",
		"DEBIAN_FRONTEND=noninteractive", "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0",
	}
	cmd.Dir = "/"
	return cmd
}

// Try runs a command in it and returns its output.
func (d *Debian) Try(name string, args ...string) (string, error) {
	out, err := d.Command(name, args...).CombinedOutput()
	return string(out), err
}

// Run is Try for commands that must succeed.
func (d *Debian) Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := d.Try(name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v:\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// Dial connects to an address of its network.
func (d *Debian) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return inNetwork(d, func() (net.Conn, error) { return new(net.Dialer).DialContext(ctx, network, address) })
}

// Listen listens on an address of its network.
func (d *Debian) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	return inNetwork(d, func() (net.Listener, error) { return new(net.ListenConfig).Listen(ctx, network, address) })
}

// Path returns the path on this machine of one of its files, those in /run included.
func (d *Debian) Path(path string) string { return fmt.Sprintf("/proc/%d/root%s", d.leader, path) }

// inNetwork opens a socket in its network.
func inNetwork[T any](d *Debian, open func() (T, error)) (T, error) {
	type opened struct {
		socket T
		err    error
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", d.leader))
	if err != nil {
		return opened{}.socket, err
	}
	defer ns.Close()
	done := make(chan opened, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- opened{err: err}
			return
		}
		socket, err := open()
		done <- opened{socket, err}
	}()
	r := <-done
	return r.socket, r.err
}

// Client is an HTTP client in its network. Each request has a connection of its
// own.
func (d *Debian) Client() *http.Client {
	return &http.Client{Timeout: time.Minute, Transport: &http.Transport{DialContext: d.Dial, DisableKeepAlives: true}}
}

// end kills all its processes and removes its control groups. It may be called again.
func (d *Debian) end() {
	if d.ended != nil {
		if d.leader != 0 {
			_ = syscall.Kill(d.leader, syscall.SIGKILL)
		} else {
			_ = syscall.Kill(-d.nspawn.Process.Pid, syscall.SIGKILL)
		}
		<-d.ended
		d.ended = nil
	}
	for _, g := range d.groups {
		removeGroup(g)
	}
	d.groups = nil
}

// newGroups creates a control group of the name in each hierarchy, below the one this process
// is in.
func newGroups(t testing.TB, name string) []string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	var groups []string
	for line := range strings.Lines(string(text)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		hierarchy := "/sys/fs/cgroup/" + strings.TrimPrefix(parts[1], "name=")
		if parts[1] == "" {
			hierarchy = "/sys/fs/cgroup"
			if _, err := os.Stat(hierarchy + "/unified"); err == nil {
				hierarchy += "/unified"
			}
		}
		parent := filepath.Join(hierarchy, parts[2])
		if _, err := os.Stat(filepath.Join(parent, "cgroup.procs")); err != nil {
			continue
		}
		group := filepath.Join(parent, name)
		if err := os.Mkdir(group, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			Missing(t, "a control group of its own", "systemd needs one to boot in: "+err.Error())
		}
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} { // empty at first, and then unusable
			if value, err := os.ReadFile(filepath.Join(parent, f)); err == nil && strings.Contains(parts[1], "cpuset") {
				_ = os.WriteFile(filepath.Join(group, f), value, 0o644)
			}
		}
		groups = append(groups, group)
	}
	return groups
}

// removeGroup removes a control group and its subgroups, when their killed processes have
// ended.
func removeGroup(group string) {
	var inside []string
	_ = filepath.WalkDir(group, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			inside = append(inside, path)
		}
		return nil
	})
	for _, path := range slices.Backward(inside) {
		for range 200 {
			if err := unix.Rmdir(path); !errors.Is(err, unix.EBUSY) {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}
