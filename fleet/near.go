package fleet

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/iterait/shepherd/job"
)

// peerCache caches the list of the other nodes for peerCacheTime.
type peerCache struct {
	mu    sync.Mutex
	peers []Node
	at    time.Time
	// nearest caches results computed from the list: the sheep of a large fleet repeat the
	// same queries.
	nearest map[nearKey]job.Nearness
}

type nearKey struct {
	model   job.Model
	address string
}

// peerCacheTime is how long the list may be used to find nodes near a model: it saves a
// database query each time a sheep looks for a job.
const peerCacheTime = time.Second

// cachedPeers returns the other live nodes as of at most peerCacheTime ago. cache.mu is held.
func (f *Fleet) cachedPeers(ctx context.Context) ([]Node, error) {
	if !f.cache.at.IsZero() && time.Since(f.cache.at) < peerCacheTime {
		return f.cache.peers, nil
	}
	peers, err := f.Peers(ctx)
	if err != nil {
		return nil, err
	}
	f.cache.peers, f.cache.at, f.cache.nearest = peers, time.Now(), make(map[nearKey]job.Nearness)
	return peers, nil
}

// Nearest returns how near the model is on the other live nodes that take jobs, have a sheep
// with the address, and a free one: a node is assumed to have one busy sheep per held job.
func (f *Fleet) Nearest(ctx context.Context, m job.Model, to job.Address) (job.Nearness, error) {
	f.cache.mu.Lock()
	defer f.cache.mu.Unlock()
	peers, err := f.cachedPeers(ctx)
	if err != nil {
		return job.ModelAway, err
	}
	key := nearKey{m, to.String()}
	if known, ok := f.cache.nearest[key]; ok {
		return known, nil
	}
	nearest := job.ModelAway
	for _, n := range peers {
		if n.Draining || n.Held >= len(n.Sheep) || !slices.ContainsFunc(n.Sheep, func(s job.Sheep) bool { return to.Fits(n.Name, s.Name, n.Labels) }) {
			continue
		}
		nearest = max(nearest, n.near(m))
	}
	f.cache.nearest[key] = nearest
	return nearest, nil
}

// near returns how near the model is on the node.
func (n Node) near(m job.Model) job.Nearness {
	switch {
	case slices.ContainsFunc(n.Sheep, func(s job.Sheep) bool { return s.Model == m }):
		return job.ModelLoaded
	case slices.Contains(n.Models, m):
		return job.ModelOnDisk
	}
	return job.ModelAway
}
