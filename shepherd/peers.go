package shepherd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
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

// addressOf is whom a request is for. On a node alone, what names the node itself is
// left out.
func (s *Shepherd) addressOf(r job.Request) job.Address {
	a := job.ParseAddress(r.Sheep)
	if strings.HasPrefix(r.Sheep, "/") || strings.HasSuffix(r.Sheep, "/") || len(a.Labels) > 0 { // no sheep is called so
		a = job.Address{Sheep: r.Sheep}
	}
	a.Labels = r.NodeLabels.Clone()
	if s.cfg.Peers == nil && a.Fits(s.cfg.Node, a.Sheep, s.cfg.Placement.Labels) {
		a.Node, a.Labels = "", nil
	}
	return a
}

// checkAddress answers *job.UnknownSheep for a sheep that no node has, and
// *job.Invalid for labels that no node has.
func (s *Shepherd) checkAddress(ctx context.Context, r job.Request) error {
	a := s.addressOf(r)
	if a.Fits(s.cfg.Node, a.Sheep, s.cfg.Placement.Labels) && (a.Sheep == "" || s.env.flock.takes(a.Sheep)) {
		return nil
	}
	if s.cfg.Fleet != nil {
		nodes, err := s.cfg.Fleet.Answering(ctx, a)
		if err != nil {
			return away("ledger", fmt.Errorf("look for a node for %s: %w", a, err))
		}
		if len(nodes) > 0 {
			return nil
		}
	}
	if len(a.Labels) == 0 {
		return &job.UnknownSheep{Name: r.Sheep}
	}
	who := "no node that is up"
	if a.Sheep != "" {
		who = fmt.Sprintf("no node that is up and has a sheep `%s`", a.Sheep)
	}
	return &job.Invalid{Field: "node_labels", Problem: who + " has " + labelText(a.Labels)}
}

// labelText lists labels for people.
func labelText(labels job.Labels) string {
	var list []string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		list = append(list, key+"="+labels[key])
	}
	return strings.Join(list, ", ")
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

// leftToOthers reports whether a job whose model all sheep of this node object to is
// taken for another node's: one that is up decides when it claims the job. What this
// node does not trust it does not take in either.
func (s *Shepherd) leftToOthers(ctx context.Context, r job.Request, objection error) bool {
	if s.cfg.Peers == nil || r.Sheep != "" || errors.As(objection, new(*job.Untrusted)) {
		return false
	}
	peers, err := s.cfg.Peers.Peers(ctx, s.cfg.Node)
	return err == nil && len(peers) > 0
}

// admitsForOthers reports whether a Shepherd that is stopping takes jobs in: other nodes
// that are up have them from the same queue. So a load balancer that has not noticed yet
// that it stops is refused nothing.
func (s *Shepherd) admitsForOthers(ctx context.Context) bool {
	s.mu.Lock()
	started := s.started
	s.mu.Unlock()
	if !started || s.cfg.Peers == nil {
		return false
	}
	peers, err := s.cfg.Peers.Peers(ctx, s.cfg.Node)
	return err == nil && len(peers) > 0
}

// live completes a view of a job that another node has with what that node's sheep
// tell, or with why they tell nothing.
func (s *Shepherd) live(ctx context.Context, view *job.View) {
	if s.cfg.Fleet == nil || view.Holder == "" || view.Node == s.cfg.Node {
		return
	}
	sheep, err := s.cfg.Fleet.Sheep(ctx, view.Node)
	var unreachable *job.Unavailable
	switch {
	case errors.As(err, &unreachable):
		view.Detail = unreachable.Service + " " + unreachable.Problem
		return
	case err != nil:
		s.log.Warn("Another node does not tell of a job", "job", view.ID, "node", view.Node, "error", err)
		return
	}
	for _, one := range sheep {
		if one.Name == view.Holder && one.Job == view.ID {
			view.Detail, view.Progress = one.Detail, one.Progress
		}
	}
}

// remoteLog is the log of an attempt on another node, which knows where it ends.
type remoteLog struct{ io.ReadCloser }

func (remoteLog) End(string) {}

// remoteAttempt opens what another node has kept of the log of an attempt; nil where
// that is nothing, or the node is gone.
func (f *jobLog) remoteAttempt(ctx context.Context, a job.Attempt) (runtime.JobLog, error) {
	if f.core.cfg.Fleet == nil {
		return nil, nil
	}
	log, err := f.core.cfg.Fleet.AttemptLog(ctx, a.Node, f.job, a.Run, a.Number, f.query)
	switch {
	case err == nil:
		return remoteLog{log}, nil
	case errors.Is(err, job.ErrNoJobLog):
		return nil, nil
	}
	return nil, err
}

// AttemptLog opens what this node has kept of the log of an attempt, for other nodes;
// following, it ends when the attempt has. The error is job.ErrNoJobLog, or has the
// ledger's class.
func (s *Shepherd) AttemptLog(ctx context.Context, id job.ID, run, attempt int, q job.LogQuery) (io.ReadCloser, error) {
	f := &jobLog{core: s, job: id, run: run, query: q}
	attempts, _, err := f.attempts(ctx)
	if err != nil {
		return nil, err
	}
	for _, a := range attempts {
		if a.Number != attempt || a.Node != s.cfg.Node {
			continue
		}
		log, err := f.localAttempt(ctx, a)
		if err != nil || log != nil {
			return log, err
		}
	}
	return nil, job.ErrNoJobLog
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
