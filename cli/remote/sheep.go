package remote

import (
	"cmp"
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/client"
)

// ListSheep prints the daemon's sheep, and what they have.
func ListSheep(ctx context.Context, daemon *client.ClientWithResponses, to io.Writer) error {
	answer, err := daemon.ListSheepWithResponse(ctx)
	if err != nil {
		return err
	}
	if answer.JSON200 == nil {
		return errors.New("the daemon's list of sheep cannot be read")
	}
	rows := table{{"NAME", "TYPE", "UP", "MODEL", "JOB", "DETAIL"}}
	for _, s := range answer.JSON200.Sheep {
		up, model := "no", ""
		if s.Running {
			up, model = "yes", modelName(s.Model)
		}
		rows = append(rows, []string{s.Name, s.Type, up, cmp.Or(model, "-"), cmp.Or(deref(s.Job), "-"), deref(s.Detail)})
	}
	return rows.print(to)
}

// sheepCommand is what there is of the command where no daemon runs.
func sheepCommand(c Config) *cobra.Command {
	t := NewTarget(c)
	cmd := &cobra.Command{Use: "sheep", Short: "List the sheep"}
	t.Add(cmd.PersistentFlags())
	cmd.AddCommand(&cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the sheep and what they have",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return t.run(cmd, func(ctx context.Context, s *session) error { return ListSheep(ctx, s.ClientWithResponses, s.out) })
		},
	})
	return cmd
}
