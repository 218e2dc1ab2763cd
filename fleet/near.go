package fleet

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/iterait/shepherd/job"
)

// peerCache keeps who the other nodes are for peerCacheTime.
type peerCache struct {
	mu    sync.Mutex
	peers []Node
	at    time.Time
}

// peerCacheTime is for how long that is good enough to say who is near a model: it saves each
// sheep's search for a job a question to the database.
const peerCacheTime = time.Second

// cachedPeers are the other nodes that are alive, as they were at most peerCacheTime ago.
func (f *Fleet) cachedPeers(ctx context.Context) ([]Node, error) {
	f.cache.mu.Lock()
	defer f.cache.mu.Unlock()
	if !f.cache.at.IsZero() && time.Since(f.cache.at) < peerCacheTime {
		return f.cache.peers, nil
	}
	peers, err := f.Peers(ctx)
	if err != nil {
		return nil, err
	}
	f.cache.peers, f.cache.at = peers, time.Now()
	return peers, nil
}

// Nearest is how near the model is on the other nodes that are alive, take jobs, have a
// sheep with the address, and one that is free: as many sheep as jobs are taken for busy.
func (f *Fleet) Nearest(ctx context.Context, m job.Model, to job.Address) (job.Nearness, error) {
	peers, err := f.cachedPeers(ctx)
	if err != nil {
		return job.ModelAway, err
	}
	nearest := job.ModelAway
	for _, n := range peers {
		if n.Draining || n.Held >= len(n.Sheep) || !slices.ContainsFunc(n.Sheep, func(s job.Sheep) bool { return to.Fits(n.Name, s.Name, n.Labels) }) {
			continue
		}
		nearest = max(nearest, n.near(m))
	}
	return nearest, nil
}

// near is how near the model is on the node.
func (n Node) near(m job.Model) job.Nearness {
	switch {
	case slices.ContainsFunc(n.Sheep, func(s job.Sheep) bool { return s.Model == m }):
		return job.ModelLoaded
	case slices.Contains(n.Models, m):
		return job.ModelOnDisk
	}
	return job.ModelAway
}
