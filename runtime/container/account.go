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

// accountKey is a user's name in an image.
type accountKey struct {
	image digest.Digest // the chain id: what the files are
	user  string
}

// account finds who the containers of an image run as. The answer is remembered:
// an image's files do not change.
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

// leaseTime is how long a view is kept from containerd's garbage collection,
// should the daemon not live to remove it.
const leaseTime = 10 * time.Minute

// viewImage calls view with the files of an image, read-only. The snapshot that
// it takes for that is removed when view has returned; should this process or
// containerd be killed, the next Load's sweep removes it, or the end of its lease does.
func (c *containers) viewImage(ctx context.Context, client *containerd.Client, img image.Image, view func(fs.FS) error) error {
	labels := map[string]string{labelSheep: c.sheep, labelNode: c.cfg.Node}
	key := c.sheep + "-view-" + shim.NewLife()
	if err := ctx.Err(); err != nil {
		return err
	}
	// A call that is broken off may have made the lease all the same; so too
	// with the snapshot and the mounts below.
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
			c.log.Warn("The snapshot that an image was read from could not be removed; the next model's load removes it, or the end of its lease", "snapshot", key, "error", err)
		}
	}()
	if managed(mounts) {
		call, cancel := uninterrupted(leased, callTime)
		active, err := client.MountManager().Activate(call, key, mounts)
		cancel()
		if err != nil {
			return fmt.Errorf("activate mounts: %w", err)
		}
		defer func() { _ = client.MountManager().Deactivate(clean, key) }() // else with its lease
		mounts = active.System
	}
	return mountPrivately(ctx, mounts, view)
}
