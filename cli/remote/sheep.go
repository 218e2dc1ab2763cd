package remote

import (
	"cmp"
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/iterait/shepherd/client"
)

// SheepPrinter prints lists of sheep in the form that its flags ask for.
type SheepPrinter struct {
	form      Format
	noHeading bool
	watch     bool
}

// Add adds the flags.
func (p *SheepPrinter) Add(flags *pflag.FlagSet) {
	p.form.Add(flags)
	flags.BoolVar(&p.noHeading, "no-headers", false, "leave out the names of the columns")
	flags.BoolVarP(&p.watch, "watch", "w", false, "continue with changes")
}

// List prints the daemon's sheep, and what they have. With --watch it goes on with those
// that change, until ctx ends.
func (p *SheepPrinter) List(ctx context.Context, daemon *client.ClientWithResponses, to io.Writer) error {
	if p.watch {
		return p.follow(ctx, daemon, to)
	}
	answer, err := daemon.ListSheepWithResponse(ctx)
	if err != nil {
		return err
	}
	if answer.JSON200 == nil {
		return errors.New("the daemon's list of sheep cannot be read")
	}
	return p.Print(to, answer.JSON200.Sheep)
}

// follow prints the sheep, and then each that changes.
func (p *SheepPrinter) follow(ctx context.Context, daemon *client.ClientWithResponses, to io.Writer) error {
	if err := reach(ctx, daemon); err != nil {
		return err
	}
	lines := p.listing(to)
	for change, err := range client.FollowFlock(ctx, daemon) {
		if err != nil {
			return err
		}
		if change.Flock == nil {
			continue
		}
		var sheep []client.Sheep
		for _, s := range change.Flock.Sheep {
			sheep = append(sheep, ofFlock(s))
		}
		if err := lines.Print(sheep); err != nil {
			return err
		}
	}
	return nil
}

// ofFlock is a sheep of the stream as the list has it.
func ofFlock(s client.FlockSheep) client.Sheep {
	return client.Sheep{Name: s.Name, Node: s.Node, Type: s.Type, Running: s.Running, Model: s.Model, Job: s.Job, Detail: s.Detail, Condition: s.Condition}
}

// Print prints sheep.
func (p *SheepPrinter) Print(to io.Writer, sheep []client.Sheep) error {
	return p.listing(to).Print(sheep)
}

func (p *SheepPrinter) listing(to io.Writer) *Listing[client.Sheep] {
	l := &Listing[client.Sheep]{
		To: to, Form: p.form, Heading: []string{"NAME", "TYPE", "UP", "STATE", "MODEL", "JOB", "DETAIL"}, Spare: []int{1, 2}, // TYPE and UP
		Name: func(s client.Sheep) string { return s.Name },
		Row: func(s client.Sheep) []string {
			up, state, model := "no", "-", "" // without a daemon, that is all that is known
			if s.Running {
				up, model = "yes", modelName(s.Model)
			}
			if s.Condition != "" {
				state = stateOfSheep(s).text
			}
			return []string{s.Name, cmp.Or(s.Type, "-"), up, state, cmp.Or(model, "-"), cmp.Or(deref(s.Job), "-"), deref(s.Detail)}
		},
	}
	if p.noHeading {
		l.Heading = nil
	}
	return l
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
	ls := &cobra.Command{Use: "ls", Aliases: []string{"list"}, Short: "List the sheep with their models and jobs"}
	add(cmd)
	add(ls)
	cmd.AddCommand(ls)
}

// sheepCommand is the part of the command that works without a daemon.
func sheepCommand(c Config) *cobra.Command {
	t := NewTarget(c)
	cmd := &cobra.Command{Use: "sheep", Short: "List the sheep, drain, restart and load them"}
	t.Add(cmd.PersistentFlags())
	SheepListing(cmd, func(cmd *cobra.Command, p *SheepPrinter) error {
		return t.run(cmd, func(ctx context.Context, s *session) error {
			return p.List(ctx, s.ClientWithResponses, s.out)
		})
	})
	cmd.AddCommand(SheepOrders(t)...)
	return cmd
}
