package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const (
	namespace    = "shepherd" // where shepherdd keeps its containers
	systemSocket = "/run/containerd/containerd.sock"
)

// containerd is the system's containerd or a private one.
type containerd struct {
	address, snapshotter string
	private              *process // nil for the system's
}

// privateConfig disables CRI, which needs a network.
const privateConfig = `version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]
[grpc]
  address = %q
`

// openContainerd uses the containerd at the address if it answers, else it starts one that keeps
// everything in dir.
func openContainerd(ctx context.Context, address, dir string) (*containerd, error) {
	c := &containerd{address: address}
	if conn, err := net.Dial("unix", address); err == nil {
		conn.Close()
		fmt.Printf("Using containerd at %s\n", address)
		return c, c.chooseSnapshotter(ctx)
	}
	c.address = filepath.Join(dir, "containerd.sock")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "config.toml")
	text := fmt.Sprintf(privateConfig, filepath.Join(dir, "root"), filepath.Join(dir, "state"), c.address)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	var err error
	c.private, err = start(dir, "containerd", []string{"--config", config}, func(line string) bool {
		return strings.Contains(line, "containerd successfully booted")
	})
	if err != nil {
		return nil, fmt.Errorf("%w (apt-get install containerd runc)", err)
	}
	fmt.Printf("Started a containerd of the demo's own at %s\n", c.address)
	if err := c.chooseSnapshotter(ctx); err != nil {
		return nil, errors.Join(err, c.stop())
	}
	return c, nil
}

// chooseSnapshotter returns overlayfs if the kernel and the file system of the directory support
// it, else native.
func (c *containerd) chooseSnapshotter(ctx context.Context) error {
	out, err := c.ctr(ctx, "plugins", "ls")
	if err != nil {
		return err
	}
	c.snapshotter = "native"
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) == 4 && f[0] == "io.containerd.snapshotter.v1" && f[1] == "overlayfs" && f[3] == "ok" {
			c.snapshotter = "overlayfs"
		}
	}
	return nil
}

// ctr runs containerd's command line in shepherd's namespace and returns what it
// prints.
func (c *containerd) ctr(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ctr", append([]string{"--address", c.address, "--namespace", namespace}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("ctr %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return string(out), nil
}

// forget removes the demo's images from containerd.
func (c *containerd) forget(ctx context.Context, refs []string) error {
	there, err := c.ctr(ctx, "images", "ls", "--quiet")
	if err != nil {
		return err
	}
	for _, ref := range refs {
		for image := range strings.Lines(there) {
			if strings.TrimSpace(image) != ref {
				continue
			}
			if _, err := c.ctr(ctx, "images", "rm", "--sync", ref); err != nil {
				return err
			}
		}
	}
	return nil
}

// stop stops a private containerd, after everything that still runs in it.
func (c *containerd) stop() error {
	if c.private == nil {
		return nil
	}
	ctx := context.Background() // cleaning up must not be cancelled
	var errs []error
	for _, kind := range []struct {
		list string
		rm   []string
	}{{"tasks", []string{"rm", "--force"}}, {"containers", []string{"rm"}}} {
		left, err := c.ctr(ctx, kind.list, "ls", "--quiet")
		errs = append(errs, err)
		for name := range strings.Lines(left) {
			_, err := c.ctr(ctx, append(append([]string{kind.list}, kind.rm...), strings.TrimSpace(name))...)
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, c.private.stop())...)
}
