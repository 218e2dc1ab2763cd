package shepherd

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/iterait/shepherd/job"
)

// Peers knows which nodes share the ledger.
type Peers interface {
	// Peers returns the names of the other nodes that are alive.
	Peers(ctx context.Context, node string) ([]string, error)
	// Draining reports whether an operator wants the node, which has joined, to claim no
	// job. It answers at once.
	Draining(node string) bool
}

// drainEvery is how often it is looked whether an operator wants the node drained.
const drainEvery = time.Second

// watchDrain has the node drained, and take jobs again, as an operator wants.
func (s *Shepherd) watchDrain(ctx context.Context) {
	for sleep(ctx, drainEvery) == nil {
		s.setDrained(s.cfg.Peers.Draining(s.cfg.Node))
	}
}

// setDrained has all sheep claim no more jobs, or claim jobs again. They go on with what
// they have.
func (s *Shepherd) setDrained(drained bool) {
	f := s.env.flock
	if f.drained.Swap(drained) == drained {
		return
	}
	if drained {
		s.log.Info("The node is drained: its sheep take no more jobs")
		return
	}
	s.log.Info("The node takes jobs again")
	for _, l := range f.all() {
		f.wakeFirst(l)
	}
}

// decline notes that a job of a model that no sheep of this node can run is left to
// another node: for missingFor the sheep that cannot run it claim none of it.
func (f *flock) decline(m job.Model, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.declined[m] = now.Add(missingFor)
}

// leftToPeers are the models that were declined of late.
func (f *flock) leftToPeers(now time.Time) []job.Model {
	f.mu.Lock()
	defer f.mu.Unlock()
	maps.DeleteFunc(f.declined, func(_ job.Model, until time.Time) bool { return now.After(until) })
	return slices.Collect(maps.Keys(f.declined))
}

// onPeer says whether another node may have a sheep that can run the job: one that is
// alive, and that has not said of this run that it has none.
func (l *lane) onPeer(ctx context.Context, a *attempt) (bool, error) {
	if l.peers == nil {
		return false, nil
	}
	peers, err := l.peers.Peers(ctx, l.node)
	if err != nil || len(peers) == 0 {
		return false, err
	}
	earlier, err := l.attempts(ctx, a.ID)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(peers, func(peer string) bool {
		return !slices.ContainsFunc(earlier, func(e job.Attempt) bool {
			return e.Run == a.Run && e.Node == peer && e.Cause == job.CauseNotHere
		})
	}), nil
}
