package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/jackc/pgx/v5"

	"github.com/iterait/shepherd/job"
)

// Node is one that joined the ledger. It stays until it is forgotten.
type Node struct {
	Name   string
	About  About
	Joined time.Time
	// Alive says that its lease has not ended; Until is when that ends or ended, zero
	// where it was given up.
	Alive bool
	Until time.Time
	// Draining says that it is to claim no job.
	Draining bool
	Held     int // jobs
}

// About is what a node tells of itself.
type About struct {
	Address string  `json:"address,omitempty"` // of its API
	Version string  `json:"version,omitempty"`
	Sheep   []Sheep `json:"sheep,omitempty"`
	// Models are those on its disk.
	Models []job.Model `json:"models,omitempty"`
	// Labels are those by which jobs and models choose nodes.
	Labels job.Labels `json:"labels,omitempty"`
}

// Sheep is one of a node, with the model that it has loaded.
type Sheep struct {
	Name  string    `json:"name"`
	Type  string    `json:"type"`
	Model job.Model `json:"model,omitzero"`
}

// Announce keeps what the node tells of itself, as long as it has its lease.
func (l *Ledger) Announce(ctx context.Context, node string, about About) error {
	told, err := json.Marshal(about)
	if err != nil {
		return fmt.Errorf("announce node %s: %w", node, err)
	}
	return l.call(ctx, "announce node "+node, func(ctx context.Context) error {
		_, err := l.exec(ctx, queryAnnounce, pgx.NamedArgs{"node": text(node), "generation": l.leases.generation(node), "about": string(told)})
		return err
	})
}

// Draining reports whether an operator wants the node to claim no job. It is known from
// Join on, and a change within Config.Poll, when the doorbell rings; it asks nobody.
func (l *Ledger) Draining(node string) bool {
	l.leases.mu.Lock()
	defer l.leases.mu.Unlock()
	held := l.leases.byNode[text(node)]
	return held != nil && held.draining
}

// Nodes are all that there are, by name.
func (l *Ledger) Nodes(ctx context.Context) ([]Node, error) {
	return read(ctx, l.database, "list the nodes", func(ctx context.Context) (nodes []Node, err error) {
		err = l.query(ctx, queryNodes, nil, func(rows pgx.Rows) error {
			var n Node
			var until *time.Time
			var about string
			if err := rows.Scan(&n.Name, &n.Joined, &until, &n.Alive, &n.Draining, &about, &n.Held); err != nil {
				return err
			}
			n.Joined, n.Until = n.Joined.UTC(), toTime(until)
			if err := decode(about, &n.About); err != nil {
				return fmt.Errorf("what node %s tells of itself: %w", n.Name, err)
			}
			nodes = append(nodes, n)
			return nil
		})
		return nodes, err
	})
}

// Admin looks after the nodes of a ledger.
type Admin struct{ l *Ledger }

// Admin looks after the nodes, from one of them.
func (l *Ledger) Admin() *Admin { return &Admin{l} }

// Manage calls do with an Admin. The error is of class errdefs.ErrNotFound where no
// shepherd has made the tables yet.
func Manage(ctx context.Context, cfg Config, do func(*Admin) error) error {
	return connect(ctx, cfg, "look after the nodes", func(l *Ledger, _ *pgx.Conn) error { return do(&Admin{l}) })
}

// Nodes are all that there are, by name.
func (a *Admin) Nodes(ctx context.Context) ([]Node, error) { return a.l.Nodes(ctx) }

// SetDraining has the node claim no more jobs, or claim jobs again. It goes on with those
// that it has. The error is of class errdefs.ErrNotFound where there is no such node.
func (a *Admin) SetDraining(ctx context.Context, node string, draining bool) error {
	return a.l.call(ctx, "change node "+node, func(ctx context.Context) error {
		n, err := a.l.exec(ctx, querySetDraining, pgx.NamedArgs{"node": text(node), "draining": draining})
		if err == nil && n == 0 {
			err = noNode(node)
		}
		return err
	})
}

func noNode(node string) error {
	return fmt.Errorf("there is no node %s (shepherdd nodes ls lists the nodes): %w", node, errdefs.ErrNotFound)
}

// forgetTime is how long other nodes have to take the jobs of one that is forgotten.
const forgetTime = 10 * time.Second

// Forget removes a node for good that is not up. Jobs that it holds are taken by the other
// nodes before. The error is of class errdefs.ErrNotFound where there is no such node, and
// errdefs.ErrFailedPrecondition where it is up, or holds jobs that no other node takes.
func (a *Admin) Forget(ctx context.Context, node string) error {
	args := pgx.NamedArgs{"node": text(node)}
	for over := time.Now().Add(forgetTime); ; {
		var n int64
		err := a.l.call(ctx, "forget node "+node, func(ctx context.Context) (err error) {
			if _, err = a.l.exec(ctx, queryAbandon, args); err == nil {
				n, err = a.l.exec(ctx, queryForget, args)
			}
			return err
		})
		if err != nil || n > 0 {
			return err
		}
		known, err := a.node(ctx, node)
		switch {
		case err != nil:
			return err
		case known.Alive:
			return fmt.Errorf("node %s is up, or was until a moment ago: stop its daemon first, or wait until its lease ends (%s): %w",
				node, known.Until.Format(time.RFC3339), errdefs.ErrFailedPrecondition)
		case time.Now().After(over):
			return fmt.Errorf("node %s holds %d jobs, and no other node is up to take them: start one first: %w", node, known.Held, errdefs.ErrFailedPrecondition)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (a *Admin) node(ctx context.Context, name string) (Node, error) {
	nodes, err := a.l.Nodes(ctx)
	if err != nil {
		return Node{}, err
	}
	for _, n := range nodes {
		if n.Name == text(name) {
			return n, nil
		}
	}
	return Node{}, noNode(name)
}
