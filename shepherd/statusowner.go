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

// statusOwners decides which of the nodes that share a ledger writes a change to
// job_status.json: the node that made the change. All other nodes write what a lost node had
// not written, according to its checkpoint, and the changes of nodes that they do not know
// to be alive or that no node made.
//
// A slow write of one node may overwrite a later write of another. So a node that has
// written a state also writes the changes that other nodes made before that write was
// complete: until a read of the events that began after the write finds no more of them.
type statusOwners struct {
	self string // this node

	mu      sync.Mutex
	alive   map[string]bool  // the other live nodes; nil on a single node, or before they are known
	looks   int64            // number of reads of the events that have begun
	written map[job.ID]int64 // recently written jobs, with the value of looks at that time
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

// wrote records that a write of the job's state has ended, successfully or not.
func (o *statusOwners) wrote(id job.ID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.alive != nil {
		o.written[id] = o.looks
	}
}

// look begins a read of the events and returns its number.
func (o *statusOwners) look() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.looks++
	return o.looks
}

// looked records that all events that existed when a read began have been noted.
func (o *statusOwners) looked(look int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for id, at := range o.written {
		if at < look {
			delete(o.written, id)
		}
	}
}

// know updates which other nodes are alive, and returns those that are lost.
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

// statusPeersEvery is how often the live nodes are looked up.
const statusPeersEvery = 5 * time.Second

// successor makes this node write the states that lost nodes left unwritten.
type successor struct {
	ledger ledger.Ledger
	peers  Peers
	status *statusFiles
	log    *slog.Logger
}

// run checks the other nodes until ctx ends.
func (s *successor) run(ctx context.Context) {
	for {
		s.look(ctx)
		if sleep(ctx, statusPeersEvery) != nil {
			return
		}
	}
}

// look looks up which nodes are alive, and takes over from those that are lost.
func (s *successor) look(ctx context.Context) {
	owners := s.status.owners
	peers, err := s.peers.Peers(ctx, owners.self)
	if err != nil {
		if ctx.Err() == nil {
			s.log.Warn("Cannot look up which nodes are alive to write jobs' states; retrying", "error", err)
		}
		return
	}
	for _, node := range owners.know(peers) {
		if err := s.takeOverFrom(ctx, node); err != nil && ctx.Err() == nil {
			s.log.Warn("Cannot take over the unwritten states of a lost node; they may stay unwritten until it is back", "node", node, "error", err)
		}
	}
}

// takeOverFrom schedules the writes of a lost node's changes after its checkpoint.
func (s *successor) takeOverFrom(ctx context.Context, node string) error {
	from, err := s.ledger.Checkpoint(ctx, statusConsumer(node))
	if errors.Is(err, ledger.ErrNotFound) { // the node never started
		return nil
	}
	for cursor := from; err == nil; {
		var events []job.Event
		events, cursor, err = s.ledger.Events(ctx, cursor, ledger.EventFilter{}, eventBatch)
		for _, e := range events {
			if cmp.Or(e.Node, e.Origin) == node {
				s.status.takeOver(e, from)
			}
		}
		if len(events) < eventBatch {
			break
		}
	}
	return err
}
