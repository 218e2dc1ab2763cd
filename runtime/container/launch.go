package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	records "github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/iterait/shepherd/image"
	"github.com/iterait/shepherd/image/containerderr"
	"github.com/iterait/shepherd/internal/errtext"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/oci"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/shim"
)

// How long one call to containerd may take.
const (
	// snapshotTime is for snapshotters that copy the image's files (native,
	// devmapper, blockfile).
	snapshotTime = 15 * time.Minute
	// createTime is for calls that run the OCI runtime and its hooks: a GPU without
	// persistence mode takes seconds to initialize.
	createTime = 5 * time.Minute
	// callTime is for calls that normally take milliseconds.
	callTime = time.Minute
	// abandonTime is how much longer a call may run after its caller was cancelled.
	// A call that is cancelled may still take effect after Clean has looked for its
	// result, and a runtime that is killed half-way leaves half a container. Most
	// calls end within this time.
	abandonTime = 20 * time.Second
)

// errTooSlow is the cause of a call's context that has reached its limit.
var errTooSlow = errors.New("containerd took too long")

// uninterrupted returns a context for a call to containerd that should not be
// cancelled half-way: it ends after limit, or abandonTime after ctx has ended.
func uninterrupted(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	call, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), limit, errTooSlow)
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(abandonTime, cancel) })
	return call, func() { stop(); cancel() }
}

