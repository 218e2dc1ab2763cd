package server

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/cgroup"
	"github.com/iterait/shepherd/internal/proc"
	"github.com/iterait/shepherd/shim"
)

// watched is the first process of a container, whose parent is containerd's shim. When
// it exits, the kernel first kills all other processes of its PID namespace.
type watched struct {
	process proc.Process
	pidfd   *os.File
	netns   *os.File // nil if it shares the shim's network namespace
	pipes   runnerPipes
	group   cgroup.Group
	stop    unix.Signal // asks the process to end
	exited  chan struct{}
	waiting sync.WaitGroup
	killed  bool // by this shim
}

// openWatched opens the process, which must exist.
func openWatched(pid int, group string, c *shim.Container) (_ *watched, err error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ENOSYS) {
		return nil, fmt.Errorf("watch process %d of the container: container sheep need Linux 5.3 (pidfd_open)", pid)
	}
	if err != nil {
		return nil, fmt.Errorf("watch process %d of the container: %w", pid, err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // PIDFD_NONBLOCK needs Linux 5.10
		unix.Close(fd)
		return nil, fmt.Errorf("watch process %d of the container: %w", pid, err)
	}
	w := &watched{pidfd: os.NewFile(uintptr(fd), "pidfd"), stop: unix.SIGTERM, exited: make(chan struct{})}
	if c.StopSignal != 0 {
		w.stop = unix.Signal(c.StopSignal)
	}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if w.process, err = proc.Read(pid); err != nil {
		return nil, fmt.Errorf("watch process %d of the container: %w", pid, err)
	}
	if c.OwnNetwork {
		if w.netns, err = os.Open("/proc/" + strconv.Itoa(pid) + "/ns/net"); err != nil {
			return nil, fmt.Errorf("open the network namespace of process %d of the container: %w", pid, err)
		}
	}
	w.group = cgroup.Of(pid, group)
	w.pipes = openRunnerPipes(pid)
	return w, nil
}

// namespace returns the path of its network namespace, "" if it is the shim's.
func (w *watched) namespace() string {
	if w.netns == nil {
		return ""
	}
	return "/proc/self/fd/" + strconv.Itoa(int(w.netns.Fd()))
}

func (w *watched) close() {
	w.pidfd.Close()
	w.pipes.close()
	if w.netns != nil {
		w.netns.Close()
	}
	w.waiting.Wait()
}

// wait closes exited when the process has ended. It returns early if w is closed.
func (w *watched) wait() {
	raw, err := w.pidfd.SyscallConn()
	if err != nil {
		return
	}
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			if !errors.Is(err, unix.EINTR) {
				return n > 0
			}
		}
	})
	if err == nil {
		close(w.exited)
	}
}

func (w *watched) ended() <-chan struct{} { return w.exited }

func (w *watched) alive() bool {
	select {
	case <-w.exited:
		return false
	default:
		return true
	}
}

func (w *watched) oomKills() (own, shared int) {
	return w.group.OOMKills(), w.group.SharedOOMKills()
}

// terminate sends the process its stop signal, or SIGKILL if it would not receive that:
// the kernel drops signals to the first process of a PID namespace that it neither
// handles nor blocks.
func (w *watched) terminate() {
	if !listens(w.process.PID, w.stop) {
		w.kill()
		return
	}
	w.signal(w.stop)
}

// listens reports whether a process receives the signal; true where that cannot be
// determined. While a process waits in sigtimedwait(2), as tini does, /proc shows the
// signals that it waits for as not blocked, so the present system call is checked, too.
// The process may enter or leave the call between the two checks, so they are repeated.
func listens(pid int, sig unix.Signal) bool {
	proc := "/proc/" + strconv.Itoa(pid)
	for range 4 {
		status, err := os.ReadFile(proc + "/status")
		if err != nil || receives(string(status), sig) {
			return true
		}
		call, err := os.ReadFile(proc + "/syscall")
		if err != nil || strings.HasPrefix(string(call), strconv.Itoa(unix.SYS_RT_SIGTIMEDWAIT)+" ") {
			return true
		}
	}
	return false
}

