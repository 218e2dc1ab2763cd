package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/client"
)

func gpusCommand(c Config) *cobra.Command {
	return withTarget(c, func(t *Target) *cobra.Command {
		var params client.ListGPUsParams
		var node string
		var form Format
		var watch bool
		command := &cobra.Command{
			Use:   "gpus [--node NODE]",
			Short: "Show the GPUs, their sheep and their health",
			Long: "Shows each GPU with the sheep that have a share of it, their models and jobs,\n" +
				"its memory and load, its health, and processes on it that are not shepherd's.",
			Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				if node != "" {
					params.Node = &node
				}
				return t.run(cmd, func(ctx context.Context, s *session) error {
					return s.interruptible(ctx, func(ctx context.Context) error {
						if watch {
							return s.watchGPUs(ctx, node, form)
						}
						answer, err := s.ListGPUsWithResponse(ctx, &params)
						if err != nil {
							return err
						}
						if answer.JSON200 == nil {
							return errors.New("the daemon's list of GPUs cannot be read")
						}
						return writeGPUs(s.out, *answer.JSON200, form)
					})
				})
			},
		}
		form.Add(command.Flags())
		command.Flags().BoolVarP(&watch, "watch", "w", false, "show them again whenever they change; of a fleet those of all nodes, unless --node names one")
		command.Flags().StringVar(&node, "node", "", "the node of a fleet whose GPUs are wanted (that which answers, if left out)")
		return command
	})
}

// watchGPUs shows the GPUs of a node, or of all, and again whenever they change.
func (s *session) watchGPUs(ctx context.Context, node string, form Format) error {
	for change, err := range client.FollowFlock(ctx, s.ClientWithResponses) {
		if err != nil {
			return err
		}
		if change.GPUs == nil {
			continue
		}
		known := *change.GPUs
		if node != "" {
			known.Gpus = slices.DeleteFunc(known.Gpus, func(g client.GPU) bool { return deref(g.Node) != node })
		}
		if err := writeGPUs(s.out, known, form); err != nil {
			return err
		}
		if form == FormTable || form == FormWide {
			fmt.Fprintln(s.out)
		}
	}
	return nil
}

// writeGPUs prints GPUs in the form that is asked for.
func writeGPUs(w io.Writer, known client.GPUList, form Format) error {
	switch form {
	case FormJSON:
		return PrintJSON(w, known, true)
	case FormLines:
		for _, g := range known.Gpus {
			if err := PrintJSON(w, g, false); err != nil {
				return err
			}
		}
		return nil
	case FormName:
		for _, g := range known.Gpus {
			if _, err := fmt.Fprintln(w, clean(g.Uuid)); err != nil {
				return err
			}
		}
		return nil
	}
	return printGPUs(w, known)
}

// printGPUs prints a table with a line for each GPU, and below it one for each sheep
// and each foreign process.
func printGPUs(w io.Writer, known client.GPUList) error {
	if known.Trouble != nil {
		fmt.Fprintf(w, "It is not known how the GPUs fare: %s\n", *known.Trouble)
	}
	if len(known.Gpus)+len(known.Others) == 0 {
		_, err := fmt.Fprintln(w, "No GPU is known here.")
		return err
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "GPU\tMEMORY\tLOAD\tPOWER\tTEMP\tHEALTH")
	var notes []string
	for _, g := range known.Gpus {
		fmt.Fprintf(table, "%d %s\t%s / %s\t%s\t%s\t%s\t%s\n", g.Index, g.Name, gibibytes(g.Used), gibibytes(g.Memory),
			orDash(g.Utilization, "%d %%"), orDash(g.Power, "%.0f W"), orDash(g.Temperature, "%d °C"), g.Health)
		if g.Health == client.Out {
			note := fmt.Sprintf("GPU %d (%s) is out", g.Index, g.Uuid)
			if g.Detail != nil {
				note += ": " + *g.Detail
			}
			if g.RetestAt != nil {
				seconds, _, _ := strings.Cut(*g.RetestAt, ".")
				note += "; tested again at " + strings.Replace(seconds, "T", " ", 1) + " UTC"
			}
			notes = append(notes, note)
		}
		printUsers(table, g.Sheep)
		for _, p := range g.Foreign {
			fmt.Fprintf(table, "  not shepherd's: process %d (%s)\t%s\t\t\t\t\n", p.Pid, p.Name, gibibytes(p.Used))
		}
	}
	for _, d := range known.Others {
		fmt.Fprintf(table, "%s\t-\t-\t-\t-\tunknown\n", d.Name)
		printUsers(table, d.Sheep)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, note := range notes {
		if _, err := fmt.Fprintln(w, note); err != nil {
			return err
		}
	}
	return nil
}

// printUsers writes a line for each sheep.
func printUsers(w io.Writer, sheep []client.DeviceUser) {
	for _, s := range sheep {
		line := "  sheep " + s.Name
		if s.Instance != nil {
			line += " on " + *s.Instance
		}
		switch {
		case s.Model.Name == nil:
			line += ": no model"
		case s.Model.Version == nil || *s.Model.Version == "":
			line += ": " + *s.Model.Name
		default:
			line += ": " + *s.Model.Name + ":" + *s.Model.Version
		}
		if s.Job != nil {
			line += ", job " + *s.Job
		}
		memory := gibibytes(s.Used)
		if s.Budget != nil {
			memory += " / " + gibibytes(*s.Budget)
		}
		fmt.Fprintf(w, "%s\t%s\t\t\t\t\n", line, memory)
	}
}

func gibibytes(bytes int64) string { return fmt.Sprintf("%.1f GiB", float64(bytes)/(1<<30)) }

func orDash[T any](value *T, format string) string {
	if value == nil {
		return "-"
	}
	return fmt.Sprintf(format, *value)
}
