package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/daemon"
)

func configCommand() *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Look at configuration files"}
	c.AddCommand(&cobra.Command{
		Use:   "check FILE",
		Short: "Check a configuration file and show the result",
		Long: "Reads a configuration file as the daemon would, changes nothing, and prints\n" +
			"either everything that is wrong with it, a line each, or the configuration with\n" +
			"all defaults filled in and all secrets hidden.",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return &usageError{fmt.Errorf("config check takes one file")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			loaded, err := daemon.LoadConfig(args[0])
			if err != nil {
				return err
			}
			if _, err = fmt.Fprint(cmd.OutOrStdout(), loaded); err != nil || !loaded.API.Open() {
				return err
			}
			_, err = fmt.Fprintln(cmd.ErrOrStderr(), "warning:", loaded.API.OpenWarning())
			return err
		},
	})
	return c
}
