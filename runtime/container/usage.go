package container

import (
	"context"
	"sync"
	"time"

	"github.com/iterait/shepherd/image"
)

// usageAge is how old what is told of the disk may be: to count it, every image
// has to be looked at.
const usageAge = time.Minute

// usage remembers what images took on the disk when it was last counted.
type usage struct {
	mu    sync.Mutex
	at    time.Time // last counted, or tried
	used  int64
	known bool
}

// ImageUsage is what the images in containerd take on the disk, as of a minute
// ago at most, and how much those pulled by shepherd may, 0 for any amount. It
// does not connect to containerd for that: ok is false until something else has,
// and where it cannot be counted.
func (d *Driver) ImageUsage(ctx context.Context) (used, limit int64, ok bool) {
	u := &d.usage
	u.mu.Lock()
	defer u.mu.Unlock()
	if time.Since(u.at) >= usageAge && d.host.isConnected() {
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
