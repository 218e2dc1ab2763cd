package container

import (
	"context"
	"sync"
	"time"

	"github.com/iterait/shepherd/image"
)

// maxUsageAge is how long a measured disk usage is reported before it is measured
// again, which examines every image.
const maxUsageAge = time.Minute

// usage caches the disk usage of images.
type usage struct {
	mu    sync.Mutex
	at    time.Time // of the last measurement, successful or not
	used  int64
	known bool
}

// ImageUsage returns how many bytes the images in containerd take on the disk, at
// most a minute old, and the budget for those that shepherd pulls, 0 for no limit.
// ok is false where the usage could not be measured, and as long as there is no
// connection to containerd: ImageUsage does not make one.
func (d *Driver) ImageUsage(ctx context.Context) (used, limit int64, ok bool) {
	u := &d.usage
	u.mu.Lock()
	defer u.mu.Unlock()
	if time.Since(u.at) >= maxUsageAge && d.host.isConnected() {
		u.at = time.Now()
		store, err := d.host.store(ctx, storeKey{d.cfg.Snapshotter, image.Always})
		if err == nil {
			u.used, err = store.Usage(ctx)
		}
		u.known = err == nil
	}
	return u.used, d.cfg.ImageBudget, u.known
}

func (h *host) isConnected() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.client != nil && !h.closed
}
