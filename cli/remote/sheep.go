package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/iterait/shepherd/client"
)

// SheepPrinter prints lists of sheep in the form that its flags ask for.
type SheepPrinter struct {
	form      format
	noHeading bool
}

// Add adds the flags.
func (p *SheepPrinter) Add(flags *pflag.FlagSet) {
	p.form.add(flags)
	flags.BoolVar(&p.noHeading, "no-headers", false, "leave the heading of the table out")
}

// List prints the daemon's sheep, and what they have.
func (p *SheepPrinter) List(ctx context.Context, daemon *client.ClientWithResponses, to io.Writer) error {
	answer, err := daemon.ListSheepWithResponse(ctx)
	if err != nil {
		return err
	}
	if answer.JSON200 == nil {
		return errors.New("the daemon's list of sheep cannot be read")
	}
	return p.Print(to, answer.JSON200.Sheep)
}

// Print prints sheep.
func (p *SheepPrinter) Print(to io.Writer, sheep []client.Sheep) error {
	switch p.form {
	case formJSON:
		return printJSON(to, append([]client.Sheep{}, sheep...), true)
	case formLines:
		for _, s := range sheep {
			if err := printJSON(to, s, false); err != nil {
				return err
			}
		}
		return nil
	case formName:
		for _, s := range sheep {
			if _, err := fmt.Fprintln(to, clean(s.Name)); err != nil {
				return err
			}
		}
		return nil
	}
	rows := table{{"NAME", "TYPE", "UP", "STATE", "MODEL", "JOB", "DETAIL"}}
	if p.noHeading {
		rows = nil
	}
	for _, s := range sheep {
		up, model := "no", "" // without a daemon, that is all that is known
		if s.Running {
			up, model = "yes", modelName(s.Model)
		}
		rows = append(rows, []string{s.Name, cmp.Or(s.Type, "-"), up, cmp.Or(string(s.Condition), "-"), cmp.Or(model, "-"), cmp.Or(deref(s.Job), "-"), deref(s.Detail)})
	}
	return rows.print(to)
}

// SheepListing adds what lists sheep to the command sheep: its own execution, and the
// command ls.
func SheepListing(cmd *cobra.Command, list func(*cobra.Command, *SheepPrinter) error) {
	add := func(to *cobra.Command) {
		p := new(SheepPrinter)
		p.Add(to.Flags())
		to.Args = cobra.NoArgs
		to.RunE = func(cmd *cobra.Command, _ []string) error { return list(cmd, p) }
	}
	ls := &cobra.Command{Use: "ls", Aliases: []string{"list"}, Short: "List the sheep and what they have"}
	add(cmd)
	add(ls)
	cmd.AddCommand(ls)
}

// sheepCommand is what there is of the command where no daemon runs.
func sheepCommand(c Config) *cobra.Command {
	t := NewTarget(c)
	cmd := &cobra.Command{Use: "sheep", Short: "List the sheep, and tell them what to do"}
	t.Add(cmd.PersistentFlags())
	SheepListing(cmd, func(cmd *cobra.Command, p *SheepPrinter) error {
		return t.run(cmd, func(ctx context.Context, s *session) error { return p.List(ctx, s.ClientWithResponses, s.out) })
	})
	cmd.AddCommand(SheepOrders(t)...)
	return cmd
}
