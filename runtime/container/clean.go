package container

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/oci"
	"github.com/iterait/shepherd/shim"
)

const (
	// restartTime is how long a restart of containerd may take.
	restartTime = 10 * time.Second
	// noticeTime is how long containerd may take to see that a process has ended.
	noticeTime = 3 * time.Second
)

// Clean asks containerd how the runner ended, and removes task, container and
// snapshot. To an end that looks like a limit of the container it adds which. Where
// containerd cannot be asked they stay for the next Load.
func (c *containers) Clean(ctx context.Context, spec shim.Spec, exit *shim.Exit) (err error) {
	if spec.Container == nil {
		return nil
	}
	defer func() {
		if err != nil || c.keeps() {
			c.setSwept(false)
		}
	}()
	defer c.addHint(exit)
	ctx, cancel := context.WithTimeout(ctx, restartTime+noticeTime)
	defer cancel()
	began := time.Now()
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		ended, err := c.remove(ctx, spec)
		if err == nil {
			complete(exit, ended)
			return nil
		}
		// Others may be at the same container, which fails in many ways.
		away := errdefs.IsUnavailable(err) || errdefs.IsDeadlineExceeded(err)
		if !away && time.Since(began) > noticeTime {
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return err
		}
	}
}

func (c *containers) remove(ctx context.Context, spec shim.Spec) (*ending, error) {
	client, err := c.host.connect(ctx)
	if err != nil {
		return nil, err
	}
	return c.host.remove(ctx, client, record{
		id: spec.Container.ID, snapshotter: spec.Container.Snapshotter, life: spec.Life,
		cni: spec.Container.CNI, folder: filepath.Join(c.lives, spec.Life),
	}, c.keeps())
}

// ending is what containerd knows of a task's end.
type ending struct{ status uint32 }

// complete adds to an exit what containerd knows. A task that it does not know
// any more was removed behind our back: what the runner had to do may be tried
// again.
func complete(exit *shim.Exit, known *ending) {
	unknown := exit.Code == -1 && exit.Signal == "" && exit.StartError == ""
	switch {
	case known == nil && !exit.Stopped && !exit.Lost:
		exit.Lost = true
		exit.Detail = "its task was removed from containerd by somebody else, or containerd's shim died"
	case known != nil && unknown && !exit.Lost:
		exit.Code = int(known.status)
		const signalled = 128 // more than that is how containerd says that it was a signal
		exit.OutOfMemory = exit.OutOfMemory || exit.OOMNearby && exit.Code == signalled+int(unix.SIGKILL)
		if name := unix.SignalName(unix.Signal(exit.Code - signalled)); exit.Code > signalled && name != "" && exit.Detail == "" {
			exit.Detail = "as after " + name
		}
	}
}

// record is what a container is found by.
type record struct {
	id, snapshotter, life string
	cni                   bool
	folder                string // the life's; it may be gone
}

// remove removes a container with all that belongs to it, and says how its task
// ended; nil where there was none. Where keep is set, container and snapshot
// stay. What is not there any more is no error.
func (h *host) remove(ctx context.Context, client *containerd.Client, r record, keep bool) (*ending, error) {
	ended, err := removeTask(ctx, client.TaskService(), r.id)
	if err != nil {
		return nil, fmt.Errorf("remove task %s: %w", r.id, err)
	}
	if r.cni {
		if err := h.networks.disconnect(ctx, cniCache(r.folder), r.id); err != nil {
			h.cfg.Log.Warn("What a container had of the network may not be given back", "container", r.id, "error", err)
		}
	}
	if keep && ended != nil {
		return ended, nil
	}
	if ended == nil {
		// The start of the task may have been broken off with the daemon that had asked
		// for it or with containerd, and may have left what it had begun. The container
		// goes last: while it is there, a removal that is broken off itself looks again.
		_, err := client.ContainerService().Get(ctx, r.id)
		if err == nil {
			leftovers{h.cfg.Namespace, r.id, r.life}.clear(ctx, brokenOffTime)
		} else if !errdefs.IsNotFound(err) {
			return nil, fmt.Errorf("look for container %s: %w", r.id, err)
		}
	}
	if err := client.ContainerService().Delete(ctx, r.id); err != nil && !errdefs.IsNotFound(err) {
		return ended, fmt.Errorf("remove container %s: %w", r.id, err)
	}
	if err := client.SnapshotService(r.snapshotter).Remove(ctx, r.id); err != nil && !errdefs.IsNotFound(err) {
		return ended, fmt.Errorf("remove snapshot %s: %w", r.id, err)
	}
	return ended, nil
}

