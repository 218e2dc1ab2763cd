package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/daemon"
)

func configCommand() *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Check configuration files, and print their schema"}
	c.AddCommand(&cobra.Command{
		Use:   "check FILE",
		Short: "Check a configuration file and show the result",
		Long: "Reads a configuration file as the daemon would, changes nothing, and prints either all\n" +
			"errors in it, a line each, or the configuration in effect, with defaults filled in and\n" +
			"secrets hidden.",
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
			if _, err := fmt.Fprint(cmd.OutOrStdout(), loaded); err != nil {
				return err
			}
			warnings := append(loaded.API.Warnings(), loaded.DeviceWarnings()...)
			for _, w := range loaded.Warnings {
				warnings = append(warnings, w.Error())
			}
			for _, warning := range warnings {
				if _, err := fmt.Fprintln(cmd.ErrOrStderr(), "warning:", warning); err != nil {
					return err
				}
			}
			return nil
		},
	})
	c.AddCommand(&cobra.Command{
		Use:   "schema",
		Short: "Print a JSON Schema of configuration files, for editors",
		Long: "Prints a JSON Schema (draft 2020-12) of configuration files. Editors complete and\n" +
			"check keys with it, by a first line such as\n\n" +
			"    # yaml-language-server: $schema=/usr/share/shepherd/shepherd.schema.json",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := daemon.ConfigSchema()
			if err == nil {
				_, err = fmt.Fprintln(cmd.OutOrStdout(), string(text))
			}
			return err
		},
	})
	return c
}
