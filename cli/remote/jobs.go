package remote

import "github.com/spf13/cobra"

// withTarget adds the flags of a target of its own to a command.
func withTarget(c Config, build func(*Target) *cobra.Command) *cobra.Command {
	t := NewTarget(c)
	cmd := build(t)
	t.Add(cmd.Flags())
	return cmd
}

func lsCommand(c Config) *cobra.Command      { return withTarget(c, ls) }
func statusCommand(c Config) *cobra.Command  { return withTarget(c, status) }
func waitCommand(c Config) *cobra.Command    { return withTarget(c, wait) }
func logsCommand(c Config) *cobra.Command    { return withTarget(c, logs) }
func cancelCommand(c Config) *cobra.Command  { return withTarget(c, cancel) }
func retryCommand(c Config) *cobra.Command   { return withTarget(c, retry) }
func explainCommand(c Config) *cobra.Command { return withTarget(c, explain) }
func eventsCommand(c Config) *cobra.Command  { return withTarget(c, events) }
func resultCommand(c Config) *cobra.Command  { return withTarget(c, result) }
func submitCommand(c Config) *cobra.Command  { return withTarget(c, submit) }

// jobsCommand has those commands that were only here before.
func jobsCommand(c Config) *cobra.Command {
	t := NewTarget(c)
	cmd := &cobra.Command{
		Use:   "jobs",
		Short: "List jobs, show them and their logs, cancel them and run them again",
		Long:  "Older names of the commands for jobs: `jobs ls` is `ls`, and so on.",
	}
	t.Add(cmd.PersistentFlags())
	show := status(t)
	show.Use, show.Short, show.Hidden = "show JOB", "Show all details of a job, as JSON", false
	if err := show.Flags().Set("output", FormJSON); err != nil {
		panic(err) // it is one of the forms
	}
	show.Flags().Lookup("output").DefValue = FormJSON
	cmd.AddCommand(ls(t), show, logs(t), explain(t), retry(t), cancel(t))
	return cmd
}

// jobs checks that there is at least one id.
func jobs(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usage("the id of a job is needed; `shepherd ls` lists them")
	}
	return nil
}

// oneJob checks that there is one id.
func oneJob(_ *cobra.Command, args []string) error {
	switch len(args) {
	case 0:
		return usage("the id of a job is needed; `shepherd ls` lists them")
	case 1:
		return nil
	}
	return usage("one job at a time")
}
