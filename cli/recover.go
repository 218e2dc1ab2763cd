package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/daemon"
	"github.com/iterait/shepherd/shepherd"
)

func recoverCommand() *cobra.Command {
	var file string
	var dryRun bool
	c := &cobra.Command{
		Use:   "recover [-c FILE] [--dry-run]",
		Short: "Queue jobs again after the state directory was lost",
		Long: "Finds jobs in storage that have not ended and that the ledger does not have, and\n" +
			"queues them again in the order of their submission. Use it if the state directory was\n" +
			"lost and there is no backup of the ledger. A job that was running runs again. Storage\n" +
			"keeps neither the sheep that a job was addressed to nor its priority, limits and\n" +
			"tenant: these are lost. The daemon must be stopped. The command may be repeated.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := configOf(file)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			counts, err := daemon.Rebuild(cmd.Context(), cfg, dryRun, func(r shepherd.Rebuilt) {
				if r.Trouble != nil {
					fmt.Fprintf(out, "%s\tcannot be queued: %q\n", r.ID, r.Trouble.Error()) // what storage holds may have anything in it
					return
				}
				fmt.Fprintf(out, "%s\t%s\tqueued\n", r.ID, r.Model)
			}, cmd.ErrOrStderr())
			if err != nil && counts == (shepherd.RebuildCounts{}) { // it did not begin
				return err
			}
			verb := "are queued again"
			if dryRun {
				verb = "would be queued again"
			}
			fmt.Fprintf(out, "%d jobs %s, %d cannot be, %d have ended, %d are in the ledger\n", counts.Queued, verb, counts.Refused, counts.Ended, counts.Known)
			return err
		},
	}
	c.Flags().StringVarP(&file, "config", "c", "", "configuration file (default: that of the service)")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be done, and queue nothing")
	return c
}
