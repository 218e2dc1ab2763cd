package postgres

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/iterait/shepherd/ledger"
)

// leases are the leases of the nodes that joined through this ledger.
type leases struct {
	mu     sync.Mutex
	byNode map[string]*lease
	late   int64 // renewals that came when less than half of the lease was left
}

// lease is a node's. By the server's clock it lasts for Config.Lease after it was
// renewed; the node considers it lost when three quarters of that have passed, by its own
// clock, since it sent the renewal.
type lease struct {
	ledger     *Ledger
	node       string
	generation int64
	lost       chan struct{}
	expiry     *time.Timer
	asked      time.Time // when the present lease was asked for
	draining   bool      // an operator wants the node to claim no job
}

var _ ledger.Lease = (*lease)(nil)

// Join implements ledger.Ledger. Where Config.Alone is set and another node's lease
// has not ended, the error is a *TakenError.
func (l *Ledger) Join(ctx context.Context, node string) (ledger.Lease, error) {
	doing := "join the ledger as node " + node
	asked := time.Now()
	joined := &lease{ledger: l, node: text(node), lost: make(chan struct{})}
	err := l.call(ctx, doing, func(ctx context.Context) error {
		var seen int64
		if _, err := l.queryOne(ctx, queryGeneration, pgx.NamedArgs{"node": joined.node}, &seen); err != nil {
			return err
		}
		asked = time.Now()
		args := pgx.NamedArgs{"node": joined.node, "seen": seen, "lease": l.cfg.Lease.Microseconds(), "alone": l.cfg.Alone}
		batch := &pgx.Batch{}
		batch.Queue(queryJoinLock)
		batch.Queue(queryJoin, args).QueryRow(func(row pgx.Row) error { return row.Scan(&joined.generation, &joined.draining) })
		err := l.batch(ctx, batch)
		if errors.Is(err, pgx.ErrNoRows) {
			return l.taken(ctx, joined.node)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	l.leases.mu.Lock()
	defer l.leases.mu.Unlock()
	if before := l.leases.byNode[joined.node]; before != nil {
		before.lose()
	}
	if l.leases.byNode == nil {
		l.leases.byNode = map[string]*lease{}
	}
	l.leases.byNode[joined.node] = joined
	joined.asked = asked
	joined.expiry = time.AfterFunc(time.Until(asked.Add(l.cfg.safeLease())), joined.expire)
	return joined, nil
}

// LateRenewals is how many renewals of leases came when less than half of the lease was
// left: the database is slow, or was away.
func (l *Ledger) LateRenewals() int64 {
	l.leases.mu.Lock()
	defer l.leases.mu.Unlock()
	return l.leases.late
}

// safeLease is how long a node may rely on its lease after it sent the renewal.
func (c Config) safeLease() time.Duration { return c.Lease / 4 * 3 }

// renewEvery is how often leases are renewed.
func (c Config) renewEvery() time.Duration { return c.Lease / 8 }

// taken says which node has the ledger, where one has.
func (l *Ledger) taken(ctx context.Context, node string) error {
	e := &TakenError{Server: l.server}
	var until time.Time
	found, err := l.queryOne(ctx, queryOthers, pgx.NamedArgs{"node": node}, &e.Node, &until)
	if err != nil {
		return err
	}
	if !found { // its lease ended just now, or another daemon joined as the same node
		return errConflict
	}
	e.Until = until.UTC().Format(time.RFC3339)
	return e
}

// Peers returns the names of the nodes but the given one whose leases have not ended,
// sorted.
func (l *Ledger) Peers(ctx context.Context, node string) ([]string, error) {
	return read(ctx, l.database, "list the nodes that share the ledger", func(ctx context.Context) (peers []string, err error) {
		err = l.query(ctx, queryPeers, pgx.NamedArgs{"node": text(node)}, func(rows pgx.Rows) error {
			var name string
			err := rows.Scan(&name)
			peers = append(peers, name)
			return err
		})
		return peers, err
	})
}

// lose ends the lease; leases.mu is held.
func (l *lease) lose() {
	if l.expiry != nil {
		l.expiry.Stop()
	}
	if l.ledger.leases.byNode[l.node] == l {
		delete(l.ledger.leases.byNode, l.node)
	}
	l.ledger.claims.clear()
	close(l.lost)
}

// expire ends the lease because it was not renewed in time.
func (l *lease) expire() {
	s := &l.ledger.leases
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byNode[l.node] != l {
		return
	}
	if left := time.Until(l.asked.Add(l.ledger.cfg.safeLease())); left > 0 { // renewed while this waited for s.mu
		l.expiry.Reset(left)
		return
	}
	l.ledger.cfg.Log.Error("The node's lease in the ledger could not be renewed in time", "node", l.node)
	l.lose()
}

// close ends all leases.
func (s *leases) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, held := range s.byNode {
		held.lose()
	}
}

// generation is that of the node's lease, 0 where it has none here.
func (s *leases) generation(node string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if held := s.byNode[text(node)]; held != nil {
		return held.generation
	}
	return 0
}

// setDraining stores which nodes are draining, and reports whether that has changed.
func (s *leases) setDraining(nodes []string) (changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for node, held := range s.byNode {
		draining := slices.Contains(nodes, node)
		changed = changed || draining != held.draining
		held.draining = draining
	}
	return changed
}

// nodes are those that joined by this ledger, sorted; one without a name where none has.
// A daemon has one.
func (s *leases) nodes() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.byNode) == 0 {
		return []string{""}
	}
	return slices.Sorted(maps.Keys(s.byNode))
}

