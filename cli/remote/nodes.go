package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/client"
)

// nodesEvery is how often nodes that are watched are asked for: a node that is lost causes
// no notification.
const nodesEvery = time.Second

// Node is a node of a fleet as programs see it.
type Node struct {
	Name     string            `json:"name"`
	State    string            `json:"state"` // up, stopped or lost
	LostAt   *time.Time        `json:"lost_at"`
	Drained  bool              `json:"drained"`
	Jobs     int               `json:"jobs"` // that it holds
	JoinedAt time.Time         `json:"joined_at"`
	Version  string            `json:"version"`
	Address  string            `json:"address"`
	Labels   map[string]string `json:"labels"`
	Sheep    []NodeSheep       `json:"sheep"`
}

// NodeSheep is a sheep of a node.
type NodeSheep struct {
	Name  string `json:"name"`
	Type  string `json:"type"`
	Model string `json:"model"` // empty for none
}

// NodeKeeper looks after the nodes of a fleet.
type NodeKeeper interface {
	// Nodes is every node by name, those that are not up included.
	Nodes(ctx context.Context) ([]Node, error)
	// Drain has a node claim no more jobs, or claim jobs again.
	Drain(ctx context.Context, node string, drain bool) error
	// Forget removes a node that is not up.
	Forget(ctx context.Context, node string) error
}

// NodesCommand lists, drains and forgets nodes. with calls do with the keeper that the
// flags of the command name.
func NodesCommand(with func(cmd *cobra.Command, do func(context.Context, NodeKeeper) error) error) *cobra.Command {
	c := &cobra.Command{Use: "nodes", Short: "List the nodes that share a ledger, drain and forget them"}
	list := func(cmd *cobra.Command) *cobra.Command {
		var form Format
		var watch bool
		cmd.Args = cobra.NoArgs
		cmd.RunE = func(cmd *cobra.Command, _ []string) error {
			return with(cmd, func(ctx context.Context, keeper NodeKeeper) error {
				lines := nodeListing(cmd.OutOrStdout(), form)
				for {
					nodes, err := keeper.Nodes(ctx)
					if err != nil {
						return err
					}
					if err := lines.Print(nodes); err != nil || !watch {
						return err
					}
					select {
					case <-ctx.Done():
						return ctx.Err()
					case <-time.After(nodesEvery):
					}
				}
			})
		}
		form.Add(cmd.Flags())
		cmd.Flags().BoolVarP(&watch, "watch", "w", false, "continue with changes")
		return cmd
	}
	list(c)
	c.AddCommand(list(&cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the nodes, their sheep and loaded models",
	}))
	for _, command := range []struct {
		name, short, long, says string
		do                      func(context.Context, NodeKeeper, string) error
	}{
		{
			"drain", "Stop a node from claiming jobs",
			"Stops the node from claiming jobs, also after a restart. It finishes those that it has;\n`nodes ls` shows when there are none. It still accepts jobs for the other nodes.",
			"Node %s claims no more jobs.",
			func(ctx context.Context, k NodeKeeper, node string) error { return k.Drain(ctx, node, true) },
		},
		{
			"resume", "Let a drained node claim jobs again", "", "Node %s claims jobs again.",
			func(ctx context.Context, k NodeKeeper, node string) error { return k.Drain(ctx, node, false) },
		},
		{
			"forget", "Remove a node that will not return",
			"Removes a node that is not up. Its jobs go back to the queue first. A node that was\nforgotten may join again.",
			"Node %s is forgotten.",
			func(ctx context.Context, k NodeKeeper, node string) error { return k.Forget(ctx, node) },
		},
	} {
		c.AddCommand(&cobra.Command{
			Use: command.name + " NODE", Short: command.short, Long: command.long,
			Args: func(_ *cobra.Command, args []string) error {
				if len(args) != 1 {
					return usage("nodes %s takes the name of one node; `nodes ls` lists them", command.name)
				}
				return nil
			},
			RunE: func(cmd *cobra.Command, args []string) error {
				err := with(cmd, func(ctx context.Context, keeper NodeKeeper) error { return command.do(ctx, keeper, args[0]) })
				if err == nil {
					_, err = fmt.Fprintf(cmd.OutOrStdout(), command.says+"\n", clean(args[0]))
				}
				return err
			},
		})
	}
	return c
}

