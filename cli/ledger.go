package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/daemon"
	"github.com/iterait/shepherd/ledger/sqlite"
)

func ledgerCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "ledger",
		Short: "Back up, export, import and migrate the ledger",
	}
	c.AddCommand(backupCommand(), exportCommand(), importCommand(), migrateCommand())
	return c
}

// usualConfig is the file that init writes where none is named.
const usualConfig = "shepherd.yml"

// noConfig says that a configuration is needed, and where to have one from.
func noConfig() error {
	if _, err := os.Stat(usualConfig); err == nil {
		return &usageError{errors.New("a configuration file is needed: -c FILE; there is one here: -c " + usualConfig)}
	}
	return &usageError{errors.New("a configuration file is needed: -c FILE; `shepherdd init` writes one for this machine")}
}

// configOf reads the configuration file or, where none is named, the service's.
func configOf(file string) (*config.Config, error) {
	if file == "" {
		file = packagedConfig
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			return nil, noConfig()
		}
	}
	return daemon.LoadConfig(file)
}

func backupCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "backup [-c FILE] TO",
		Short: "Copy the ledger while the daemon runs",
		Long: "Writes a consistent copy of the ledger to the new file TO. The daemon may be running.\n" +
			"To restore the copy, stop the daemon and replace the ledger with it. Back up a ledger\n" +
			"in PostgreSQL with pg_dump.",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return &usageError{errors.New("ledger backup takes the name of one new file")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := configOf(file)
			if err != nil {
				return err
			}
			if cfg.Ledger.Shared() {
				return fmt.Errorf("the ledger is in PostgreSQL (%s): back it up with pg_dump --schema=shepherd, or with what backs up the server", cfg.Ledger.URL)
			}
			if err := sqlite.Backup(cmd.Context(), cfg.Ledger.Path, args[0]); err != nil {
				return err
			}
			found, err := sqlite.Inspect(cmd.Context(), args[0])
			if err != nil {
				return fmt.Errorf("read the backup again: %w", err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%d jobs are in %s\n", found.Jobs, args[0])
			return nil
		},
	}
	c.Flags().StringVarP(&file, "config", "c", "", "configuration file (default: that of the service)")
	return c
}

func migrateCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "migrate [-c FILE] TO",
		Short: "Move the queue and the history to another ledger, such as PostgreSQL",
		Long: "Copies all jobs with their attempts into the empty ledger of the configuration file\n" +
			"TO, from a SQLite file to PostgreSQL or back. All daemons of both ledgers must be\n" +
			"stopped. Jobs that were running are queued again. The old ledger is not changed: from\n" +
			"now on start the daemon with TO, or jobs run twice.",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return &usageError{errors.New("ledger migrate takes the name of one configuration file, which has the new ledger")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			from, err := configOf(file)
			if err != nil {
				return err
			}
			to, err := daemon.LoadConfig(args[0])
			if err != nil {
				return err
			}
			jobs, err := daemon.Migrate(cmd.Context(), from, to, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%d jobs are moved; start the daemon with %s from now on\n", jobs, args[0])
			return nil
		},
	}
	c.Flags().StringVarP(&file, "config", "c", "", "configuration file with the current ledger (default: that of the service)")
	return c
}