// receives reports whether the process with this /proc/PID/status receives the signal:
// it has a handler for it, or blocks it, as programs do that use signalfd(2) or
// sigwait(3). A signal that it ignores does not count even while it is blocked: a shell
// blocks all signals for a moment when it forks. It returns true if the status has no
// signal masks.
func receives(status string, sig unix.Signal) bool {
	in := make(map[string]bool)
	for line := range strings.Lines(status) {
		name, mask, _ := strings.Cut(line, ":")
		if name != "SigCgt" && name != "SigBlk" && name != "SigIgn" {
			continue
		}
		set, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
		if err != nil {
			return true
		}
		in[name] = set&(1<<(sig-1)) != 0
	}
	_, known := in["SigCgt"]
	return !known || in["SigCgt"] || in["SigBlk"] && !in["SigIgn"]
}

func (w *watched) kill() {
	w.killed = w.killed || w.alive()
	w.signal(unix.SIGKILL)
}

func (w *watched) signal(sig unix.Signal) {
	raw, err := w.pidfd.SyscallConn()
	if err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
	}
}

// endAll kills the process and waits until its control groups are empty. After
// killTimeout it gives up and returns how many processes are left.
func (w *watched) endAll() (problem string) {
	if w.alive() {
		w.kill()
	}
	deadline := time.Now().Add(killTimeout)
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		ended := w.exited
		var left []int
		if !w.alive() {
			ended = nil
			if left = w.group.PIDs(); len(left) == 0 {
				return ""
			}
			w.group.Kill()
		}
		if time.Now().After(deadline) {
			return fmt.Sprintf("%d processes of its container cannot be killed", max(len(left), 1))
		}
		select {
		case <-ended:
		case <-time.After(wait):
		}
	}
}

// exitStatus returns how the process ended, if the kernel reports that to processes
// other than the parent (since Linux 6.15). Otherwise the daemon asks containerd.
func (w *watched) exitStatus() shim.Exit {
	status, ok := w.waitStatus()
	switch {
	case ok && status.Signaled():
		return shim.Exit{Code: -1, Signal: unix.SignalName(status.Signal())}
	case ok && status.Exited():
		return shim.Exit{Code: status.ExitStatus()}
	case w.killed:
		return shim.Exit{Code: -1, Signal: unix.SignalName(unix.SIGKILL)}
	}
	return shim.Exit{Code: -1}
}

// pidfdInfo is the first version of struct pidfd_info in linux/pidfd.h.
type pidfdInfo struct {
	mask, cgroup uint64
	ids          [11]uint32
	exitCode     int32
}

const (
	pidfdGetInfo  = 3<<30 | 64<<16 | 0xff<<8 | 11 // _IOWR(0xFF, 11, struct pidfd_info)
	pidfdInfoExit = 1 << 3
)

// waitStatus reads the wait status from the pidfd. It is available only after the parent
// has reaped the process, so waitStatus retries for up to half a second.
func (w *watched) waitStatus() (status unix.WaitStatus, ok bool) {
	raw, err := w.pidfd.SyscallConn()
	if err != nil {
		return 0, false
	}
	for wait := time.Millisecond / 4; wait < time.Second/4; wait *= 2 {
		info := pidfdInfo{mask: pidfdInfoExit}
		var errno unix.Errno
		err := raw.Control(func(fd uintptr) {
			_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
		})
		switch {
		case err != nil, errno != 0 && errno != unix.ESRCH:
			return 0, false
		case errno == 0 && info.mask&pidfdInfoExit != 0:
			return unix.WaitStatus(info.exitCode), true
		}
		time.Sleep(wait)
	}
	return 0, false
}

// take starts watching the container's first process, which the daemon has reported.
func (s *state) take(pid int) error {
	if s.spec.Container == nil {
		return errors.New("there is no container")
	}
	w, err := openWatched(pid, shim.GroupName(s.spec.Life), s.spec.Container)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watched != nil || s.exit != nil {
		w.close()
		return errors.New("the container's process is known, or has ended")
	}
	s.watched, s.netns = w, w.namespace()
	return nil
}

// begin records that the container's process has been started.
func (s *state) begin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.exit != nil:
		return errors.New("its stop was requested meanwhile")
	case s.watched == nil:
		return errors.New("the container's process is not known")
	case s.pid != 0:
		return nil
	}
	s.pid = s.watched.process.PID
	s.begun <- s.watched
	return nil
}
