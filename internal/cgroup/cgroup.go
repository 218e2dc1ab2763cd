// Package cgroup creates control groups for a runner if the host allows it, so that all its
// processes can be found and killed together, and so that it is known when the kernel killed
// it for lack of memory. A host may have cgroup v2, v1, both, or none that is writable; a
// Group uses what is available and is never required for running.
package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/durable"
)

// Group is one runner's control groups: at most one in the v2 hierarchy and one
// in the v1 memory hierarchy. The zero Group is that of a host that allows none.
type Group struct {
	v2, memory1 string // folders, empty where there is none
	// shared is the v2 group that counts the memory of the runner together with that of
	// others, if none counts its own, or if systemd removes that one as soon as its last
	// process has ended.
	shared string
}

// Create creates the groups, called name, below the groups that this process is in.
// Groups that the host does not allow are left out.
func Create(name string) Group {
	var g Group
	parents := ownGroups()
	if parents.v2 != "" {
		enableMemory(parents.v2)
		g.v2 = makeGroup(parents.v2, name)
	}
	if g.v2 == "" || !exists(filepath.Join(g.v2, "memory.events")) {
		if parents.memory1 != "" {
			g.memory1 = makeGroup(parents.memory1, name)
		}
	}
	if !exists(filepath.Join(g.v2, "memory.events")) && g.memory1 == "" {
		for dir := parents.v2; len(dir) > 1; dir = filepath.Dir(dir) {
			if exists(filepath.Join(dir, "memory.events")) {
				g.shared = dir
				break
			}
		}
	}
	return g
}

// Open adopts the groups in the folders that an earlier process's Create
// returned by Dirs. A folder that is not called name, or NAME.scope where systemd
// created it, or does not exist, is left out.
func Open(name string, dirs []string) Group {
	var g Group
	for _, dir := range dirs {
		switch {
		case strings.TrimSuffix(filepath.Base(dir), ".scope") != name || !exists(filepath.Join(dir, "cgroup.procs")):
		case exists(filepath.Join(dir, "tasks")):
			g.memory1 = dir
		default:
			g.v2 = dir
			if parent := filepath.Dir(dir); filepath.Ext(dir) == ".scope" && exists(filepath.Join(parent, "memory.events")) {
				g.shared = parent
			}
		}
	}
	return g
}

// Find adopts the groups called name below the groups that this process is in, without the
// folders that Create returned.
func Find(name string) Group {
	parents := ownGroups()
	var dirs []string
	for _, parent := range parents.Dirs() {
		dirs = append(dirs, filepath.Join(parent, name))
	}
	return Open(name, dirs)
}

// Of adopts the groups that the process pid is in, if they are called name.
func Of(pid int, name string) Group {
	own, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cgroup"))
	if err != nil {
		return Group{}
	}
	return Open(name, groupsIn(string(own)).Dirs())
}

// Dirs returns the folders of the groups; there may be none.
func (g Group) Dirs() []string {
	return slices.DeleteFunc([]string{g.v2, g.memory1}, func(dir string) bool { return dir == "" })
}

// Enter calls start, which starts one process by clone with the descriptor it is
// given (CLONE_INTO_CGROUP; -1 means none), such that the process is in the
// groups from its first instruction. It calls start again, with -1, if that fails
// because the descriptor is refused. It must be called on a locked OS thread.
func (g Group) Enter(start func(fd int) error) error {
	if g.memory1 != "" {
		tid := strconv.Itoa(unix.Gettid())
		if writeFile(filepath.Join(g.memory1, "tasks"), tid) == nil { // a forked process inherits its thread's group
			defer func() { _ = writeFile(filepath.Join(filepath.Dir(g.memory1), "tasks"), tid) }()
		}
	}
	if g.v2 == "" {
		return start(-1)
	}
	dir, err := os.Open(g.v2)
	if err != nil {
		return start(-1)
	}
	defer dir.Close()
	err = start(int(dir.Fd()))
	for _, refused := range []error{unix.ENOSYS, unix.EINVAL, unix.EACCES, unix.EPERM, unix.EBUSY, unix.EOPNOTSUPP} {
		if errors.Is(err, refused) { // by the kernel, a filter of system calls or the group's rules
			return g.startInside(start)
		}
	}
	return err
}