// nodesCommand is the command that asks a daemon.
func nodesCommand(c Config) *cobra.Command {
	t := NewTarget(c)
	cmd := NodesCommand(t.WithNodes)
	cmd.Long = "Lists, drains and forgets the nodes whose daemons share a ledger in PostgreSQL."
	t.Add(cmd.PersistentFlags())
	return cmd
}

// Elsewhere reports whether the flags, the environment or the context in use name the
// address of a daemon.
func (t *Target) Elsewhere() bool {
	switch {
	case t.server != "" || t.context != "":
		return true
	case t.File != "":
		return false
	case cmp.Or(os.Getenv(EnvServer), os.Getenv(EnvServerOld), os.Getenv(EnvContext)) != "":
		return true
	}
	kept, err := readContexts()
	return err != nil || kept.Current != "" // Open says what is wrong
}

// WithNodes calls do with a keeper that asks the daemon.
func (t *Target) WithNodes(cmd *cobra.Command, do func(context.Context, NodeKeeper) error) error {
	return t.run(cmd, func(ctx context.Context, s *session) error {
		return do(ctx, daemonNodes{s.ClientWithResponses})
	})
}

// daemonNodes asks a daemon of the fleet.
type daemonNodes struct{ daemon *client.ClientWithResponses }

func (d daemonNodes) Nodes(ctx context.Context) ([]Node, error) {
	answer, err := d.daemon.ListNodesWithResponse(ctx)
	if err != nil {
		return nil, err
	}
	if answer.JSON200 == nil {
		return nil, errors.New("the daemon's list of nodes cannot be read")
	}
	nodes := make([]Node, len(answer.JSON200.Nodes))
	for i, n := range answer.JSON200.Nodes {
		if nodes[i], err = nodeOf(n); err != nil {
			return nil, fmt.Errorf("read the daemon's answer about node %s: %w", n.Name, err)
		}
	}
	return nodes, nil
}

func (d daemonNodes) Drain(ctx context.Context, node string, drain bool) error {
	if drain {
		return succeeded(d.daemon.DrainNodeWithResponse(ctx, node))
	}
	return succeeded(d.daemon.ResumeNodeWithResponse(ctx, node))
}

func (d daemonNodes) Forget(ctx context.Context, node string) error {
	return succeeded(d.daemon.ForgetNodeWithResponse(ctx, node))
}

func nodeOf(n client.Node) (Node, error) {
	node := Node{
		Name: n.Name, State: string(n.State), Drained: n.Drained, Jobs: n.Jobs, Version: deref(n.Version), Address: deref(n.Address),
		Labels: n.Labels, Sheep: make([]NodeSheep, len(n.Sheep)),
	}
	for i, s := range n.Sheep {
		node.Sheep[i] = NodeSheep{Name: s.Name, Type: s.Type, Model: modelName(s.Model)}
	}
	const format = "2006-01-02T15:04:05.999999" // in UTC
	if n.JoinedAt != nil {
		joined, err := time.Parse(format, *n.JoinedAt)
		if err != nil {
			return Node{}, err
		}
		node.JoinedAt = joined
	}
	if n.LostAt != nil {
		lost, err := time.Parse(format, *n.LostAt)
		if err != nil {
			return Node{}, err
		}
		node.LostAt = &lost
	}
	return node, nil
}

// nodeListing prints nodes in the form that is asked for.
func nodeListing(to io.Writer, form Format) *Listing[Node] {
	return &Listing[Node]{
		To: to, Form: form, Heading: []string{"NAME", "STATE", "JOBS", "VERSION", "ADDRESS", "LABELS", "SHEEP"},
		Name: func(n Node) string { return n.Name },
		Row: func(n Node) []string {
			var sheep, labels []string
			for _, s := range n.Sheep {
				shown := s.Name
				if s.Model != "" {
					shown += " (" + s.Model + ")"
				}
				sheep = append(sheep, shown)
			}
			for _, key := range slices.Sorted(maps.Keys(n.Labels)) {
				labels = append(labels, key+"="+n.Labels[key])
			}
			state := n.State
			if n.LostAt != nil {
				state += " at " + n.LostAt.Format(time.RFC3339)
			}
			if n.Drained {
				state += ", drained"
			}
			return []string{
				n.Name, state, strconv.Itoa(n.Jobs), cmp.Or(n.Version, "-"), cmp.Or(n.Address, "-"),
				cmp.Or(strings.Join(labels, ","), "-"), cmp.Or(strings.Join(sheep, ", "), "-"),
			}
		},
	}
}
