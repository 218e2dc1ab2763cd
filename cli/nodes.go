package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/cli/remote"
	"github.com/iterait/shepherd/daemon"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger/postgres"
)

// watchEvery is how often the database is queried while nodes are watched: a node that
// is lost causes no notification.
const watchEvery = time.Second

func nodesCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "nodes",
		Short: "List the nodes that share a ledger, drain and forget them",
		Long: "Lists, drains and forgets the nodes whose daemons share the ledger in PostgreSQL of\n" +
			"the configuration. It asks the database, whether a daemon is up or not.",
	}
	c.PersistentFlags().StringVarP(&file, "config", "c", "", "configuration file (that of the service, if left out)")
	manage := func(ctx context.Context, do func(*postgres.Admin) error) error {
		cfg, err := configOf(file)
		if err != nil {
			return err
		}
		if !cfg.Ledger.Shared() {
			return fmt.Errorf("the ledger is the SQLite file %s, which this machine has alone: nodes share one in PostgreSQL (ledger.url)", cfg.Ledger.Path)
		}
		return postgres.Manage(ctx, daemon.DatabaseConfig(cfg), do)
	}
	list := func(cmd *cobra.Command) *cobra.Command {
		var form remote.Format
		var watch bool
		cmd.Args = cobra.NoArgs
		cmd.RunE = func(cmd *cobra.Command, _ []string) error {
			return manage(cmd.Context(), func(a *postgres.Admin) error {
				lines := nodeListing(cmd.OutOrStdout(), form)
				for {
					nodes, err := a.Nodes(cmd.Context())
					if err != nil {
						return err
					}
					if err := lines.Print(shownNodes(nodes)); err != nil || !watch {
						return err
					}
					select {
					case <-cmd.Context().Done():
						return cmd.Context().Err()
					case <-time.After(watchEvery):
					}
				}
			})
		}
		form.Add(cmd.Flags())
		cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on with what changes")
		return cmd
	}
	list(c)
	c.AddCommand(list(&cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the nodes, their sheep and the models that these have loaded",
	}))
	for _, command := range []struct {
		name, short, long, says string
		do                      func(context.Context, *postgres.Admin, string) error
	}{
		{
			"drain", "Have a node claim no more jobs",
			"Has the node claim no more jobs, also after a restart. It finishes those that it\nhas; `nodes ls` shows when there are none. It still accepts jobs for the other nodes.",
			"Node %s claims no more jobs.",
			func(ctx context.Context, a *postgres.Admin, node string) error { return a.SetDraining(ctx, node, true) },
		},
		{
			"resume", "Have a node claim jobs again that was drained", "", "Node %s claims jobs again.",
			func(ctx context.Context, a *postgres.Admin, node string) error {
				return a.SetDraining(ctx, node, false)
			},
		},
		{
			"forget", "Remove a node that is gone for good",
			"Removes a node that is not up. Jobs that it holds are taken by the others before. A\nnode that was forgotten may join again.",
			"Node %s is forgotten.",
			func(ctx context.Context, a *postgres.Admin, node string) error { return a.Forget(ctx, node) },
		},
	} {
		c.AddCommand(&cobra.Command{
			Use: command.name + " NODE", Short: command.short, Long: command.long,
			Args: func(_ *cobra.Command, args []string) error {
				if len(args) != 1 {
					return &usageError{errors.New("nodes " + command.name + " takes the name of one node")}
				}
				return nil
			},
			RunE: func(cmd *cobra.Command, args []string) error {
				err := manage(cmd.Context(), func(a *postgres.Admin) error { return command.do(cmd.Context(), a, args[0]) })
				if err == nil {
					fmt.Fprintf(cmd.OutOrStdout(), command.says+"\n", args[0])
				}
				return err
			},
		})
	}
	return c
}

// node is a node as programs see it.
type node struct {
	Name     string      `json:"name"`
	State    string      `json:"state"` // up, stopped or lost
	LostAt   *time.Time  `json:"lost_at"`
	Drained  bool        `json:"drained"`
	Jobs     int         `json:"jobs"` // that it holds
	JoinedAt time.Time   `json:"joined_at"`
	Version  string      `json:"version"`
	Address  string      `json:"address"`
	Labels   job.Labels  `json:"labels"`
	Sheep    []nodeSheep `json:"sheep"`
}

type nodeSheep struct {
	Name  string `json:"name"`
	Type  string `json:"type"`
	Model string `json:"model"` // empty for none
}

func nodeOf(n postgres.Node) node {
	shown := node{
		Name: n.Name, State: "up", Drained: n.Draining, Jobs: n.Held, JoinedAt: n.Joined.UTC(),
		Version: n.About.Version, Address: n.About.Address, Labels: n.About.Labels, Sheep: []nodeSheep{},
	}
	if shown.Labels == nil {
		shown.Labels = job.Labels{}
	}
	switch {
	case n.Alive:
	case n.Until.IsZero():
		shown.State = "stopped"
	default:
		shown.State, shown.LostAt = "lost", new(n.Until.UTC())
	}
	for _, s := range n.About.Sheep {
		one := nodeSheep{Name: s.Name, Type: s.Type}
		if n.Alive && !s.Model.IsZero() {
			one.Model = s.Model.String()
		}
		shown.Sheep = append(shown.Sheep, one)
	}
	return shown
}

func shownNodes(nodes []postgres.Node) []node {
	shown := make([]node, len(nodes))
	for i, n := range nodes {
		shown[i] = nodeOf(n)
	}
	return shown
}

// nodeListing prints nodes in the form that is asked for.
func nodeListing(to io.Writer, form remote.Format) *remote.Listing[node] {
	return &remote.Listing[node]{
		To: to, Form: form, Heading: []string{"NAME", "STATE", "JOBS", "VERSION", "ADDRESS", "LABELS", "SHEEP"},
		Name: func(n node) string { return n.Name },
		Row: func(n node) []string {
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