// startInside moves this process into the v2 group while it starts the other, which then is
// in it, too. It is used if clone3(2) is refused: by kernels before 5.7, and by systemd's
// RestrictNamespaces=. If that is refused as well, the process is started without the
// group.
func (g Group) startInside(start func(fd int) error) error {
	if own, err := os.ReadFile("/proc/self/cgroup"); err == nil {
		before := groupsIn(string(own)).v2
		if before != "" && writeFile(filepath.Join(g.v2, "cgroup.procs"), "0") == nil { // 0 is the writing process
			defer func() { _ = writeFile(filepath.Join(before, "cgroup.procs"), "0") }()
		}
	}
	return start(-1)
}

// PIDs returns the processes in the groups, without this one.
func (g Group) PIDs() []int {
	var pids []int
	for _, dir := range g.Dirs() {
		pids = append(pids, pidsIn(dir)...)
	}
	slices.Sort(pids)
	return slices.DeleteFunc(slices.Compact(pids), func(pid int) bool { return pid == os.Getpid() })
}

func pidsIn(dir string) []int {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil
	}
	var pids []int
	for _, field := range strings.Fields(string(data)) {
		if pid, err := strconv.Atoi(field); err == nil && pid > 0 { // 0 is a process of another namespace
			pids = append(pids, pid)
		}
	}
	return pids
}

// Kill sends SIGKILL to every process in the groups: atomically if the kernel supports
// that (cgroup.kill, Linux 5.14), else to each current process; the caller repeats it
// until PIDs is empty.
func (g Group) Kill() {
	if g.v2 != "" && !slices.Contains(pidsIn(g.v2), os.Getpid()) {
		_ = writeFile(filepath.Join(g.v2, "cgroup.kill"), "1")
	}
	for _, pid := range g.PIDs() {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

// SharedOOMKills counts the processes that the kernel killed for lack of memory in the group
// that the runner shares with others, for hosts that do not report it for the runner alone:
// with cgroup v2 the kernel counts memory only in groups below one without processes, and a
// service's own group contains the daemon; and systemd removes a scope, with its counter,
// when its last process ends.
func (g Group) SharedOOMKills() int {
	if g.shared == "" {
		return 0
	}
	n, _ := counter(filepath.Join(g.shared, "memory.events"), "oom_kill")
	return n
}

// OOMKills counts the processes of the groups that the kernel killed for lack of memory.
func (g Group) OOMKills() int {
	if g.v2 != "" {
		if n, ok := counter(filepath.Join(g.v2, "memory.events"), "oom_kill"); ok {
			return n
		}
	}
	if g.memory1 != "" {
		n, _ := counter(filepath.Join(g.memory1, "memory.oom_control"), "oom_kill")
		return n
	}
	return 0
}

// Remove removes the groups, which must be empty. It waits a moment for the
// kernel to release processes that have just been reaped.
func (g Group) Remove() error {
	var errs []error
	for _, dir := range g.Dirs() {
		err := os.Remove(dir)
		for wait := time.Millisecond; errors.Is(err, unix.EBUSY) && wait < 200*time.Millisecond; wait *= 2 {
			time.Sleep(wait)
			err = os.Remove(dir)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove control group: %w", err))
		}
	}
	return errors.Join(errs...)
}

// ownGroups finds the folders of the groups that this process is in. If its v2 group is a
// subgroup of one that systemd has delegated (DelegateSubgroup=), it returns the delegated
// one: memory can be accounted only in groups whose parent has no processes.
func ownGroups() Group {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return Group{}
	}
	g := groupsIn(string(own))
	if parent := filepath.Dir(g.v2); g.v2 != "" && delegated(parent) {
		g.v2 = parent
	}
	return g
}

// delegated reports whether systemd has delegated a group: it marks such with an
// extended attribute, user.delegate or, before systemd 251, trusted.delegate.
func delegated(dir string) bool {
	for _, name := range []string{"user.delegate", "trusted.delegate"} {
		value := make([]byte, 1)
		if n, err := unix.Getxattr(dir, name, value); err == nil && n == 1 && value[0] == '1' {
			return true
		}
	}
	return false
}

// groupsIn finds the folders of the groups in a process's /proc/PID/cgroup.
func groupsIn(own string) Group {
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return Group{}
	}
	defer mounts.Close()
	return parseGroups(mounts, own)
}

