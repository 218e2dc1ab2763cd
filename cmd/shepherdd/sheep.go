package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os/signal"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/api"
	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/shim"
)

// reloadCommand has a daemon read its configuration again.
func reloadCommand() *cobra.Command {
	var asks target
	c := &cobra.Command{
		Use:   "reload",
		Short: "Have the daemon read its configuration again",
		Long: "Has the daemon that is up read its configuration again, as a whole or not at\n" +
			"all: sheep are added, removed and changed while the others work on. It says\n" +
			"what is in effect now and what needs a restart, and returns when sheep that are\n" +
			"removed or changed have ended.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			daemon, err := asks.find()
			if err != nil {
				return err
			}
			defer daemon.close()
			var did reload
			if err := daemon.ask(cmd.Context(), http.MethodPost, "/admin/reload", nil, &did); err != nil {
				return err
			}
			_, err = fmt.Fprint(cmd.OutOrStdout(), did)
			return err
		},
	}
	asks.add(c.Flags())
	return c
}

func sheepCommand() *cobra.Command {
	var asks target
	c := &cobra.Command{
		Use:   "sheep",
		Short: "List the sheep, stop and start them",
		Long: "Lists, stops and starts the sheep of this machine. With --api it asks the daemon\n" +
			"at that address; with -c the one that is up with that configuration or, where\n" +
			"none is, it works by itself; with neither the one that is up as a service.",
	}
	asks.add(c.PersistentFlags())

	var all bool
	drain := time.Duration(-1)
	stop := &cobra.Command{
		Use:   "stop --all",
		Short: "Stop all sheep, so that no runner is left on the machine",
		Long: "Stops all sheep. Running jobs may finish for drain_timeout; those that do not go\n" +
			"back to the queue. A daemon that is up takes jobs in, and lets them wait until\n" +
			"`shepherdd sheep start --all`, or until it is restarted.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !all {
				return &usageError{errors.New("say --all; to stop one sheep, remove it from the configuration and `shepherdd reload`")}
			}
			query := ""
			if drain >= 0 {
				query = "?drain_timeout=" + url.QueryEscape(drain.String())
			}
			err := asks.post(cmd.Context(), "/admin/sheep/stop"+query)
			if errors.Is(err, errNoDaemon) {
				err = stopAlone(cmd, options{config: asks.file, closing: true, drain: drain})
			}
			if err == nil {
				fmt.Fprintln(cmd.OutOrStdout(), "All sheep are stopped.")
			}
			return err
		},
	}
	stop.Flags().BoolVar(&all, "all", false, "all sheep of the machine")
	stop.Flags().DurationVar(&drain, "drain-timeout", -1, "how long running jobs may take to finish (default: the configuration's drain_timeout)")

	start := &cobra.Command{
		Use:   "start --all",
		Short: "Let the sheep work again that were stopped",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !all {
				return &usageError{errors.New("say --all")}
			}
			if err := asks.post(cmd.Context(), "/admin/sheep/start"); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "The sheep work again.")
			return nil
		},
	}
	start.Flags().BoolVar(&all, "all", false, "all sheep of the machine")

	list := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the sheep and what they have",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			daemon, err := asks.find()
			if errors.Is(err, errNoDaemon) {
				return listAlone(cmd, asks.file)
			}
			if err != nil {
				return err
			}
			defer daemon.close()
			return listSheep(cmd.Context(), daemon, cmd.OutOrStdout())
		},
	}
	c.AddCommand(list, stop, start)
	return c
}

// post asks the daemon that is meant for what has no answer.
func (t *target) post(ctx context.Context, path string) error {
	daemon, err := t.find()
	if err != nil {
		return err
	}
	defer daemon.close()
	return daemon.ask(ctx, http.MethodPost, path, nil, nil)
}

// stopAlone is a daemon that takes up what another has left, and ends it.
func stopAlone(cmd *cobra.Command, o options) error {
	ctx, stop := signal.NotifyContext(cmd.Context(), o.signalsToStop()...)
	defer stop()
	return serve(ctx, o, cmd.ErrOrStderr())
}

func listSheep(ctx context.Context, daemon *client, to io.Writer) error {
	var status api.SheepList
	if err := daemon.ask(ctx, http.MethodGet, "/sheep", nil, &status); err != nil {
		return err
	}
	table := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "NAME\tTYPE\tUP\tMODEL\tJOB\tDETAIL")
	for _, s := range status.Sheep {
		up, model := "no", ""
		if s.Running {
			up, model = "yes", job.Model{Name: deref(s.Model.Name), Version: deref(s.Model.Version)}.String()
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", s.Name, s.Type, up, cmp.Or(model, "-"), cmp.Or(deref(s.Job), "-"), deref(s.Detail))
	}
	return table.Flush()
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// listAlone lists the runners that an earlier daemon has left up.
func listAlone(cmd *cobra.Command, file string) error {
	cfg, err := load(options{config: file})
	if err != nil {
		return err
	}
	lives, err := livesOf(cfg)
	if err != nil {
		return err
	}
	if len(lives) == 0 {
		fmt.Fprintln(cmd.ErrOrStderr(), "No daemon is up, and no sheep.")
		return nil
	}
	table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "NAME\tUP\tMODEL")
	for _, spec := range lives {
		fmt.Fprintf(table, "%s\tyes\t%s\n", spec.Sheep, spec.Model)
	}
	return table.Flush()
}

// livesOf are the runners that are up below the state directory, by their shims.
func livesOf(cfg *config.Config) ([]shim.Spec, error) {
	var found []shim.Spec
	for _, kind := range []string{"sheep", "containers"} {
		lives, err := filepath.Glob(filepath.Join(cfg.StateDir, kind, "*", "lives", "*"))
		if err != nil {
			return nil, err
		}
		for _, path := range lives {
			folder, err := shim.OpenFolder(path)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			ended, err := folder.TryLock() // a shim that lives holds it
			folder.Close()
			if err != nil {
				return nil, err
			}
			if spec, err := shim.ReadSpec(path); err == nil && !ended {
				found = append(found, spec)
			}
		}
	}
	return found, nil
}
