package container

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/shim"
)

// leftovers is what may be left of a container that containerd does not know, or
// does not know any more: control groups, the mount of its files, the shim of
// containerd's that was to make it. Each is found by a name that nothing else has.
type leftovers struct {
	namespace, id, life string
}

const (
	// brokenOffTime is how long nothing may have been found before there is
	// nothing: containerd and the runtime take a moment to notice that nobody
	// wants any more what they make.
	brokenOffTime = time.Second
	// stubbornTime is how long containerd's shim may take to end by itself.
	stubbornTime  = 5 * time.Second
	leftoversTick = 20 * time.Millisecond
)

var lifeID = regexp.MustCompile(`^[0-9a-f]{32}$`)

// clear removes what is left, and what appears until nothing has for the time.
func (d leftovers) clear(ctx context.Context, quiet time.Duration) {
	if !lifeID.MatchString(d.life) { // it comes from a label, which others can write
		return
	}
	began := time.Now()
	for last := began; ; {
		found := d.groups()
		found = append(found, d.mounts()...)
		for _, pid := range d.shims() {
			found = append(found, strconv.Itoa(pid))
			if time.Since(began) > stubbornTime {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		if len(found) > 0 {
			last = time.Now()
		}
		if time.Since(last) >= quiet || time.Since(began) > 2*stubbornTime {
			return
		}
		select {
		case <-time.After(leftoversTick):
		case <-ctx.Done():
			return
		}
	}
}

// groups ends what is in the control groups, removes them, and returns them.
func (d leftovers) groups() []string {
	var found []string
	for _, hierarchy := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		for _, suffix := range []string{"", ".scope"} {
			dirs, _ := filepath.Glob(hierarchy + slice + "/" + shim.GroupName(d.life) + suffix)
			found = append(found, dirs...)
		}
	}
	for _, dir := range found {
		procs, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		for _, field := range strings.Fields(string(procs)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 1 {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		_ = unix.Rmdir(dir) // not while a process is in it
	}
	return found
}

// mounts unmounts the container's files and returns where they were.
func (d leftovers) mounts() []string {
	table, _ := os.ReadFile("/proc/self/mountinfo")
	bundle := fmt.Sprintf("/%s/%s/rootfs", d.namespace, d.id)
	var found []string
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasSuffix(fields[4], bundle) {
			found = append(found, fields[4])
		}
	}
	for _, path := range slices.Backward(found) {
		_ = unix.Unmount(path, unix.MNT_DETACH)
	}
	return found
}

// shims are containerd's shims for the container: "… -namespace NS -id ID …".
func (d leftovers) shims() []int {
	var found []int
	commands, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range commands {
		data, _ := os.ReadFile(path)
		words := strings.Split(string(data), "\x00")
		if !strings.Contains(filepath.Base(words[0]), "containerd-shim") {
			continue
		}
		after := func(flag string) string {
			if i := slices.Index(words, flag); i >= 0 && i+1 < len(words) {
				return words[i+1]
			}
			return ""
		}
		if after("-namespace") == d.namespace && after("-id") == d.id {
			if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
				found = append(found, pid)
			}
		}
	}
	return found
}
