package sqlite

import (
	"context"
	"sync"

	"github.com/iterait/shepherd/ledger"
)

// leases are those of the nodes that joined. One process has the file open, so no node
// can take another's jobs: a lease is lost when the same node joins again or the ledger
// is closed.
type leases struct {
	mu     sync.Mutex
	byNode map[string]*lease
}

type lease struct {
	owner *leases
	node  string
	lost  chan struct{}
}

// Join implements ledger.Ledger.
func (l *Ledger) Join(ctx context.Context, node string) (ledger.Lease, error) {
	var joined *lease
	err := l.call("join the ledger as node "+node, func() error {
		if err := ctx.Err(); err != nil {
			return err
		}
		joined = l.leases.join(node)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return joined, nil
}

func (s *leases) join(node string) *lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	if before := s.byNode[node]; before != nil {
		close(before.lost)
	}
	joined := &lease{owner: s, node: node, lost: make(chan struct{})}
	if s.byNode == nil {
		s.byNode = map[string]*lease{}
	}
	s.byNode[node] = joined
	return joined
}

// close ends all leases.
func (s *leases) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, held := range s.byNode {
		close(held.lost)
	}
	clear(s.byNode)
}

// Lost implements ledger.Lease.
func (l *lease) Lost() <-chan struct{} { return l.lost }

// Release implements ledger.Lease.
func (l *lease) Release(context.Context) error {
	l.owner.mu.Lock()
	defer l.owner.mu.Unlock()
	if l.owner.byNode[l.node] == l {
		delete(l.owner.byNode, l.node)
	}
	return nil
}
