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

// machine is what this machine can do for containers.
type machine struct {
	oci.Host
	// systemd says that systemd manages the one hierarchy of cgroups: it makes
	// the containers' groups.
	systemd bool
}

// appArmorProfile confines containers where the machine has AppArmor. Its rules
// are those of containerd, which are Docker's.
const appArmorProfile = "shepherd-default"

// probeMachine looks what the machine can do.
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
	// As sd_booted(3). With cgroup v1 runtimes make groups past systemd, as
	// Docker does.
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		m.systemd = m.Unified
	}
	if apparmor.HostSupports() {
		if err := loadapparmor.LoadDefaultProfile(appArmorProfile); err != nil {
			log.Warn("Containers are not confined by AppArmor: its profile cannot be loaded; install apparmor and let the daemon have CAP_MAC_ADMIN, or load it with apparmor_parser",
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

// slice is where the cgroups of containers are: systemd's unit, and elsewhere a
// group of that name.
const slice = "shepherd.slice"

// cgroupPath is the cgroup of a life's container. Its last part is
// shim.GroupName, to which systemd adds ".scope".
func cgroupPath(m machine, byRuntime bool, life string) string {
	if m.systemd && byRuntime {
		return slice + ":shepherd:" + life
	}
	return "/" + slice + "/" + shim.GroupName(life)
}
