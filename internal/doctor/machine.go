package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/config/size"
	"github.com/iterait/shepherd/internal/mounts"
)

// Programs examines whether the programs that sheep need are installed.
type Programs struct {
	Title string
	// Needed maps their names, or paths, to how to install them.
	Needed map[string]string
}

// Name implements Check.
func (p Programs) Name() string { return p.Title }

// Examine implements Check.
func (p Programs) Examine(ctx context.Context) []Finding {
	var findings []Finding
	for _, name := range sorted(p.Needed) {
		path, err := exec.LookPath(name)
		switch {
		case err == nil:
			findings = append(findings, ok("%s%s", path, versionOf(ctx, path)))
		case errors.Is(err, fs.ErrPermission):
			findings = append(findings, failure("make it executable", "%s cannot be executed: %v", name, err))
		default:
			findings = append(findings, failure(p.Needed[name], "%s is not on PATH (%s)", name, os.Getenv("PATH")))
		}
	}
	return findings
}

// versionOf returns the first line of a program's --version, or "".
func versionOf(ctx context.Context, path string) string {
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if err != nil || line == "" {
		return ""
	}
	return ", " + line
}

// Cgroups examines the control groups, which resource limits, clean-up and detection of
// memory kills need. Root is their mount point, /sys/fs/cgroup.
type Cgroups struct{ Root string }

// Name implements Check.
func (Cgroups) Name() string { return "cgroups" }

// Examine implements Check.
func (c Cgroups) Examine(context.Context) []Finding {
	wanted := []string{"cpu", "memory", "pids"}
	var st unix.Statfs_t
	if err := unix.Statfs(c.Root, &st); err != nil {
		return []Finding{failure("mount the control groups", "no control groups at %s: %v", c.Root, err)}
	}
	text, err := os.ReadFile(filepath.Join(c.Root, "cgroup.controllers"))
	if err == nil {
		controllers := strings.Fields(string(text))
		if missing := without(wanted, controllers); len(missing) > 0 {
			return []Finding{failure("enable them in the kernel, or give this container all control groups of its host",
				"cgroup v2 lacks the controllers %s: limits of sheep cannot be kept", strings.Join(missing, ", "))}
		}
		return append([]Finding{ok("v2, with %s", strings.Join(wanted, ", "))}, writable(c.Root)...)
	}
	var found []string
	for _, name := range append(slices.Clone(wanted), "devices") {
		if _, err := os.Stat(filepath.Join(c.Root, name, "cgroup.procs")); err == nil {
			found = append(found, name)
		}
	}
	wanted = append(wanted, "devices")
	if missing := without(wanted, found); len(missing) > 0 {
		return []Finding{failure("mount them below "+c.Root+", or boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1)",
			"cgroup v1 lacks the hierarchies %s: limits of sheep cannot be kept", strings.Join(missing, ", "))}
	}
	findings := []Finding{ok("v1, with %s", strings.Join(wanted, ", "))}
	if _, err := os.Stat(filepath.Join(c.Root, "memory", "memory.memsw.limit_in_bytes")); err != nil {
		findings = append(findings, warning("boot with swapaccount=1, or without swap", "swap is not accounted: a sheep may use more memory than its limit"))
	}
	return append(findings, writable(filepath.Join(c.Root, "memory"))...)
}

// writable examines whether groups can be created.
func writable(dir string) []Finding {
	if err := unix.Access(dir, unix.W_OK); err != nil {
		return []Finding{warning("run shepherdd as root, or with Delegate=yes",
			"no control group can be made in %s (%v): sheep run without limits, and what a bare runner leaves behind is found less surely", dir, err)}
	}
	return nil
}

func without(wanted, there []string) []string {
	var missing []string
	for _, w := range wanted {
		if !slices.Contains(there, w) {
			missing = append(missing, w)
		}
	}
	return missing
}

// Kernel examines whether the kernel has the system calls that container sheep need.
type Kernel struct{}

// Name implements Check.
func (Kernel) Name() string { return "kernel" }

// Examine implements Check.
func (Kernel) Examine(context.Context) []Finding {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return []Finding{warning("", "the kernel's release cannot be read: %v", err)}
	}
	release := unix.ByteSliceToString(name.Release[:])
	for _, call := range []struct {
		name string
		try  func() (fd int, err error)
	}{
		{"pidfd_open", func() (int, error) { return unix.PidfdOpen(os.Getpid(), 0) }},
		{"openat2", func() (int, error) {
			return unix.Openat2(unix.AT_FDCWD, "/", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
		}},
	} {
		fd, err := call.try()
		if err != nil {
			return []Finding{failure("container sheep need Linux 5.6 or later, and no system call filter (seccomp) that forbids this", "Linux %s refuses %s: %v", release, call.name, err)}
		}
		unix.Close(fd)
	}
	return []Finding{ok("Linux %s", release)}
}

// StateOwner examines the owner of the state directory of systemd's service: if it is not
// the service's user, systemd changes the owner of everything in it.
type StateOwner struct {
	Path string
	UID  int // of the service
}

// Name implements Check.
func (StateOwner) Name() string { return "owner" }

