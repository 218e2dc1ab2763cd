package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/cli/remote"
	"github.com/iterait/shepherd/daemon"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger/postgres"
)

func nodesCommand(target remote.Config) *cobra.Command {
	asks := remote.NewTarget(target)
	c := remote.NodesCommand(func(cmd *cobra.Command, do func(context.Context, remote.NodeKeeper) error) error {
		if asks.Elsewhere() || asks.File == "" && !isFile(packagedConfig) {
			return asks.WithNodes(cmd, do)
		}
		cfg, err := configOf(asks.File)
		if err != nil {
			return err
		}
		if !cfg.Ledger.Shared() {
			return fmt.Errorf("the ledger is the SQLite file %s, which only this machine uses: nodes share one in PostgreSQL (ledger.url)", cfg.Ledger.Path)
		}
		return postgres.Manage(cmd.Context(), daemon.DatabaseConfig(cfg), func(a *postgres.Admin) error { return do(cmd.Context(), databaseNodes{a}) })
	})
	c.Long = "Lists, drains and forgets the nodes that share a ledger in PostgreSQL. It asks the\n" +
		"daemon that --server, the environment or `shepherdd login` names; with -c, or with the\n" +
		"configuration of the service, it reads the database itself, and no daemon needs to be\n" +
		"running."
	asks.Add(c.PersistentFlags())
	return c
}

func isFile(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// databaseNodes asks the database itself.
type databaseNodes struct{ admin *postgres.Admin }

func (d databaseNodes) Nodes(ctx context.Context) ([]remote.Node, error) {
	known, err := d.admin.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	nodes := make([]remote.Node, len(known))
	for i, n := range known {
		nodes[i] = shownNode(daemon.NodeOf(n))
	}
	return nodes, nil
}

func (d databaseNodes) Drain(ctx context.Context, node string, drain bool) error {
	return d.admin.SetDraining(ctx, node, drain)
}

func (d databaseNodes) Forget(ctx context.Context, node string) error {
	return d.admin.Forget(ctx, node)
}

func shownNode(n job.Node) remote.Node {
	shown := remote.Node{
		Name: n.Name, State: string(n.State), Drained: n.Drained, Jobs: n.Jobs, JoinedAt: n.Joined,
		Version: n.Version, Address: n.Address, Labels: n.Labels, Sheep: make([]remote.NodeSheep, len(n.Sheep)),
	}
	if shown.Labels == nil {
		shown.Labels = job.Labels{}
	}
	if !n.Lost.IsZero() {
		shown.LostAt = &n.Lost
	}
	for i, s := range n.Sheep {
		shown.Sheep[i] = remote.NodeSheep{Name: s.Name, Type: s.Type}
		if !s.Model.IsZero() {
			shown.Sheep[i].Model = s.Model.String()
		}
	}
	return shown
}
