package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/iterait/shepherd/client"
	"github.com/iterait/shepherd/internal/proc"
)

// node is a daemon with two sheep, like one on a machine of its own.
type node struct {
	*service
	name, api string
	dir       string
	client    *client.ClientWithResponses
}

// environment is the configuration that is the same on all nodes.
func environment(o options, database string, files *storage) []string {
	return []string{
		"LEDGER_URL=" + database, "LEASE=" + o.lease.String(),
		"STORAGE_URL=" + files.url, "STORAGE_ACCESS_KEY=" + files.accessKey, "STORAGE_SECRET_KEY=" + files.secretKey,
		"MODELS=" + o.models, "RUNNER=" + filepath.Join(o.bin, "digits-runner"),
	}
}

// startNode starts a node and returns when it serves.
func startNode(ctx context.Context, o options, name string, shared []string) (*node, error) {
	dir := filepath.Join(o.dir, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	n := &node{name: name, dir: dir}
	cmd := exec.Command(filepath.Join(o.bin, "shepherdd"), "-c", o.config)
	cmd.Env = slices.Concat(os.Environ(), shared, []string{"NODE=" + name, "DIR=" + dir})
	served := make(chan string, 1)
	var err error
	n.service, err = start(cmd, filepath.Join(dir, "log"), func(log io.Reader) {
		for lines := bufio.NewScanner(log); lines.Scan(); {
			if _, at, ok := strings.Cut(lines.Text(), "Shepherd API is available at "); ok {
				served <- at
				return
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("start node %s: %w (make build makes its programs)", name, err)
	}
	select {
	case n.api = <-served:
	case <-n.exited:
		return nil, fmt.Errorf("node %s has ended (%v); its log is %s", name, n.cmd.ProcessState, n.log)
	case <-time.After(startTime):
		err = fmt.Errorf("node %s does not serve after %v; its log is %s", name, startTime, n.log)
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err == nil {
		n.client, err = client.New(client.Config{Server: n.api})
	}
	if err != nil {
		return nil, errors.Join(err, n.stop())
	}
	return n, nil
}

// kill kills the daemon, the shims and the runners of the node at once, like a power failure. It
// returns when none is left.
func (n *node) kill(ctx context.Context) error {
	_ = n.cmd.Process.Kill() // it may have exited
	<-n.exited
	for {
		left, err := n.processes()
		if err != nil || len(left) == 0 {
			return err
		}
		for _, pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// processes are those of the node, but for zombies: shims have its directory in their
// arguments, runners descend from them.
func (n *node) processes() ([]int, error) {
	all, err := proc.All()
	if err != nil {
		return nil, fmt.Errorf("list the processes of node %s: %w", n.name, err)
	}
	all = slices.DeleteFunc(all, proc.Process.Zombie)
	var shims, own []int
	for _, p := range all {
		args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.PID)) // it may be gone
		if err == nil && bytes.Contains(args, []byte(n.dir+"/")) {
			shims = append(shims, p.PID)
		}
	}
	for _, p := range proc.Descendants(all, shims...) {
		own = append(own, p.PID)
	}
	return append(own, shims...), nil
}

// paused runs do while the node's daemon is suspended; do may kill it.
func (n *node) paused(do func() error) error {
	if err := n.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return fmt.Errorf("stop node %s for a moment: %w", n.name, err)
	}
	defer func() { _ = n.cmd.Process.Signal(syscall.SIGCONT) }() // it may have exited
	return do()
}
