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

// leftovers removes what an interrupted creation or removal of a container may have
// left outside containerd's database: control groups, the mount of its root file
// system, containerd's shim process. They are found by the container's id and life,
// which are unique.
type leftovers struct {
	namespace, id, life string
}

const (
	// leftoversQuietTime is how long clear must have found nothing before it
	// returns: containerd and the runtime may still be creating things for a moment
	// after their caller has gone.
	leftoversQuietTime = time.Second
	// containerdShimTime is how long containerd's shim may take to exit by itself.
	containerdShimTime = 5 * time.Second
	leftoversInterval  = 20 * time.Millisecond
)

var lifeID = regexp.MustCompile(`^[0-9a-f]{32}$`)

// clear removes leftovers repeatedly, until it has found none for the time quiet,
// ctx has ended, or twice containerdShimTime has passed.
func (d leftovers) clear(ctx context.Context, quiet time.Duration) {
	if !lifeID.MatchString(d.life) { // it comes from a label, which other clients of containerd can write
		return
	}
	began := time.Now()
	for last := began; ; {
		found := d.groups()
		found = append(found, d.mounts()...)
		for _, pid := range d.shims() {
			found = append(found, strconv.Itoa(pid))
			if time.Since(began) > containerdShimTime {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		if len(found) > 0 {
			last = time.Now()
		}
		if time.Since(last) >= quiet || time.Since(began) > 2*containerdShimTime {
			return
		}
		select {
		case <-time.After(leftoversInterval):
		case <-ctx.Done():
			return
		}
	}
}

// groups kills the processes in the container's control groups, removes the groups,
// and returns their paths.
func (d leftovers) groups() []string {
	var found []string
	for _, hierarchy := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		for _, suffix := range []string{"", ".scope"} {
			dirs, _ := filepath.Glob(hierarchy + cgroupSlice + "/" + shim.GroupName(d.life) + suffix)
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
		_ = unix.Rmdir(dir) // fails while a process is in it; clear tries again
	}
	return found
}

// mounts unmounts the container's root file system and returns the mount points.
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

// shims returns the pids of containerd's shims for the container, whose command
// lines are "… -namespace NS -id ID …".
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
