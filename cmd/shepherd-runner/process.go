package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/proc"
)

// guardName is argv[0] with which this program runs guard.
const guardName = "shepherd-runner-guard"

// grace is the time between TERM and KILL when a command is stopped.
const grace = 5 * time.Second

// guard is the leader of a command's process group. It waits for the end of its input,
// which comes when the runner closes it or dies for any reason, and kills the group
// including itself. So no process of the group outlives the runner.
func guard(input io.Reader) {
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	fmt.Println() // newGroup waits for this: signals are ignored now
	_, _ = io.Copy(io.Discard, input)
	_ = syscall.Kill(0, syscall.SIGKILL)
}

// children manages the processes that this program starts. With adopt it acts as an init
// process: it also reaps orphaned descendants, and nothing else in this program may wait
// for processes.
type children struct {
	adopt bool

	mu      sync.Mutex // held from before a fork until the child's pid is recorded
	running map[int]*child
	groups  map[*group]struct{}

	signals chan os.Signal
	reaping sync.WaitGroup
}

// child is a process that was started.
type child struct {
	pid    int
	exited chan struct{} // closed when it was reaped
	status syscall.WaitStatus
}

func newChildren(adopt bool) *children {
	c := &children{adopt: adopt, running: make(map[int]*child), groups: make(map[*group]struct{}), signals: make(chan os.Signal, 1)}
	if adopt {
		_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) // not needed for the first process of a container
		signal.Notify(c.signals, syscall.SIGCHLD)
		c.reaping.Go(func() {
			for range c.signals {
				c.reap()
			}
		})
	}
	return c
}

// close kills all descendants and stops reaping.
func (c *children) close() {
	if !c.adopt {
		return
	}
	c.endAll()
	signal.Stop(c.signals)
	close(c.signals)
	c.reaping.Wait()
}

// reap waits for all children that have ended. It reports whether others are left.
func (c *children) reap() (more bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil:
			return false
		case pid == 0:
			return true
		}
		if x := c.running[pid]; x != nil {
			delete(c.running, pid)
			x.status = status
			close(x.exited)
		}
	}
}

// start starts a command whose files are all *os.File. The kernel kills a child
// with Pdeathsig when the thread that forked it ends, so that thread is kept until
// it has ended.
func (c *children) start(cmd *exec.Cmd) (*child, error) {
	x := &child{exited: make(chan struct{})}
	started := make(chan error)
	go func() { // ends with the child
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		c.mu.Lock()
		err := cmd.Start()
		if err == nil {
			x.pid = cmd.Process.Pid
			c.running[x.pid] = x
		}
		c.mu.Unlock()
		started <- err
		if err != nil {
			return
		}
		if c.adopt {
			<-x.exited
		} else {
			c.wait(x)
		}
		_ = cmd.Process.Release()
	}()
	return x, <-started
}

// wait waits for one child, without adopt.
func (c *children) wait(x *child) {
	for {
		if _, err := syscall.Wait4(x.pid, &x.status, 0, nil); !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.running, x.pid)
	close(x.exited)
}

// endOrphans kills the descendants of this process that belong to none of the present
// groups. A process can leave its process group, but stays a descendant.
func (c *children) endOrphans() {
	if !c.adopt {
		return
	}
	for wait := time.Millisecond; wait < time.Second; wait *= 2 {
		left := c.orphans()
		if len(left) == 0 {
			return
		}
		for _, p := range left {
			_ = proc.Signal(p, unix.SIGKILL)
		}
		c.reap()
		time.Sleep(wait)
	}
}

func (c *children) orphans() []proc.Process {
	all, err := proc.All()
	if err != nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var ours []int
	for pid := range c.running {
		ours = append(ours, pid)
	}
	keep := make(map[int]bool)
	for _, pid := range ours {
		keep[pid] = true
	}
	for _, p := range proc.Descendants(all, ours...) {
		keep[p.PID] = true
	}
	for g := range c.groups { // orphaned processes in a group that still runs
		for _, p := range all {
			if p.Group == g.guard.pid {
				keep[p.PID] = true
			}
		}
	}
	var left []proc.Process
	for _, p := range proc.Descendants(all, os.Getpid()) {
		if !keep[p.PID] && !p.Zombie() {
			left = append(left, p)
		}
	}
	return left
}

// endAll kills all descendants of this process.
func (c *children) endAll() {
	for wait := time.Millisecond; c.reap() && wait < 10*time.Second; wait *= 2 {
		all, err := proc.All()
		if err != nil {
			return
		}
		for _, p := range proc.Descendants(all, os.Getpid()) {
			_ = proc.Signal(p, unix.SIGKILL)
		}
		time.Sleep(wait)
	}
}

// forward sends a signal to all groups.
func (c *children) forward(sig syscall.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for g := range c.groups {
		_ = syscall.Kill(-g.guard.pid, sig)
	}
}

// group is a process group with a guard.
type group struct {
	children *children
	guard    *child
	input    io.Closer
	once     sync.Once
}

func (c *children) newGroup() (*group, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{guardName}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	inputR, input, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	output, outputW, err := os.Pipe()
	if err != nil {
		inputR.Close()
		input.Close()
		return nil, err
	}
	defer output.Close()
	cmd.Stdin, cmd.Stdout = inputR, outputW
	g := &group{children: c, input: input}
	g.guard, err = c.start(cmd)
	inputR.Close()
	outputW.Close()
	if err != nil {
		input.Close()
		return nil, err
	}
	c.mu.Lock()
	c.groups[g] = struct{}{}
	c.mu.Unlock()
	if _, err := output.Read(make([]byte, 1)); err != nil {
		g.kill()
		return nil, fmt.Errorf("the guard did not start: %w", err)
	}
	return g, nil
}

// start starts a command in the group.
func (g *group) start(cmd *exec.Cmd) (*child, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pgid: g.guard.pid, Pdeathsig: syscall.SIGKILL}
	return g.children.start(cmd)
}

// kill kills all processes in the group, including the guard. Only the first call has an
// effect, because the group's id may be reused afterwards.
func (g *group) kill() {
	g.once.Do(func() {
		g.children.mu.Lock()
		delete(g.children.groups, g)
		g.children.mu.Unlock()
		_ = syscall.Kill(-g.guard.pid, syscall.SIGKILL)
		_ = g.input.Close()
		<-g.guard.exited
	})
}

// stop sends a signal to the group, waits until the process x has ended, for grace at
// most, and kills the group. It has no effect after kill.
func (g *group) stop(x *child, sig syscall.Signal) {
	g.children.mu.Lock()
	if _, up := g.children.groups[g]; up {
		_ = syscall.Kill(-g.guard.pid, sig)
	}
	g.children.mu.Unlock()
	select {
	case <-x.exited:
	case <-time.After(grace):
	}
	g.kill()
	<-x.exited
}
