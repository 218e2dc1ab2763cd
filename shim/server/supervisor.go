package server

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/cgroup"
	"github.com/iterait/shepherd/internal/proc"
	"github.com/iterait/shepherd/shim"
)

// supervisor starts and reaps the runner and its descendants. This process is a child
// subreaper, so it becomes the parent of orphaned descendants, too. Nothing else in this
// process may wait for children.
type supervisor struct {
	group   cgroup.Group
	log     *slog.Logger
	exited  chan struct{} // closed when the runner has ended
	changed chan struct{} // a child has ended
	signals chan os.Signal
	forker  chan struct{} // closed to end the thread that forked the runner
	reaping sync.WaitGroup

	mu     sync.Mutex // held from before the fork until the child's id is known
	pid    int
	status unix.WaitStatus
	done   bool
}

func newSupervisor(group cgroup.Group, log *slog.Logger) *supervisor {
	v := &supervisor{
		group: group, log: log,
		exited:  make(chan struct{}),
		changed: make(chan struct{}, 1),
		signals: make(chan os.Signal, 1),
		forker:  make(chan struct{}),
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		log.Warn("cannot become the subreaper of the runner's orphaned processes", "error", err)
	}
	signal.Notify(v.signals, unix.SIGCHLD)
	v.reaping.Go(func() {
		for range v.signals {
			v.reap()
		}
	})
	return v
}

// close stops reaping. No process of the runner may be left.
func (v *supervisor) close() {
	signal.Stop(v.signals)
	close(v.signals)
	close(v.forker)
	v.reaping.Wait()
}

// start starts the runner and returns its pid. The kernel kills the runner when the
// thread that forked it ends (PR_SET_PDEATHSIG), so that thread is kept until close.
func (v *supervisor) start(spec shim.Spec, out *output) (int, error) {
	result := make(chan error)
	v.reaping.Go(func() {
		runtime.LockOSThread() // never unlocked, because the thread has changed its control groups
		result <- v.fork(spec, out)
		<-v.forker
	})
	err := <-result
	out.started()
	if err != nil {
		p := spec.Runner
		return 0, fmt.Errorf("cannot start the runner `%s`: %w", strings.Join(append([]string{p.Path}, p.Args...), " "), err)
	}
	return v.pid, nil
}

func (v *supervisor) fork(spec shim.Spec, out *output) error {
	p := spec.Runner
	if info, err := os.Stat(p.Dir); err != nil || !info.IsDir() {
		return fmt.Errorf("its working directory %s does not exist", p.Dir)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	env := slices.DeleteFunc(slices.Clone(p.Env), func(e string) bool { return strings.HasPrefix(e, shim.Mark+"=") })
	attr := &syscall.ProcAttr{
		Dir:   p.Dir,
		Env:   append(env, shim.Mark+"="+spec.Life),
		Files: []uintptr{null.Fd(), out.stdout.Fd(), out.stderr.Fd()},
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.group.Enter(func(fd int) error {
		attr.Sys = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, UseCgroupFD: fd >= 0, CgroupFD: fd}
		var err error
		v.pid, err = syscall.ForkExec(p.Path, append([]string{p.Path}, p.Args...), attr)
		return err
	})
}

// reap waits for every child that has ended. It reports whether there are other
// children.
func (v *supervisor) reap() (more bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return false // no children
		case pid == 0:
			return true
		}
		if pid == v.pid && !v.done {
			v.status, v.done = status, true
			close(v.exited)
		}
		select {
		case v.changed <- struct{}{}:
		default:
		}
	}
}

func (v *supervisor) ended() <-chan struct{} { return v.exited }

func (v *supervisor) oomKills() (own, shared int) {
	return v.group.OOMKills(), v.group.SharedOOMKills()
}

func (v *supervisor) alive() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return !v.done
}

// terminate asks the runner's process group to end.
func (v *supervisor) terminate() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.done { // else the id may have been reused
		_ = unix.Kill(-v.pid, unix.SIGTERM)
	}
}

// killTimeout is how long processes may take to end after SIGKILL. One that is blocked
// in the kernel (by a dead network file system or a hung driver) does not end.
const killTimeout = 30 * time.Second

// endAll kills all descendants of this process until none is left. After killTimeout it
// gives up and returns which are left.
func (v *supervisor) endAll() (problem string) {
	deadline := time.Now().Add(killTimeout)
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		more := v.reap()
		if !more && len(v.group.PIDs()) == 0 {
			return ""
		}
		v.group.Kill()
		left, err := v.descendants()
		if err != nil {
			v.log.Warn("cannot list the processes that the runner started", "error", err)
		}
		for _, p := range left {
			if err := proc.Signal(p, unix.SIGKILL); err != nil {
				v.log.Warn("cannot kill a process of the runner", "error", err)
			}
		}
		if time.Now().After(deadline) {
			if len(left) == 0 {
				return "processes it left behind cannot be killed"
			}
			return fmt.Sprintf("process %d (%s), which it left behind, cannot be killed", left[0].PID, left[0].Name)
		}
		select {
		case <-v.changed:
		case <-time.After(wait):
		}
	}
}

func (v *supervisor) descendants() ([]proc.Process, error) {
	all, err := proc.All()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(proc.Descendants(all, os.Getpid()), proc.Process.Zombie), nil
}

// exitStatus returns how the runner ended.
func (v *supervisor) exitStatus() shim.Exit {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case !v.done:
		return shim.Exit{Code: -1}
	case v.status.Signaled():
		return shim.Exit{Code: -1, Signal: unix.SignalName(v.status.Signal())}
	}
	return shim.Exit{Code: v.status.ExitStatus()}
}
