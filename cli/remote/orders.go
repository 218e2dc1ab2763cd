package remote

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/client"
	"github.com/iterait/shepherd/job"
)

// SheepOrders are the commands that tell sheep what to do.
func SheepOrders(t *Target) []*cobra.Command {
	return []*cobra.Command{drainSheep(t), resumeSheep(t), restartSheep(t), loadSheep(t)}
}

// someSheep checks that there is at least one name.
func someSheep(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usage("the name of a sheep is needed; `sheep ls` lists them")
	}
	return nil
}

// each does something to all sheep that are named, until it fails for one, and says that
// it is done.
func (s *session) each(ctx context.Context, names []string, verb string, do func(ctx context.Context, sheep string) error) error {
	for _, name := range names {
		if err := do(ctx, name); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(s.out, "Sheep %s %s.\n", name, verb); err != nil {
			return err
		}
	}
	return nil
}

func drainSheep(t *Target) *cobra.Command {
	return &cobra.Command{
		Use: "drain SHEEP…", Short: "Stop sheep from taking jobs",
		Long: "Stops sheep from taking jobs, also after a restart of the daemon. They finish their\n" +
			"current job and keep their models; `sheep ls` shows when they have no job. Jobs that\n" +
			"only they could run wait until `sheep resume`.",
		Args: someSheep, ValidArgsFunction: SheepArgs(t),
		RunE: func(cmd *cobra.Command, names []string) error {
			return t.run(cmd, func(ctx context.Context, s *session) error {
				return s.each(ctx, names, "takes no more jobs", func(ctx context.Context, sheep string) error {
					return succeeded(s.DrainSheepWithResponse(ctx, sheep))
				})
			})
		},
	}
}

func resumeSheep(t *Target) *cobra.Command {
	return &cobra.Command{
		Use: "resume SHEEP…", Short: "Let drained or stopped sheep take jobs again",
		Args: someSheep, ValidArgsFunction: SheepArgs(t),
		RunE: func(cmd *cobra.Command, names []string) error {
			return t.run(cmd, func(ctx context.Context, s *session) error {
				return s.each(ctx, names, "takes jobs", func(ctx context.Context, sheep string) error {
					return succeeded(s.ResumeSheepWithResponse(ctx, sheep))
				})
			})
		},
	}
}

func restartSheep(t *Target) *cobra.Command {
	var drain time.Duration
	cmd := &cobra.Command{
		Use: "restart SHEEP…", Short: "Restart the runners of sheep",
		Long: "Stops the runners of sheep. Running jobs may finish for --drain-timeout; those that do\n" +
			"not go back to the queue, and the attempt is not counted. The next job starts a new\n" +
			"runner.",
		Args: someSheep, ValidArgsFunction: SheepArgs(t),
		RunE: func(cmd *cobra.Command, names []string) error { return t.Restart(cmd, names, drain) },
	}
	AddDrainTimeout(cmd, &drain)
	return cmd
}

// AddDrainTimeout adds the flag that says how long running jobs may take to finish.
func AddDrainTimeout(cmd *cobra.Command, drain *time.Duration) {
	cmd.Flags().DurationVar(drain, "drain-timeout", -1, "how long running jobs may take to finish (default: the configuration's drain_timeout)")
	cmd.Flags().Lookup("drain-timeout").DefValue = "0s" // not to be shown as -1ns
}

// Restart has sheep end their runners and go on with new ones. Running jobs may finish
// for the time of drain or, where that is negative, the configuration's drain_timeout.
func (t *Target) Restart(cmd *cobra.Command, names []string, drain time.Duration) error {
	params := client.RestartSheepParams{Drain: new("")}
	if drain >= 0 {
		*params.Drain = drain.String()
	}
	return t.run(cmd, func(ctx context.Context, s *session) error {
		return s.each(ctx, names, "has ended its runner and works again", func(ctx context.Context, sheep string) error {
			return succeeded(s.RestartSheepWithResponse(ctx, sheep, &params))
		})
	})
}

func loadSheep(t *Target) *cobra.Command {
	return &cobra.Command{
		Use: "load SHEEP NAME[:VERSION]", Short: "Load a model in a sheep without a job",
		Long: "Loads a model in a sheep without a job, in place of its current one, and returns when\n" +
			"it is loaded. A job of another model that arrives meanwhile takes precedence; `sheep\n" +
			"drain` prevents that.",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usage("the name of a sheep and a model are needed: load SHEEP NAME:VERSION")
			}
			return nil
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, begin string) ([]string, cobra.ShellCompDirective) {
			switch len(args) {
			case 0:
				return SheepArgs(t)(cmd, args, begin)
			case 1:
				if found, err := models(t); err == nil {
					return found, cobra.ShellCompDirectiveNoFileComp
				}
				return nil, cobra.ShellCompDirectiveError
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			m := job.ParseModel(args[1])
			var request client.LoadRequest
			request.Model.Name, request.Model.Version = m.Name, m.Version
			return t.run(cmd, func(ctx context.Context, s *session) error {
				return s.each(ctx, args[:1], "has loaded "+m.String(), func(ctx context.Context, sheep string) error {
					return succeeded(s.LoadSheepWithResponse(ctx, sheep, request))
				})
			})
		},
	}
}
