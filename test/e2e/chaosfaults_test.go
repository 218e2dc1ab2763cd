package e2e

import (
	"bytes"
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/iterait/shepherd/internal/proc"
	"github.com/iterait/shepherd/internal/testenv"
)

// chaosFault is a fault that is injected into a machine.
type chaosFault struct {
	name string
	// make injects the fault. Undo, if not nil, ends it; done is false if there was
	// nothing to break.
	make func() (undo func(), done bool)
}

// faults are those that can be injected into this machine.
func (c *chaos) faults() []chaosFault {
	ends := func(s syscall.Signal) func() (func(), bool) {
		return func() (func(), bool) {
			c.ending = c.exited
			return nil, c.daemon.Process.Signal(s) == nil
		}
	}
	faults := []chaosFault{
		{"SIGKILL to the daemon", ends(syscall.SIGKILL)},
		{"SIGTERM to the daemon", ends(syscall.SIGTERM)},
		{"SIGSTOP to the daemon", c.stops(c.theDaemon)},
		{"reload of the daemon", c.reloads},
		{"SIGKILL to a shim", c.kills(c.shims)},
		{"SIGSTOP to a shim", c.stops(c.shims)},
		{"SIGKILL to a bare runner", c.kills(c.bareRunners)},
		{"SIGSTOP to a bare runner", c.stops(c.bareRunners)},
		{"SIGKILL to a container's runner", c.kills(c.containerRunners)},
		{"SIGSTOP to a container's runner", c.stops(c.containerRunners)},
		{"SIGKILL to containerd's shim", c.kills(c.containerdShims)},
		{"SIGKILL to containerd", c.killContainerd},
		{"SIGKILL to everything", c.killEverything},
		{"data_root full", c.fills("data")},
		{"state_dir full", c.fills("state")},
		{"registry answers 500", c.registryFails(testenv.RegistryFault{Status: http.StatusInternalServerError})},
		{"registry breaks off", c.registryFails(testenv.RegistryFault{CutAfter: 100})},
		{"registry is slow", c.registryFails(testenv.RegistryFault{Pause: 100 * time.Millisecond})},
	}
	if c.minio == nil {
		return faults
	}
	return append(faults,
		chaosFault{"SIGKILL to MinIO", c.killMinIO},
		chaosFault{"storage answers 503 SlowDown", c.storageFails(testenv.Unavailable)},
		chaosFault{"storage resets connections", c.storageFails(testenv.Reset)},
		chaosFault{"storage acts, and its answers are lost", c.storageFails(testenv.LoseAnswer)},
		chaosFault{"storage cuts bodies", c.storageFails(testenv.CutBody)},
		chaosFault{"storage does not answer", c.storageFails(testenv.Stall)},
	)
}

// kills kills one of the processes that find finds.
func (c *chaos) kills(find func() []proc.Process) func() (func(), bool) {
	return func() (func(), bool) {
		p, found := c.one(find())
		return nil, found && proc.Signal(p, syscall.SIGKILL) == nil
	}
}

// stops suspends one of the processes that find finds.
func (c *chaos) stops(find func() []proc.Process) func() (func(), bool) {
	return func() (func(), bool) {
		p, found := c.one(find())
		if !found || proc.Signal(p, syscall.SIGSTOP) != nil {
			return nil, false
		}
		return func() { _ = proc.Signal(p, syscall.SIGCONT) }, true
	}
}

// one draws a process.
func (c *chaos) one(found []proc.Process) (proc.Process, bool) {
	if len(found) == 0 {
		return proc.Process{}, false
	}
	return found[c.dice.IntN(len(found))], true
}

// reloads changes the configuration and reloads it. It does not wait for the command: the
// daemon may be suspended, and other faults are injected meanwhile.
func (c *chaos) reloads() (func(), bool) {
	if !strings.Contains(c.log.String(), "Shepherd API is available") {
		return nil, false
	}
	old, changed := "retry_pause: 2ms", "retry_pause: 3ms"
	text, err := os.ReadFile(c.config)
	if err != nil {
		return nil, false
	}
	if !bytes.Contains(text, []byte(old)) {
		old, changed = changed, old
	}
	c.edit(old, changed)
	ctx, cancel := context.WithTimeout(c.t.Context(), deadline)
	reload := exec.CommandContext(ctx, filepath.Join(c.bin, "shepherdd"), "reload", "-c", c.config)
	reload.Env, reload.Dir = c.env, c.dir
	exited := c.exited
	c.reloading.Go(func() {
		defer cancel()
		out, err := reload.CombinedOutput()
		select {
		case <-exited:
		default:
			if err == nil {
				c.reloaded.Add(1)
			} else {
				c.t.Logf("reload: %v: %s", err, out)
			}
		}
	})
	return nil, true
}