// removeTask ends a task, should it not have ended, and removes it.
func removeTask(ctx context.Context, service tasks.TasksClient, id string) (*ending, error) {
	got, err := service.Get(ctx, &tasks.GetRequest{ContainerID: id})
	if err := errgrpc.ToNative(err); errdefs.IsNotFound(err) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if got.Process.Status != task.Status_STOPPED {
		// Mostly its process is dead and containerd has not noticed yet.
		if got.Process.Status != task.Status_RUNNING || !wait(ctx, service, id, noticeTime) {
			_, err := service.Kill(ctx, &tasks.KillRequest{ContainerID: id, Signal: uint32(unix.SIGKILL), All: true})
			if err := errgrpc.ToNative(err); err != nil && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) {
				return nil, err
			}
			wait(ctx, service, id, noticeTime)
		}
	}
	response, err := service.Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: id})
	if err := errgrpc.ToNative(err); errdefs.IsNotFound(err) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return &ending{response.ExitStatus}, nil
}

// wait waits until a task has ended, and reports whether it has.
func wait(ctx context.Context, service tasks.TasksClient, id string, long time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, long)
	defer cancel()
	_, err := service.Wait(ctx, &tasks.WaitRequest{ContainerID: id})
	return err == nil
}

// alive reports whether a life of the sheep goes on: whether its shim does. What
// has no life was not made for one.
func (c *containers) alive(life string) bool {
	if life == "" {
		return false
	}
	folder, err := shim.OpenFolder(filepath.Join(c.lives, life))
	if err != nil {
		return false
	}
	defer folder.Close()
	free, err := folder.TryLock()
	return err == nil && !free
}

// sweep removes all objects of a sheep in containerd, whichever daemon of this
// node made it, but for the lives that are alive; nil means none is.
func (h *host) sweep(ctx context.Context, node, sheep string, alive func(life string) bool) error {
	client, err := h.connect(ctx)
	if err != nil {
		return err
	}
	ours := fmt.Sprintf("labels.%q==%q,labels.%q==%q", labelSheep, sheep, labelNode, node)
	stale := func(labels map[string]string) bool {
		return alive == nil || !alive(labels[labelLife])
	}
	list, err := client.ContainerService().List(ctx, ours)
	if err != nil {
		return fmt.Errorf("list containers of sheep %s: %w", sheep, err)
	}
	var errs []error
	snapshotters := []string{h.cfg.Snapshotter}
	for _, found := range list {
		snapshotters = append(snapshotters, found.Snapshotter)
		if stale(found.Labels) {
			h.cfg.Log.Info("Removing a container of an earlier runner", "sheep", sheep, "container", found.ID)
			_, err := h.remove(ctx, client, record{
				id: found.ID, snapshotter: found.Snapshotter, life: found.Labels[labelLife],
				cni: found.Labels[labelNetwork] == string(oci.NetworkCNI), folder: filepath.Join(h.cfg.StateDir, sheep, "lives", found.Labels[labelLife]),
			}, false)
			errs = append(errs, err)
		}
	}
	// What a daemon that was killed had made before the container.
	slices.Sort(snapshotters)
	for _, name := range slices.Compact(snapshotters) {
		service := client.SnapshotService(name)
		var left []string
		err := service.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
			if stale(info.Labels) {
				left = append(left, info.Name)
			}
			return nil
		}, ours)
		errs = append(errs, err)
		for _, key := range left {
			if err := service.Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) {
				errs = append(errs, err)
			}
		}
	}
	held, err := client.LeasesService().List(ctx, ours)
	errs = append(errs, err)
	for _, lease := range held {
		if stale(lease.Labels) {
			if err := client.LeasesService().Delete(ctx, lease); err != nil && !errdefs.IsNotFound(err) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}
