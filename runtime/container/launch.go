package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	records "github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/iterait/shepherd/image"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/oci"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/shim"
)

// leaseTime bounds how long what is half made is kept from containerd's garbage
// collection, should the daemon not live to say that it is whole.
const leaseTime = 10 * time.Minute

// launchTime is how long containerd and the container runtime may take to make a
// container.
const launchTime = time.Minute

// Launch makes snapshot, container and task and has the shim watch the task's
// process before it begins.
func (c *containers) Launch(ctx context.Context, up func() (*shim.Handle, error), folder string, spec shim.Spec) error {
	client, err := c.host.connect(ctx)
	if err != nil {
		return &runtime.LoadError{Message: err.Error(), Class: classOf(err)}
	}
	c.mu.Lock()
	img := c.image
	c.mu.Unlock()
	if err := c.launch(ctx, client, img, up, folder, spec); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return c.explain(spec, err)
	}
	return nil
}

func (c *containers) launch(ctx context.Context, client *containerd.Client, img image.Image, up func() (*shim.Handle, error), folder string, spec shim.Spec) error {
	id := spec.Container.ID
	// A call that is cancelled may be served all the same, after what it made
	// has been looked for in vain; a runtime that is killed in the middle leaves
	// half a container. So each step is taken whole, or not at all.
	whole, cancel := context.WithTimeout(context.WithoutCancel(ctx), launchTime)
	defer cancel()
	leased, release, err := client.WithLease(whole, leases.WithID(id), leases.WithExpiration(leaseTime),
		leases.WithLabels(labels(c.cfg.Node, spec)))
	if err != nil {
		return fmt.Errorf("lease: %w", err)
	}
	var releasing sync.WaitGroup
	let := sync.OnceFunc(func() { releasing.Go(func() { _ = release(whole) }) }) // else it expires
	defer releasing.Wait()
	defer let()

	var h *shim.Handle
	var mounts []mount.Mount
	var composed *specs.Spec
	var pid int
	for _, step := range []func() error{
		func() (err error) {
			mounts, err = client.SnapshotService(spec.Container.Snapshotter).Prepare(leased, id, img.ChainID.String(),
				snapshots.WithLabels(labels(c.cfg.Node, spec)))
			return about("snapshot", err)
		},
		func() (err error) {
			composed, err = c.compose(ctx, client, img, folder, spec, runtime.TraceOf(ctx))
			return err
		},
		func() error { return about("container", c.create(leased, client, img, composed, spec)) },
		func() error {
			let() // the container holds the snapshot now
			response, err := client.TaskService().Create(whole, &tasks.CreateTaskRequest{
				ContainerID: id, Rootfs: protoMounts(mounts),
				Stdout: filepath.Join(folder, shim.Stdout), Stderr: filepath.Join(folder, shim.Stderr),
			})
			if err != nil {
				return about("task", errgrpc.ToNative(err))
			}
			pid = int(response.Pid)
			if h, err = up(); err != nil {
				return err
			}
			return about("shim", h.Watch(ctx, pid))
		},
		func() error {
			if !spec.Container.CNI {
				return nil
			}
			return about("network", c.host.networks.connect(whole, cniCache(folder), id, pid))
		},
		func() error {
			_, err := client.TaskService().Start(whole, &tasks.StartRequest{ContainerID: id})
			if err != nil {
				return about("start", errgrpc.ToNative(err))
			}
			return about("shim", h.Begun(ctx))
		},
	} {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func about(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// create makes the container's record.
func (c *containers) create(ctx context.Context, client *containerd.Client, img image.Image, composed *specs.Spec, spec shim.Spec) error {
	encoded, err := typeurl.MarshalAny(composed)
	if err != nil {
		return err
	}
	info, err := c.options.runtimeInfo()
	if err != nil {
		return err
	}
	_, err = client.ContainerService().Create(ctx, records.Container{
		ID: spec.Container.ID, Labels: labels(c.cfg.Node, spec), Image: img.Reference,
		Runtime: info, Spec: encoded, Snapshotter: spec.Container.Snapshotter, SnapshotKey: spec.Container.ID,
	})
	return err
}

// envHost tells a runner where to listen: the shim reaches it at the loopback
// address of whatever network it has, and nobody else is to.
const envHost = "SHEPHERD_RUNNER_HOST"

// resolvConf is how this machine finds other hosts by name.
const resolvConf = "/etc/resolv.conf"

// cniCache is where what CNI's plugins said is kept, below a life's folder.
func cniCache(folder string) string { return filepath.Join(folder, "cni") }

// compose makes the container's spec.
func (c *containers) compose(ctx context.Context, client *containerd.Client, img image.Image, folder string, spec shim.Spec, trace job.Trace) (*specs.Spec, error) {
	if err := os.MkdirAll(c.dataDir, 0o755); err != nil {
		return nil, err
	}
	options, allowed, err := c.options.oci(c.cfg.AllowedMounts)
	if err != nil {
		return nil, err
	}
	options.Env[shim.Mark] = spec.Life
	for name, value := range map[string]string{envHost: "127.0.0.1", messenger.EnvFeatures: messenger.FeatureEvents} {
		if _, own := options.Env[name]; !own {
			options.Env[name] = value
		}
	}
	for _, v := range trace.Environ() {
		name, value, _ := strings.Cut(v, "=")
		options.Env[name] = value
	}
	cfg := oci.Config{
		Image: img.Config.Config, Options: options, AllowedMounts: allowed,
		DataDir: c.dataDir, Hostname: hostname(c.sheep), CgroupPath: "/" + shim.GroupName(spec.Life),
		Host: facts(),
	}
	if cfg.Account, err = c.account(ctx, client, img); err != nil {
		return nil, err
	}
	contract, err := chooseContract(c.options.Contract, img.Config.Config.Labels)
	if err != nil {
		return nil, err
	}
	inject, err := contract.edit(c.options.Command != nil, img.Config.Config.StopSignal)
	if err != nil {
		return nil, err
	}
	if cfg.Edits, err = c.devices.edits(ctx, c.sheep, &c.options); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, noDevices(err)
	}
	if inject != nil {
		cfg.Edits = append([]func(*specs.Spec) error{inject}, cfg.Edits...)
	}
	switch options.Network {
	case oci.NetworkHost:
		cfg.Hostname = ""
		cfg.Hosts, cfg.ResolvConf = "/etc/hosts", resolvConf
	default:
		if options.Network == oci.NetworkCNI {
			cfg.ResolvConf = resolvConf
		}
		cfg.Hosts = filepath.Join(folder, "hosts")
		if err := os.WriteFile(cfg.Hosts, []byte("127.0.0.1 localhost\n::1 localhost\n127.0.0.1 "+cfg.Hostname+"\n"), 0o644); err != nil {
			return nil, err
		}
	}
	return oci.Spec(cfg)
}

// hostname is the sheep's name as a host may have it.
func hostname(sheep string) string {
	return strings.Trim(strings.NewReplacer("_", "-", ".", "-").Replace(sheep), "-")
}

// runtimeInfo is containerd's name for the runtime.
func (o *Options) runtimeInfo() (records.RuntimeInfo, error) {
	const runc = "io.containerd.runc.v2"
	binary := ""
	switch name := o.Runtime; {
	case name == "" || name == "runc":
		return records.RuntimeInfo{Name: runc}, nil
	case name == "gvisor" || name == "runsc":
		return records.RuntimeInfo{Name: "io.containerd.runsc.v1"}, nil
	case name == "nvidia":
		binary = "nvidia-container-runtime"
	case strings.HasPrefix(name, "io."):
		return records.RuntimeInfo{Name: name}, nil
	default:
		binary = name
	}
	options, err := typeurl.MarshalAny(&runcoptions.Options{BinaryName: binary})
	if err != nil {
		return records.RuntimeInfo{}, err
	}
	return records.RuntimeInfo{Name: runc, Options: options}, nil
}

func protoMounts(mounts []mount.Mount) []*types.Mount {
	var list []*types.Mount
	for _, m := range mounts {
		list = append(list, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	return list
}

// explain turns what a start ended with into words.
func (c *containers) explain(spec shim.Spec, err error) error {
	text := err.Error()
	has := func(parts ...string) bool {
		return slices.ContainsFunc(parts, func(p string) bool { return strings.Contains(text, p) })
	}
	class := classOf(err)
	var field *runtime.FieldError
	var option *oci.OptionError
	var load *runtime.LoadError
	switch {
	case errors.As(err, &load):
		class = load.Class
	case errors.As(err, &field), errors.As(err, &option):
		class = errdefs.ErrFailedPrecondition
	case has("no space left on device", "disk quota exceeded"):
		text = "the disk is full: " + text
		class = errdefs.ErrResourceExhausted
	case has("cannot allocate memory", "resource temporarily unavailable", "too many open files"):
		class = errdefs.ErrUnavailable
	case errdefs.IsNotFound(err) && strings.HasPrefix(text, "snapshot:"):
		text = "its image was removed meanwhile"
		class = errdefs.ErrUnavailable
	case errdefs.IsUnavailable(err), errdefs.IsDeadlineExceeded(err):
		text = "containerd cannot be reached (" + text + "); check whether it is running (systemctl status containerd)"
		class = errdefs.ErrUnavailable
	case class == errdefs.ErrUnknown || class == errdefs.ErrNotFound || class == errdefs.ErrInvalidArgument:
		class = errdefs.ErrFailedPrecondition
	}
	return &runtime.LoadError{Message: fmt.Sprintf("Cannot start a container of model `%s:%s`: %s", spec.Model.Name, spec.Model.Version, text), Class: class}
}
