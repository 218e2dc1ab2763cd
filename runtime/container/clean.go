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
	// noticeTime is how long containerd may take to notice that a process has ended.
	noticeTime = 3 * time.Second
)

// Clean asks containerd how the runner ended and removes its task, container and
// snapshot. If the runner seems to have hit a limit of its container, Clean adds a
// hint that names the limit to exit. While containerd cannot be reached nothing is
// removed; the next Load does it.
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
		// Somebody else may be removing the same container, which causes errors of
		// many classes.
		unreachable := errdefs.IsUnavailable(err) || errdefs.IsDeadlineExceeded(err)
		if !unreachable && time.Since(began) > noticeTime {
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return err
		}
	}
}

func (c *containers) remove(ctx context.Context, spec shim.Spec) (*taskExit, error) {
	client, err := c.host.connect(ctx)
	if err != nil {
		return nil, err
	}
	return c.host.remove(ctx, client, containerRef{
		id: spec.Container.ID, snapshotter: spec.Container.Snapshotter, life: spec.Life,
		cni: spec.Container.CNI, folder: filepath.Join(c.lives, spec.Life),
	}, c.keeps())
}

// taskExit is containerd's record of how a task ended.
type taskExit struct{ status uint32 }

// complete adds containerd's record to an exit; known is nil where containerd has
// no such task. Then somebody else removed it, or containerd's shim died: the
// runner is lost, and its job may be tried again.
func complete(exit *shim.Exit, known *taskExit) {
	unknown := exit.Code == -1 && exit.Signal == "" && exit.StartError == ""
	switch {
	case known == nil && !exit.Stopped && !exit.Lost:
		exit.Lost = true
		exit.Detail = "its task was removed from containerd by somebody else, or containerd's shim died"
	case known != nil && unknown && !exit.Lost:
		exit.Code = int(known.status)
		const signalled = 128 // containerd reports a signal as 128 plus its number
		exit.OutOfMemory = exit.OutOfMemory || exit.OOMNearby && exit.Code == signalled+int(unix.SIGKILL)
		if name := unix.SignalName(unix.Signal(exit.Code - signalled)); exit.Code > signalled && name != "" && exit.Detail == "" {
			exit.Detail = "as after " + name
		}
	}
}

// containerRef identifies a container and what belongs to it.
type containerRef struct {
	id, snapshotter, life string
	cni                   bool
	folder                string // the life's directory; it may not exist any more
}

// remove removes a container with its task, network, snapshot and leftovers, and
// returns how its task ended, nil if it had none. With keep, the container and the
// snapshot of an existing task stay. Whatever does not exist is not an error.
func (h *host) remove(ctx context.Context, client *containerd.Client, r containerRef, keep bool) (*taskExit, error) {
	ended, err := removeTask(ctx, client.TaskService(), r.id)
	if err != nil {
		return nil, fmt.Errorf("remove task %s: %w", r.id, err)
	}
	if r.cni {
		if err := h.networks.disconnect(ctx, cniCache(r.folder), r.id); err != nil {
			h.cfg.Log.Warn("A container could not be disconnected from its network; its address may stay allocated", "container", r.id, "error", err)
		}
	}
	if keep && ended != nil {
		return ended, nil
	}
	if ended == nil {
		// The daemon or containerd may have been killed while the task was being
		// created, which leaves parts of it. The container is removed after them: as
		// long as it exists, a removal that is interrupted is done again.
		_, err := client.ContainerService().Get(ctx, r.id)
		if err == nil {
			leftovers{h.cfg.Namespace, r.id, r.life}.clear(ctx, leftoversQuietTime)
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

// removeTask kills a task that is still running and deletes it. It returns nil
// where there is no such task.
func removeTask(ctx context.Context, service tasks.TasksClient, id string) (*taskExit, error) {
	got, err := service.Get(ctx, &tasks.GetRequest{ContainerID: id})
	if err := errgrpc.ToNative(err); errdefs.IsNotFound(err) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if got.Process.Status != task.Status_STOPPED {
		// Usually the process has ended and containerd has not noticed yet.
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
	return &taskExit{response.ExitStatus}, nil
}

// wait waits for a task to end, for at most limit, and reports whether it has ended.
func wait(ctx context.Context, service tasks.TasksClient, id string, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	_, err := service.Wait(ctx, &tasks.WaitRequest{ContainerID: id})
	return err == nil
}

// alive reports whether the shim of a life is running, by the lock that it holds.
// An empty life, which objects of viewImage have, is never alive.
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

// sweep removes a sheep's containers, snapshots and leases that this node's
// daemons, earlier ones included, made in containerd, except those of lives for
// which alive returns true; a nil alive excepts none.
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
			_, err := h.remove(ctx, client, containerRef{
				id: found.ID, snapshotter: found.Snapshotter, life: found.Labels[labelLife],
				cni: found.Labels[labelNetwork] == string(oci.NetworkCNI), folder: filepath.Join(h.cfg.StateDir, sheep, "lives", found.Labels[labelLife]),
			}, false)
			errs = append(errs, err)
		}
	}
	// A daemon that was killed may have made a snapshot but not its container.
	slices.Sort(snapshotters)
	for _, name := range slices.Compact(snapshotters) {
		service := client.SnapshotService(name)
		var orphaned []string
		err := service.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
			if stale(info.Labels) {
				orphaned = append(orphaned, info.Name)
			}
			return nil
		}, ours)
		errs = append(errs, err)
		for _, key := range orphaned {
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