func (c *chaos) theDaemon() []proc.Process {
	p, err := proc.Read(c.daemon.Process.Pid)
	if err != nil {
		return nil
	}
	return []proc.Process{p}
}

// shims are those of bare sheep.
func (c *chaos) shims() []proc.Process {
	return c.own(func(command string) bool { return strings.Contains(command, "shepherd-shim") })
}

func (c *chaos) bareRunners() []proc.Process {
	return c.own(func(command string) bool {
		return strings.Contains(command, "shepherd-runner") && !strings.Contains(command, "shepherd-shim")
	})
}

// own are processes of the world whose command line matches.
func (c *chaos) own(match func(command string) bool) (found []proc.Process) {
	for pid, command := range c.processes() {
		if p, err := proc.Read(pid); err == nil && match(command) {
			found = append(found, p)
		}
	}
	return found
}

// containerdShims are those of this machine's containerd.
func (c *chaos) containerdShims() []proc.Process {
	dir := filepath.Dir(c.containerd.Address) + "/"
	return slices.DeleteFunc(allProcesses(), func(p proc.Process) bool {
		command := commandLine(p.PID)
		return !strings.Contains(command, "containerd-shim") || !strings.Contains(command, dir)
	})
}

// containerRunners are the first processes of this machine's containers.
func (c *chaos) containerRunners() []proc.Process {
	shims := c.containerdShims()
	return slices.DeleteFunc(allProcesses(), func(p proc.Process) bool {
		return !strings.HasPrefix(commandLine(p.PID), "/runner ") || !slices.ContainsFunc(shims, func(shim proc.Process) bool { return shim.PID == p.Parent })
	})
}

func (c *chaos) killContainerd() (func(), bool) {
	if c.containerdAway {
		return nil, false
	}
	c.containerd.Kill(c.t)
	c.containerdAway = true
	return func() {
		c.containerd.Start(c.t)
		c.containerdAway = false
	}, true
}

func (c *chaos) killMinIO() (func(), bool) {
	pid := c.minio.Pid()
	if pid == 0 {
		return nil, false
	}
	c.minio.Kill()
	return c.minio.Start, true
}

// killEverything is a power cut, but for containerd and the storage.
func (c *chaos) killEverything() (func(), bool) {
	c.ending = c.exited
	_ = c.daemon.Process.Kill()
	for _, find := range []func() []proc.Process{c.shims, c.containerdShims, c.bareRunners, c.containerRunners} { // a shim tells of a runner that it sees end
		for _, p := range find() {
			_ = proc.Signal(p, syscall.SIGKILL)
		}
	}
	return nil, true
}

// fills fills the disk of a directory.
func (c *chaos) fills(name string) func() (func(), bool) {
	file := filepath.Join(c.dir, name, "other people's data")
	return func() (func(), bool) {
		f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, false
		}
		defer f.Close()
		for chunk := make([]byte, 1<<20); len(chunk) > 0; {
			if _, err := f.Write(chunk); err != nil {
				chunk = chunk[:len(chunk)/2]
			}
		}
		return func() { _ = os.Remove(file) }, true
	}
}

func (c *chaos) registryFails(fault testenv.RegistryFault) func() (func(), bool) {
	return func() (func(), bool) {
		c.registry.SetFault(func(*http.Request) *testenv.RegistryFault { return &fault })
		return func() { c.registry.SetFault(nil) }, true
	}
}

// storageFails injects faults into some of the next requests.
func (c *chaos) storageFails(fault testenv.Fault) func() (func(), bool) {
	return func() (func(), bool) {
		c.proxy.Inject(fault, 1+c.dice.IntN(30), nil)
		return c.proxy.Heal, true
	}
}