// Examine implements Check.
func (s StateOwner) Examine(context.Context) []Finding {
	var st unix.Stat_t
	if err := unix.Stat(s.Path, &st); err != nil {
		return nil // Disks reports it
	}
	if int(st.Uid) != s.UID || int(st.Gid) != s.UID {
		return []Finding{warning(fmt.Sprintf("chown %d:%d %s", s.UID, s.UID, s.Path),
			"%s belongs to the user %d and the group %d: systemd changes the owner of everything in it, objects and models included, whenever the service starts", s.Path, st.Uid, st.Gid)}
	}
	return []Finding{ok("%s belongs to the service", s.Path)}
}

// Disks examines the free space of the directories that are written to.
type Disks struct {
	// Paths are the directories, by configuration key.
	Paths map[string]string
	// Unmounted returns the mount point that a path is on, if nothing is mounted there;
	// nil means mounts.Missing.
	Unmounted func(path string) (mountPoint string, err error)
}

// The least free space that a disk should have.
const (
	lowBytes   = 5 << 30
	fullBytes  = 256 << 20
	lowPercent = 10
)

// Name implements Check.
func (Disks) Name() string { return "disk" }

// Examine implements Check.
func (d Disks) Examine(context.Context) []Finding {
	var findings []Finding
	on := make(map[unix.Fsid][]string) // the paths on each file system
	var order []unix.Fsid
	unmounted := d.Unmounted
	if unmounted == nil {
		unmounted = mounts.Missing
	}
	for _, what := range sorted(d.Paths) {
		if point, err := unmounted(d.Paths[what]); err == nil && point != "" {
			findings = append(findings, failure("mount "+point, "%s (%s) lies on %s, which is not mounted though %s or a mount unit lists it: the daemon does not start before it is", what, d.Paths[what], point, mounts.Table))
			continue
		}
		at, problem := usable(what, d.Paths[what])
		var st unix.Statfs_t
		if problem == nil && unix.Statfs(at, &st) != nil {
			problem = &Finding{Level: Failure, Message: fmt.Sprintf("%s (%s): its disk does not answer", what, at), Next: "see what the system log says of the disk"}
		}
		if problem != nil {
			findings = append(findings, *problem)
			continue
		}
		if on[st.Fsid] == nil {
			order = append(order, st.Fsid)
		}
		on[st.Fsid] = append(on[st.Fsid], what)
	}
	for _, disk := range order {
		whose := on[disk]
		at, _ := existing(d.Paths[whose[0]])
		var st unix.Statfs_t
		if unix.Statfs(at, &st) == nil {
			findings = append(findings, judgeSpace(fmt.Sprintf("%s (%s)", strings.Join(whose, ", "), d.Paths[whose[0]]), st))
		}
	}
	return findings
}

// usable returns the directory that is written to, or the problem with it.
func usable(what, path string) (at string, problem *Finding) {
	at, err := existing(path)
	if err == nil {
		err = unix.Access(at, unix.W_OK|unix.X_OK)
	}
	var f Finding
	switch {
	case err == nil:
		return at, nil
	case errors.Is(err, unix.EROFS):
		f = failure("mount it writable", "%s (%s) is on a read-only file system", what, path)
	default:
		f = failure("give the user that shepherd runs as write access to "+at, "%s (%s) cannot be written: %v", what, path, err)
	}
	return "", &f
}

func judgeSpace(what string, st unix.Statfs_t) Finding {
	free, total := int64(st.Bavail)*st.Bsize, int64(st.Blocks)*st.Bsize
	percent := 100.0
	if total > 0 {
		percent = 100 * float64(free) / float64(total)
	}
	text := fmt.Sprintf("%s: %s of %s free (%.0f %%)", what, round(free), round(total), percent)
	const next = "free some space, or move it to a larger disk"
	switch {
	case free < fullBytes && (total >= fullBytes || percent < lowPercent):
		return failure(next, "the disk is full: %s", text)
	case st.Files > 0 && st.Ffree == 0:
		return failure("remove small files there", "the disk has no inode left: %s", text)
	case percent < lowPercent && free < 100<<30 || free < lowBytes && total >= lowBytes:
		return warning(next, "the disk is nearly full: %s", text)
	}
	return ok("%s", text)
}

// existing returns the path, or its nearest parent that exists: the rest is created when it
// is needed.
func existing(path string) (string, error) {
	for {
		_, err := os.Stat(path)
		if err == nil || !errors.Is(err, fs.ErrNotExist) || filepath.Dir(path) == path {
			return path, err
		}
		path = filepath.Dir(path)
	}
}

// round keeps at most three digits.
func round(n int64) string {
	for _, unit := range []int64{1 << 40, 1 << 30, 1 << 20, 1 << 10} {
		if n >= 10*unit {
			return size.Bytes(n / unit * unit).String()
		}
	}
	return size.Bytes(n).String()
}

// Limits examines the process's resource limits.
type Limits struct{ Sheep int }

// Name implements Check.
func (Limits) Name() string { return "limits" }

// Examine implements Check.
func (l Limits) Examine(context.Context) []Finding {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return []Finding{warning("", "the limit of open files cannot be read: %v", err)}
	}
	need := uint64(1024 + 64*l.Sheep)
	if files.Max < need {
		return []Finding{warning(fmt.Sprintf("raise it (LimitNOFILE= in the unit, ulimit -Hn in a shell) to %d or more", need),
			"a process may have %d files open, which many clients and transfers at once use up", files.Max)}
	}
	return []Finding{ok("a process may have %d files open", files.Max)}
}

func sorted[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
