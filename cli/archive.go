package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/daemon"
	"github.com/iterait/shepherd/ledger/archive"
	"github.com/iterait/shepherd/ledger/postgres"
	"github.com/iterait/shepherd/ledger/sqlite"
)

func exportCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "export [-c FILE] [TO]",
		Short: "Export the ledger as JSON lines while the daemon runs",
		Long: "Writes a consistent snapshot of all jobs with their attempts to the new file TO or,\n" +
			"without it, to standard output. The daemon may be running. 'ledger import' reads the\n" +
			"file into another ledger.",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return &usageError{errors.New("ledger export takes the name of one new file, or none")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			cfg, err := configOf(file)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if len(args) > 0 {
				to, err := os.OpenFile(args[0], os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
				if err != nil {
					return fmt.Errorf("make the archive: %w", err)
				}
				defer to.Close()
				out = to
			}
			jobs, err := export(cmd.Context(), cfg, out)
			if err != nil {
				return err
			}
			if to, ok := out.(*os.File); ok && len(args) > 0 {
				if err := errors.Join(to.Sync(), to.Close()); err != nil {
					return fmt.Errorf("write the archive: %w", err)
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%d jobs are in %s\n", jobs, args[0])
			}
			return nil
		},
	}
	c.Flags().StringVarP(&file, "config", "c", "", "configuration file (default: that of the service)")
	return c
}

// export writes the records of the ledger as they are at one moment.
func export(ctx context.Context, cfg *config.Config, out io.Writer) (jobs int, err error) {
	if !cfg.Ledger.Shared() {
		return exportFile(ctx, cfg.Ledger.Path, out)
	}
	err = postgres.Read(ctx, daemon.DatabaseConfig(cfg), func(r *postgres.Reader) error {
		jobs, err = archive.Write(ctx, out, r)
		return err
	})
	return jobs, err
}

// exportFile writes the records of the SQLite file at path, by way of a copy of it
// beside it, which no daemon changes meanwhile.
func exportFile(ctx context.Context, path string, out io.Writer) (jobs int, err error) {
	dir, err := os.MkdirTemp(filepath.Dir(path), ".export-")
	if err != nil {
		return 0, fmt.Errorf("make room for a copy of the ledger: %w", err)
	}
	defer os.RemoveAll(dir)
	copied := filepath.Join(dir, "ledger.db")
	if err := sqlite.Backup(ctx, path, copied); err != nil {
		return 0, err
	}
	l, err := sqlite.Open(ctx, sqlite.Config{Path: copied})
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return archive.Write(ctx, out, l)
}

func importCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "import [-c FILE] FROM",
		Short: "Import exported jobs into the ledger of a daemon that is stopped",
		Long: "Adds the jobs in the file FROM, which 'ledger export' wrote, to the ledger. Jobs that\n" +
			"were running when they were exported are queued again. If the file is damaged or\n" +
			"truncated, or has a job that the ledger has already, nothing is changed. The daemon\n" +
			"must be stopped.",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return &usageError{errors.New("ledger import takes the name of one file")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := configOf(file)
			if err != nil {
				return err
			}
			from, err := os.Open(args[0])
			if err != nil {
				return fmt.Errorf("open the archive: %w", err)
			}
			defer from.Close()
			jobs, err := daemon.Import(cmd.Context(), cfg, from, cmd.ErrOrStderr())
			if err != nil {
				return fmt.Errorf("%s: %w; %d jobs were imported", args[0], err, jobs)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%d jobs are imported\n", jobs)
			return nil
		},
	}
	c.Flags().StringVarP(&file, "config", "c", "", "configuration file (default: that of the service)")
	return c
}
