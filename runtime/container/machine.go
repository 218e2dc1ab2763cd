package container

import (
	"errors"
	"log/slog"
	"os"
	goruntime "runtime"

	loadapparmor "github.com/containerd/containerd/v2/contrib/apparmor"
	"github.com/containerd/containerd/v2/pkg/apparmor"
	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/oci"
	"github.com/iterait/shepherd/shim"
)

// machine holds the kernel and system features of this machine that matter for
// containers.
type machine struct {
	oci.Host
	// systemd is true where systemd manages the unified cgroup hierarchy (cgroup
	// v2): it then creates the containers' cgroups.
	systemd bool
}

// appArmorProfile confines containers where the machine has AppArmor. Its rules
// are containerd's defaults, which are Docker's.
const appArmorProfile = "shepherd-default"

// probeMachine detects the machine's features, and loads the AppArmor profile.
func probeMachine(log *slog.Logger) machine {
	const hierarchies = "/sys/fs/cgroup"
	m := machine{Host: oci.Host{CPUs: goruntime.NumCPU(), RecursiveReadOnly: canSetMountAttributes()}}
	var fs unix.Statfs_t
	if unix.Statfs(hierarchies, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
		m.Unified, m.SwapLimit = true, true
	} else {
		_, err := os.Stat(hierarchies + "/memory/memory.memsw.limit_in_bytes")
		m.SwapLimit = err == nil
	}
	// The check of sd_booted(3). With cgroup v1 the runtimes create cgroups
	// themselves, as Docker does.
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		m.systemd = m.Unified
	}
	if apparmor.HostSupports() {
		if err := loadapparmor.LoadDefaultProfile(appArmorProfile); err != nil {
			log.Warn("Containers are not confined by AppArmor: its profile cannot be loaded; install apparmor and give the daemon CAP_MAC_ADMIN, or load the profile with apparmor_parser",
				"profile", appArmorProfile, "error", err)
		} else {
			m.AppArmor = appArmorProfile
		}
	}
	return m
}

// canSetMountAttributes reports whether the kernel has mount_setattr(2) and lets
// us call it.
func canSetMountAttributes() bool {
	err := unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{})
	return !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EPERM)
}

// cgroupSlice is the parent of the containers' cgroups: a systemd slice unit, or a
// cgroup of that name where systemd does not create them.
const cgroupSlice = "shepherd.slice"

// cgroupPath returns the cgroup of a life's container, in systemd's notation
// (slice:prefix:name) where the runtime has systemd create it. Its last element is
// shim.GroupName, to which systemd appends ".scope".
func cgroupPath(m machine, runcOptions bool, life string) string {
	if m.systemd && runcOptions {
		return cgroupSlice + ":shepherd:" + life
	}
	return "/" + cgroupSlice + "/" + shim.GroupName(life)
}
