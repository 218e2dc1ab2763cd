package shepherd

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// statusOwners says which of the nodes that share a ledger writes a change to
// job_status.json: the one that made it. What it had not written when its lease ended, as
// far as its checkpoint tells, all others write; so do they with changes of nodes that they
// do not know to be alive, and of which no node is known.
//
// What one node is slow to write may end up over what another has written since. So a node
// that has written a state also writes what others changed before that was complete: until
// a look at the events that began after the write has found no more of them.
type statusOwners struct {
	self string // this node

	mu      sync.Mutex
	alive   map[string]bool  // the other nodes; nil where this one is alone, or none is known yet
	looks   int64            // at the events, that have begun
	written map[job.ID]int64 // the jobs written recently, and how many looks had begun then
}

func newStatusOwners(self string) *statusOwners {
	return &statusOwners{self: self, written: make(map[job.ID]int64)}
}

// owns reports whether this node writes the change.
func (o *statusOwners) owns(e job.Event) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, ok := o.written[e.Job]; ok {
		return true
	}
	return !o.alive[cmp.Or(e.Node, e.Origin)]
}

// wrote notes that a write of the job's state has ended, in whichever way.
func (o *statusOwners) wrote(id job.ID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.alive != nil {
		o.written[id] = o.looks
	}
}

// look begins a look at the events, and returns its number.
func (o *statusOwners) look() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.looks++
	return o.looks
}

// looked says that all events that there were when a look began have been noted.
func (o *statusOwners) looked(look int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for id, at := range o.written {
		if at < look {
			delete(o.written, id)
		}
	}
}

// know takes over which other nodes are alive, and returns those that are no more.
func (o *statusOwners) know(peers []string) (lost []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for node := range o.alive {
		if !slices.Contains(peers, node) {
			lost = append(lost, node)
		}
	}
	o.alive = make(map[string]bool, len(peers))
	for _, node := range peers {
		if node != o.self {
			o.alive[node] = true
		}
	}
	slices.Sort(lost)
	return lost
}

// statusPeersEvery is how often it is looked which nodes are alive.
const statusPeersEvery = 5 * time.Second

// successor has this node write what others left unwritten when their leases ended.
type successor struct {
	ledger ledger.Ledger
	peers  Peers
	status *statusFiles
	log    *slog.Logger
}

// run looks after the other nodes until ctx ends.
func (s *successor) run(ctx context.Context) {
	for {
		s.look(ctx)
		if sleep(ctx, statusPeersEvery) != nil {
			return
		}
	}
}

// look finds out which nodes are alive, and succeeds those that are no more.
func (s *successor) look(ctx context.Context) {
	owners := s.status.owners
	peers, err := s.peers.Peers(ctx, owners.self)
	if err != nil {
		if ctx.Err() == nil {
			s.log.Warn("It is not known which nodes are alive to write jobs' states; trying again", "error", err)
		}
		return
	}
	for _, node := range owners.know(peers) {
		if err := s.succeed(ctx, node); err != nil && ctx.Err() == nil {
			s.log.Warn("States that a lost node left unwritten may stay so until it is back", "node", node, "error", err)
		}
	}
}

// succeed notes the changes of a node after its checkpoint.
func (s *successor) succeed(ctx context.Context, node string) error {
	from, err := s.ledger.Checkpoint(ctx, statusConsumer(node))
	if errors.Is(err, ledger.ErrNotFound) { // it never began
		return nil
	}
	for cursor := from; err == nil; {
		var events []job.Event
		events, cursor, err = s.ledger.Events(ctx, cursor, ledger.EventFilter{}, eventBatch)
		for _, e := range events {
			if cmp.Or(e.Node, e.Origin) == node {
				s.status.inherit(e, from)
			}
		}
		if len(events) < eventBatch {
			break
		}
	}
	return err
}
