package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

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
			Long: "Shows each GPU with its sheep, their models and jobs, its memory, load and health, and\n" +
				"processes on it that are not shepherd's.",
			Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				if node != "" {
					params.Node = &node
				}
				return t.run(cmd, func(ctx context.Context, s *session) error {
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
			},
		}
		form.Add(command.Flags())
		command.Flags().BoolVarP(&watch, "watch", "w", false, "show them again when they change, in a fleet those of all nodes unless --node is given")
		command.Flags().StringVar(&node, "node", "", "node of a fleet whose GPUs to show (default: the one that answers)")
		return command
	})
}

// watchGPUs shows the GPUs of a node, or of all, and again whenever they change.
func (s *session) watchGPUs(ctx context.Context, node string, form Format) error {
	if err := reach(ctx, s.ClientWithResponses); err != nil {
		return err
	}
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
		fmt.Fprintf(w, "It is not known how the GPUs fare: %s\n", clean(*known.Trouble))
	}
	if len(known.Gpus)+len(known.Others) == 0 {
		_, err := fmt.Fprintln(w, "No GPU is known here.")
		return err
	}
	rows := table{{"GPU", "MEMORY", "LOAD", "POWER", "TEMP", "HEALTH"}}
	var notes []string
	for _, g := range known.Gpus {
		node := ""
		if g.Node != nil {
			node = *g.Node + " "
		}
		rows = append(rows, []string{
			fmt.Sprintf("%s%d %s", node, g.Index, g.Name), gibibytes(g.Used) + " / " + gibibytes(g.Memory),
			orDash(g.Utilization, "%d %%"), orDash(g.Power, "%.0f W"), orDash(g.Temperature, "%d °C"), string(g.Health),
		})
		if g.Health == client.Out {
			note := fmt.Sprintf("%sGPU %d (%s) is out", node, g.Index, g.Uuid)
			if g.Detail != nil {
				note += ": " + *g.Detail
			}
			if g.RetestAt != nil {
				seconds, _, _ := strings.Cut(*g.RetestAt, ".")
				note += "; tested again at " + strings.Replace(seconds, "T", " ", 1) + " UTC"
			}
			notes = append(notes, note)
		}
		rows = append(rows, users(g.Sheep)...)
		for _, p := range g.Foreign {
			rows = append(rows, []string{fmt.Sprintf("  not shepherd's: process %d (%s)", p.Pid, p.Name), gibibytes(p.Used)})
		}
	}
	for _, d := range known.Others {
		rows = append(rows, []string{d.Name, "-", "-", "-", "-", "unknown"})
		rows = append(rows, users(d.Sheep)...)
	}
	if err := rows.print(w); err != nil {
		return err
	}
	for _, note := range notes {
		if _, err := fmt.Fprintln(w, clean(note)); err != nil {
			return err
		}
	}
	return nil
}

// users are rows, one for each sheep.
func users(sheep []client.DeviceUser) table {
	var rows table
	for _, s := range sheep {
		line := "  sheep " + s.Name
		if s.Instance != nil {
			line += " on " + *s.Instance
		}
		line += ": " + cmp.Or(modelName(s.Model), "no model")
		if s.Job != nil {
			line += ", job " + *s.Job
		}
		memory := gibibytes(s.Used)
		if s.Budget != nil {
			memory += " / " + gibibytes(*s.Budget)
		}
		rows = append(rows, []string{line, memory})
	}
	return rows
}

func gibibytes(bytes int64) string { return fmt.Sprintf("%.1f GiB", float64(bytes)/(1<<30)) }

func orDash[T any](value *T, format string) string {
	if value == nil {
		return "-"
	}
	return fmt.Sprintf(format, *value)
}