// origin is the node of this ledger; empty where none, or more than one, joined by it.
func (s *leases) origin() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.byNode) != 1 {
		return ""
	}
	for node := range s.byNode {
		return node
	}
	return ""
}

// list returns the nodes and generations of the leases.
func (s *leases) list() (nodes []string, generations []int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	nodes, generations = []string{}, []int64{}
	for node, held := range s.byNode {
		nodes, generations = append(nodes, node), append(generations, held.generation)
	}
	return nodes, generations
}

// renewed stores the result of a renewal that was sent at the time asked: leases that were
// not renewed are lost.
func (s *leases) renewed(asked time.Time, nodes []string, generations []int64, renewed []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	got := map[string]bool{}
	for _, node := range renewed {
		got[node] = true
	}
	for i, node := range nodes {
		held := s.byNode[node]
		switch {
		case held == nil || held.generation != generations[i]: // given up, or joined again
		case got[node]:
			if time.Since(held.asked) > held.ledger.cfg.Lease/2 {
				s.late++
			}
			held.asked = asked
			held.expiry.Reset(time.Until(asked.Add(held.ledger.cfg.safeLease())))
		default:
			held.ledger.cfg.Log.Error("The node's lease in the ledger has ended, or another daemon joined as the same node", "node", node)
			held.lose()
		}
	}
}

// Lost implements ledger.Lease.
func (l *lease) Lost() <-chan struct{} { return l.lost }

// leaveGrace is the minimum time that the claims of a node which released its lease are
// kept for its next Join, as in an upgrade. After it other nodes take them.
const leaveGrace = time.Minute

// Release implements ledger.Lease. The lease ends here in any case; where the
// database does not answer, it ends there by itself, and other nodes may then take
// the claims.
func (l *lease) Release(ctx context.Context) error {
	s := &l.ledger.leases
	s.mu.Lock()
	held := s.byNode[l.node] == l
	if held {
		l.expiry.Stop()
		delete(s.byNode, l.node)
		l.ledger.claims.clear()
	}
	s.mu.Unlock()
	if !held {
		return nil
	}
	return l.ledger.call(ctx, "give up the lease of node "+l.node, func(ctx context.Context) error {
		_, err := l.ledger.exec(ctx, queryLeave, pgx.NamedArgs{"node": l.node, "generation": l.generation, "grace": leaveGrace.Microseconds()})
		return err
	})
}