// Launch creates the snapshot, container and task, and has the shim watch the
// task's process before it starts. See shimmed.Type.
func (c *containers) Launch(ctx context.Context, up func() (*shim.Handle, error), folder string, spec shim.Spec) error {
	client, err := c.host.connect(ctx)
	if err != nil {
		return &runtime.LoadError{Message: errtext.Of(err), Class: classOf(err)}
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

// launch does Launch's steps in order: snapshot, spec, container, task, shim,
// network, start. When one fails, Clean removes what the earlier ones made.
func (c *containers) launch(ctx context.Context, client *containerd.Client, img image.Image, up func() (*shim.Handle, error), folder string, spec shim.Spec) error {
	id := spec.Container.ID
	mounts, err := c.snapshot(ctx, client, img, spec)
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	composed, err := c.compose(ctx, client, img, folder, spec, runtime.TraceOf(ctx))
	if err != nil {
		return err
	}
	if err := c.create(ctx, client, img, composed, spec); err != nil {
		return fmt.Errorf("container: %w", err)
	}
	pid, err := createTask(ctx, client, mounts, folder, id)
	if err != nil {
		return fmt.Errorf("task: %w", err)
	}
	handle, err := up()
	if err != nil {
		return err
	}
	if err := handle.Watch(ctx, pid); err != nil {
		return fmt.Errorf("shim: %w", err)
	}
	if spec.Container.CNI {
		if err := c.connectNetwork(ctx, folder, id, pid); err != nil {
			return fmt.Errorf("network: %w", err)
		}
	}
	if err := startTask(ctx, client, id); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	if err := handle.Begun(ctx); err != nil {
		return fmt.Errorf("shim: %w", err)
	}
	return nil
}

// labelRoot protects a snapshot from containerd's garbage collection until the
// container refers to it. If the daemon is killed before that, the sweep removes the
// snapshot.
const labelRoot = "containerd.io/gc.root"

// snapshot creates the container's file system and returns its mounts.
func (c *containers) snapshot(ctx context.Context, client *containerd.Client, img image.Image, spec shim.Spec) ([]mount.Mount, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	call, cancel := uninterrupted(ctx, snapshotTime)
	defer cancel()
	snapshotLabels := labels(c.cfg.Node, spec)
	snapshotLabels[labelRoot] = time.Now().UTC().Format(time.RFC3339)
	snapshotter := client.SnapshotService(spec.Container.Snapshotter)
	mounts, err := makeSnapshot(func() ([]mount.Mount, error) {
		return snapshotter.Prepare(call, spec.Container.ID, img.ChainID.String(), snapshots.WithLabels(snapshotLabels))
	})
	return mounts, tooSlow(call, err)
}

// makeSnapshot calls create, and retries it where a directory of an earlier snapshot
// was in the way; see containerderr.SnapshotInTheWay.
func makeSnapshot(create func() ([]mount.Mount, error)) (mounts []mount.Mount, err error) {
	for range 3 {
		if mounts, err = create(); !containerderr.SnapshotInTheWay(err) {
			break
		}
	}
	return mounts, err
}

// create creates the container in containerd: a record only, no process yet.
func (c *containers) create(ctx context.Context, client *containerd.Client, img image.Image, composed *specs.Spec, spec shim.Spec) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	encoded, err := typeurl.MarshalAny(composed)
	if err != nil {
		return err
	}
	info, err := c.options.runtimeInfo(c.host.machine().systemd)
	if err != nil {
		return err
	}
	call, cancel := uninterrupted(ctx, callTime)
	defer cancel()
	_, err = client.ContainerService().Create(call, records.Container{
		ID: spec.Container.ID, Labels: labels(c.cfg.Node, spec), Image: img.Reference,
		Runtime: info, Spec: encoded, Snapshotter: spec.Container.Snapshotter, SnapshotKey: spec.Container.ID,
	})
	return tooSlow(call, err)
}

// createTask has the OCI runtime create the container and returns the pid of its
// first process, which waits for startTask.
func createTask(ctx context.Context, client *containerd.Client, mounts []mount.Mount, folder, id string) (pid int, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	call, cancel := uninterrupted(ctx, createTime)
	defer cancel()
	response, err := client.TaskService().Create(call, &tasks.CreateTaskRequest{
		ContainerID: id, Rootfs: protoMounts(mounts),
		Stdout: filepath.Join(folder, shim.Stdout), Stderr: filepath.Join(folder, shim.Stderr),
	})
	if err != nil {
		return 0, tooSlow(call, errgrpc.ToNative(err))
	}
	return int(response.Pid), nil
}

// startTask lets the container's first process execute the runner.
func startTask(ctx context.Context, client *containerd.Client, id string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	call, cancel := uninterrupted(ctx, createTime)
	defer cancel()
	_, err := client.TaskService().Start(call, &tasks.StartRequest{ContainerID: id})
	return tooSlow(call, errgrpc.ToNative(err))
}

// connectNetwork connects the container to the network and writes the network's
// name servers, if it has any, to the container's resolv.conf.
func (c *containers) connectNetwork(ctx context.Context, folder, id string, pid int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	call, cancel := uninterrupted(ctx, callTime)
	defer cancel()
	dns, err := c.host.networks.connect(call, cniCache(folder), id, pid)
	if err != nil {
		return tooSlow(call, err)
	}
	if len(dns.Nameservers) == 0 {
		return nil
	}
	return writeWorldReadable(resolvConfOf(folder), formatResolvConf(dns))
}

// tooSlow returns errTooSlow if the call failed because it reached its time limit,
// else err.
func tooSlow(call context.Context, err error) error {
	if err != nil && errors.Is(context.Cause(call), errTooSlow) {
		return errTooSlow
	}
	return err
}

// cniCache is the directory in a life's directory where libcni keeps the plugins'
// results.
func cniCache(folder string) string { return filepath.Join(folder, "cni") }

// compose composes the container's OCI spec, and writes the files that it mounts.
func (c *containers) compose(ctx context.Context, client *containerd.Client, img image.Image, folder string, spec shim.Spec, trace job.Trace) (*specs.Spec, error) {
	if err := os.MkdirAll(c.dataDir, 0o755); err != nil {
		return nil, err
	}
	if err := os.Chmod(c.dataDir, 0o755); err != nil { // the container's user must be able to enter it, whatever the umask
		return nil, err
	}
	configured := c.optionsFor(spec.Model)
	options, allowed, err := configured.oci(c.cfg.AllowedMounts)
	if err != nil {
		return nil, err
	}
	options.Env[shim.Mark] = spec.Life
	if _, set := options.Env[messenger.EnvFeatures]; !set {
		options.Env[messenger.EnvFeatures] = messenger.FeatureEvents
	}
	for _, v := range trace.Environ() {
		name, value, _ := strings.Cut(v, "=")
		options.Env[name] = value
	}
	contract, err := chooseContract(configured.Contract, img.Config.Config.Labels)
	if err != nil {
		return nil, err
	}
	contract.setCommand(&options)
	inject, err := contract.edit(spec.Container.StopSignal)
	if err != nil {
		return nil, err
	}
	cfg := oci.Config{
		Image: img.Config.Config, Options: options, AllowedMounts: allowed,
		DataDir: c.dataDir, Hostname: hostname(c.sheep), CgroupPath: cgroupPath(c.host.machine(), c.options.hasRuncOptions(), spec.Life),
		Host: c.host.machine().Host,
	}
	if cfg.Account, err = c.account(ctx, client, img); err != nil {
		return nil, err
	}
	if cfg.Edits, err = c.devices.edits(ctx, c.sheep, &c.options); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, deviceError(err)
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
			cfg.ResolvConf = resolvConfOf(folder)
			if err := writeResolvConf(cfg.ResolvConf, resolvConf, resolvedConf); err != nil {
				return nil, err
			}
		}
		cfg.Hosts = filepath.Join(folder, "hosts")
		if err := writeWorldReadable(cfg.Hosts, []byte("127.0.0.1 localhost\n::1 localhost\n127.0.0.1 "+cfg.Hostname+"\n")); err != nil {
			return nil, err
		}
	}
	return oci.Spec(cfg)
}