// Membership is one line of /proc/PID/cgroup, cgroups(7): the group that a process
// is in in one hierarchy. That of v2 has the ID 0 and no controllers.
type Membership struct {
	Hierarchy   string
	Controllers []string
	Path        string // from the hierarchy's root as this process sees it
}

// ParseMemberships parses /proc/PID/cgroup. Invalid lines are skipped.
func ParseMemberships(text string) []Membership {
	var list []Membership
	for line := range strings.Lines(text) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) != 3 || !strings.HasPrefix(parts[2], "/") {
			continue
		}
		m := Membership{Hierarchy: parts[0], Path: parts[2]}
		if parts[1] != "" {
			m.Controllers = strings.Split(parts[1], ",")
		}
		list = append(list, m)
	}
	return list
}

// parseGroups joins what proc_pid_mountinfo(5) says of where hierarchies are
// mounted with what cgroups(7) says of the groups of a process.
func parseGroups(mounts io.Reader, own string) Group {
	var path2, path1 string
	for _, m := range ParseMemberships(own) {
		switch {
		case strings.Contains(m.Path, ".."): // a group outside our namespace
		case m.Hierarchy == "0" && m.Controllers == nil:
			path2 = m.Path
		case slices.Contains(m.Controllers, "memory"):
			path1 = m.Path
		}
	}
	var g Group
	lines := bufio.NewScanner(mounts)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields, super := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(super) < 3 {
			continue
		}
		root, mountpoint := fields[3], fields[4]
		switch {
		case super[0] == "cgroup2" && path2 != "" && g.v2 == "":
			g.v2 = below(mountpoint, root, path2)
		case super[0] == "cgroup" && path1 != "" && g.memory1 == "" && slices.Contains(strings.Split(super[2], ","), "memory"):
			g.memory1 = below(mountpoint, root, path1)
		}
	}
	return g
}

func below(mountpoint, root, path string) string {
	relative, err := filepath.Rel(root, path)
	if err != nil || relative == ".." || strings.HasPrefix(relative, "../") {
		return ""
	}
	return filepath.Join(mountpoint, relative)
}

// enableMemory enables memory accounting in groups below a v2 group that was delegated to
// this process. The kernel refuses that while the group itself has processes. The root is
// not changed.
func enableMemory(dir string) {
	if exists(filepath.Join(dir, "cgroup.type")) { // every group but the root has it
		_ = writeFile(filepath.Join(dir, "cgroup.subtree_control"), "+memory")
	}
}

func makeGroup(parent, name string) string {
	dir := filepath.Join(parent, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return ""
	}
	if !exists(filepath.Join(dir, "cgroup.procs")) { // an ordinary folder, not a control group
		_ = os.Remove(dir)
		return ""
	}
	return dir
}

func counter(path, key string) (int, bool) {
	data, err := readSmall(path)
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) == 2 && fields[0] == key {
			n, err := strconv.Atoi(fields[1])
			return n, err == nil
		}
	}
	return 0, false
}

// readSmall reads a control file of at most 4 KiB. It takes four system calls, and
// os.ReadFile ten: a shim reads a counter for each job.
func readSmall(path string) ([]byte, error) {
	f, err := durable.Open(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data := make([]byte, 4096)
	n, err := f.Read(data)
	return data[:n], err
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// writeFile writes to a control file, which must be there.
func writeFile(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(text)
	return err
}
