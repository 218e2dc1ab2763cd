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

// Peers is the membership of the nodes that share a ledger.
type Peers interface {
	// Peers returns the names of the other live nodes.
	Peers(ctx context.Context, node string) ([]string, error)
	// Draining reports whether an operator has drained the node, which must have joined. It
	// returns at once.
	Draining(node string) bool
}

// Fleet asks other nodes for what the ledger does not know. An error of class
// errdefs.ErrUnavailable is a *job.Unavailable that names the node.
type Fleet interface {
	// Answering returns the names of the other live nodes that have a sheep with the
	// address.
	Answering(ctx context.Context, to job.Address) ([]string, error)
	// Nearest returns how close the model is on the other live nodes that take jobs and
	// have a free sheep with the address, as far as they have announced it.
	Nearest(ctx context.Context, m job.Model, to job.Address) (job.Nearness, error)
	// Sheep returns the sheep of a node.
	Sheep(ctx context.Context, node string) ([]job.Sheep, error)
	// AttemptLog opens the log that a node has kept of an attempt; with q.Follow it ends
	// when the attempt has. The error is job.ErrNoJobLog if the node has none or is not
	// alive.
	AttemptLog(ctx context.Context, node string, id job.ID, run, attempt int, q job.LogQuery) (io.ReadCloser, error)
}

// answers reports whether the lane may run jobs with the address, and whether the address
// names this sheep.
func (l *lane) answers(address string) (may, own bool) {
	if address == "" {
		return true, false
	}
	a := job.ParseAddress(address)
	return a.Fits(l.node, l.Name, l.placement.Labels), a.Sheep != ""
}

// named reports whether the address names one sheep.
func named(address string) bool { return job.ParseAddress(address).Sheep != "" }

// remoteLog is the log of an attempt on another node, which ends the log itself.
type remoteLog struct{ io.ReadCloser }

func (remoteLog) End(string) {}

// remoteAttempt opens the log that another node has kept of an attempt, or returns nil if
// there is none or the node is gone.
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

// drainEvery is how often the operator's drain of the node is polled.
const drainEvery = time.Second

// watchDrain drains and resumes the node as an operator wants.
func (s *Shepherd) watchDrain(ctx context.Context) {
	for sleep(ctx, drainEvery) == nil {
		s.setDrained(s.cfg.Peers.Draining(s.cfg.Node))
	}
}

// setDrained makes all sheep claim no more jobs, or claim jobs again. Claimed jobs go on.
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

// decline records that a job of a model that no sheep of this node can run is left to
// another node: sheep that cannot run the model do not claim its jobs for missingFor.
func (f *flock) decline(m job.Model, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.declined[m] = now.Add(missingFor)
}

// leftToPeers returns the models that were declined recently.
func (f *flock) leftToPeers(now time.Time) []job.Model {
	f.mu.Lock()
	defer f.mu.Unlock()
	maps.DeleteFunc(f.declined, func(_ job.Model, until time.Time) bool { return now.After(until) })
	return slices.Collect(maps.Keys(f.declined))
}

// onPeer reports whether another node may be able to run the job: one that is alive and has
// not ended an attempt of this run with job.CauseNotHere.
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