// hostname turns a sheep's name into a valid host name.
func hostname(sheep string) string {
	return strings.Trim(strings.NewReplacer("_", "-", ".", "-").Replace(sheep), "-")
}

// containerd's names for OCI runtimes.
const (
	runcRuntime   = "io.containerd.runc.v2"
	gvisorRuntime = "io.containerd.runsc.v1"
)

// runtimeName returns containerd's name for the configured runtime, and the program
// that the runtime runs in place of runc, if any.
func (o *Options) runtimeName() (name, binary string) {
	switch r := o.Runtime; {
	case r == "" || r == "runc":
		return runcRuntime, ""
	case r == "gvisor" || r == "runsc":
		return gvisorRuntime, ""
	case r == "nvidia":
		return runcRuntime, "nvidia-container-runtime"
	case strings.HasPrefix(r, "io."):
		return r, ""
	default:
		return runcRuntime, r
	}
}

// hasRuncOptions reports whether the runtime accepts runc's options.
func (o *Options) hasRuncOptions() bool {
	name, _ := o.runtimeName()
	return name == runcRuntime
}

// runtimeInfo returns the runtime and its options for containerd. With systemd, the
// options have systemd create the container's cgroup.
func (o *Options) runtimeInfo(systemd bool) (records.RuntimeInfo, error) {
	name, binary := o.runtimeName()
	info := records.RuntimeInfo{Name: name}
	if name != runcRuntime || binary == "" && !systemd {
		return info, nil
	}
	options, err := typeurl.MarshalAny(&runcoptions.Options{BinaryName: binary, SystemdCgroup: systemd})
	if err != nil {
		return records.RuntimeInfo{}, err
	}
	info.Options = options
	return info, nil
}

func protoMounts(mounts []mount.Mount) []*types.Mount {
	var list []*types.Mount
	for _, m := range mounts {
		list = append(list, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	return list
}

// explain turns the error of a start into a LoadError with advice where there is any.
func (c *containers) explain(spec shim.Spec, err error) error {
	text := errtext.Of(err)
	class := classOf(err)
	var field *runtime.FieldError
	var option *oci.OptionError
	var load *runtime.LoadError
	switch {
	case errors.As(err, &load):
		class = load.Class
	case errors.As(err, &field), errors.As(err, &option):
		class = errdefs.ErrFailedPrecondition
	case errors.Is(err, errTooSlow):
		class = errdefs.ErrUnavailable
	case containerderr.DiskFull(err):
		text = "the disk is full: " + text
		class = errdefs.ErrResourceExhausted
	case containerderr.CgroupsReadOnly(err):
		text = "containerd cannot make control groups (" + text + "); mount /sys/fs/cgroup writable where it runs"
		class = errdefs.ErrUnavailable
	case containerderr.ShortOfResources(err), containerderr.DiskBroken(err):
		class = errdefs.ErrUnavailable
	case errdefs.IsNotFound(err) && strings.HasPrefix(text, "snapshot:"):
		text = "its image was removed after it was loaded"
		class = errdefs.ErrUnavailable
	case errdefs.IsUnavailable(err), errdefs.IsDeadlineExceeded(err):
		text = "containerd cannot be reached (" + text + "); check whether it is running (systemctl status containerd)"
		class = errdefs.ErrUnavailable
	case containerderr.NoProgram(err):
		text = "the image does not have the program that its command names, or its interpreter (" + containerderr.Core(err) + "); set the sheep's command, or build the image again"
		class = errdefs.ErrFailedPrecondition
	case class == errdefs.ErrUnknown || class == errdefs.ErrNotFound || class == errdefs.ErrInvalidArgument:
		class = errdefs.ErrFailedPrecondition
	}
	return &runtime.LoadError{Message: fmt.Sprintf("Cannot start a container of model `%s:%s`: %s", spec.Model.Name, spec.Model.Version, text), Class: class}
}
