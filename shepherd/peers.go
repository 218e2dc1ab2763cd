package shepherd

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/runtime"
)

// Peers knows which nodes share the ledger.
type Peers interface {
	// Peers returns the names of the other nodes that are alive.
	Peers(ctx context.Context, node string) ([]string, error)
	// Draining reports whether an operator wants the node, which has joined, to claim no
	// job. It answers at once.
	Draining(node string) bool
}

// Fleet asks other nodes for what only they know. An error of class
// errdefs.ErrUnavailable is *job.Unavailable, which says of which node.
type Fleet interface {
	// Answering are the names of the other nodes that are alive and have a sheep with the
	// address.
	Answering(ctx context.Context, to job.Address) ([]string, error)
	// Nearest is how near the model is on the other nodes that are alive, take jobs, have
	// a sheep with the address, and one that is free, as far as they have said so.
	Nearest(ctx context.Context, m job.Model, to job.Address) (job.Nearness, error)
	// Sheep are those of a node.
	Sheep(ctx context.Context, node string) ([]job.Sheep, error)
	// AttemptLog opens what a node has kept of the log of an attempt; following, it ends
	// when the attempt has. The error is job.ErrNoJobLog where it has none, or is not up.
	AttemptLog(ctx context.Context, node string, id job.ID, run, attempt int, q job.LogQuery) (io.ReadCloser, error)
}

// answers reports whether the lane may run jobs with the address, and whether it is
// the sheep's own, as its name is.
func (l *lane) answers(address string) (may, own bool) {
	if address == "" {
		return true, false
	}
	a := job.ParseAddress(address)
	return a.Fits(l.node, l.Name, l.placement.Labels), a.Sheep != ""
}

// named says that a job is for one sheep, by its name.
func named(address string) bool { return job.ParseAddress(address).Sheep != "" }

// remoteLog is the log of an attempt on another node, which knows where it ends.
type remoteLog struct{ io.ReadCloser }

func (remoteLog) End(string) {}

// remoteAttempt opens what another node has kept of the log of an attempt; nil where
// that is nothing, or the node is gone.
func (f *jobLog) remoteAttempt(ctx context.Context, a job.Attempt) (runtime.JobLog, error) {
	if f.reader.cfg.Fleet == nil {
		return nil, nil
	}
	log, err := f.reader.cfg.Fleet.AttemptLog(ctx, a.Node, f.job, a.Run, a.Number, f.query)
	switch {
	case err == nil:
		return remoteLog{log}, nil
	case errors.Is(err, job.ErrNoJobLog):
		return nil, nil
	}
	return nil, err
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

// leftToPeers are the models that were declined recently.
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
	if l.fleet != nil && a.Sheep != "" {
		peers, err = l.fleet.Answering(ctx, job.ParseAddress(a.Sheep))
	}
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
