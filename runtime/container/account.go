package container

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/iterait/shepherd/image"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/oci"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/shim"
)

var _ runtime.Owner = (*containers)(nil)

// Owner returns the user and group of the image, or those that the sheep's
// configuration names. See runtime.Owner.
func (c *containers) Owner(ctx context.Context, m job.Model) (uid, gid int, err error) {
	client, err := c.host.connect(ctx)
	if err != nil {
		return 0, 0, err
	}
	c.mu.Lock()
	img := c.image
	c.mu.Unlock()
	if img.Model != m || img.ChainID == "" {
		store, err := c.store(ctx)
		if err != nil {
			return 0, 0, err
		}
		if img, err = store.Local(ctx, m); err != nil {
			return 0, 0, err
		}
	}
	account, err := c.account(ctx, client, img)
	if err != nil {
		return 0, 0, fmt.Errorf("find the user of image %s: %w", img.Reference, err)
	}
	return int(account.UID), int(account.GID), nil
}

// accountKey identifies a user specification resolved in an image's files.
type accountKey struct {
	image digest.Digest // the chain id, which identifies the files
	user  string
}

// account finds the user that the containers of an image run as. The result is
// cached: an image's files do not change.
func (c *containers) account(ctx context.Context, client *containerd.Client, img image.Image) (oci.Account, error) {
	h := c.host
	key := accountKey{img.ChainID, cmp.Or(c.options.User, img.Config.Config.User)}
	h.mu.Lock()
	account, ok := h.accounts[key]
	h.mu.Unlock()
	if ok {
		return account, nil
	}
	err := c.viewImage(ctx, client, img, func(files fs.FS) (err error) {
		account, err = oci.ResolveUser(files, key.user)
		return err
	})
	if err != nil {
		return oci.Account{}, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.accounts[key] = account
	return account, nil
}

// leaseTime is how long a lease protects a view from containerd's garbage
// collection if the daemon is killed before it removes the view.
const leaseTime = 10 * time.Minute

// viewImage calls view with the files of an image, read-only. It removes the
// snapshot that it creates for this when view has returned. If this process or
// containerd is killed before that, the next Load's sweep removes the snapshot, or
// containerd does when the lease expires.
func (c *containers) viewImage(ctx context.Context, client *containerd.Client, img image.Image, view func(fs.FS) error) error {
	labels := map[string]string{labelSheep: c.sheep, labelNode: c.cfg.Node}
	key := c.sheep + "-view-" + shim.NewLife()
	if err := ctx.Err(); err != nil {
		return err
	}
	// A cancelled call may still create the lease; the same holds for the
	// snapshot and the mounts below.
	call, cancel := uninterrupted(ctx, callTime)
	_, release, err := client.WithLease(call, leases.WithID(key), leases.WithExpiration(leaseTime), leases.WithLabels(labels))
	cancel()
	if err != nil {
		c.setSwept(false)
		return fmt.Errorf("lease: %w", err)
	}
	leased := leases.WithLease(ctx, key)
	clean := context.WithoutCancel(ctx)
	defer func() {
		if release(clean) != nil {
			c.setSwept(false)
		}
	}()
	snapshotter := client.SnapshotService(c.snapshotter())
	call, cancel = uninterrupted(leased, snapshotTime)
	mounts, err := makeSnapshot(func() ([]mount.Mount, error) {
		return snapshotter.View(call, key, img.ChainID.String(), snapshots.WithLabels(labels))
	})
	err = tooSlow(call, err)
	cancel()
	if err != nil {
		c.setSwept(false)
		return fmt.Errorf("view snapshot: %w", err)
	}
	defer func() {
		if err := snapshotter.Remove(clean, key); err != nil && !errdefs.IsNotFound(err) {
			c.setSwept(false)
			c.log.Warn("The snapshot that an image was read from could not be removed; it is removed when a model is loaded next or when its lease expires", "snapshot", key, "error", err)
		}
	}()
	if needMountManager(mounts) {
		call, cancel := uninterrupted(leased, callTime)
		active, err := client.MountManager().Activate(call, key, mounts)
		cancel()
		if err != nil {
			return fmt.Errorf("activate mounts: %w", err)
		}
		defer func() { _ = client.MountManager().Deactivate(clean, key) }() // if it fails, the lease's expiry deactivates them
		mounts = active.System
	}
	return mountPrivately(ctx, mounts, view)
}
