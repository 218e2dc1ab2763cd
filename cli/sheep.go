package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/cli/remote"
	"github.com/iterait/shepherd/client"
	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/daemon"
	"github.com/iterait/shepherd/shim"
)

// reloadCommand makes a daemon read its configuration again.
func reloadCommand(target remote.Config) *cobra.Command {
	asks := remote.NewTarget(target)
	c := &cobra.Command{
		Use:   "reload",
		Short: "Have the daemon read its configuration again",
		Long: "Has the running daemon read its configuration again, as a whole or not at all: sheep\n" +
			"are added, removed and changed while the others continue. It prints which changes are\n" +
			"in effect and which need a restart, and returns when removed and changed sheep have\n" +
			"stopped.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			asked, err := asks.Open()
			if err != nil {
				return err
			}
			defer asked.CloseIdle()
			var result daemon.ReloadResult
			if err := asked.Call(cmd.Context(), http.MethodPost, "/admin/reload", nil, &result); err != nil {
				return remote.Hint(err)
			}
			_, err = fmt.Fprint(cmd.OutOrStdout(), result)
			return err
		},
	}
	asks.Add(c.Flags())
	return c
}

func sheepCommand(b Build, target remote.Config) *cobra.Command {
	asks := remote.NewTarget(target)
	c := &cobra.Command{
		Use:   "sheep",
		Short: "List the sheep, drain, restart and load them",
		Long: "Lists and controls the sheep. With --server it asks the daemon at that address; with\n" +
			"-c the one that runs with that configuration or, if none does, it works without a\n" +
			"daemon; with neither it asks the service on this machine. `stop` and `start` work only\n" +
			"on the sheep's own machine.",
	}
	asks.Add(c.PersistentFlags())

	remote.SheepListing(c, func(cmd *cobra.Command, p *remote.SheepPrinter) error {
		asked, err := asks.Open()
		if errors.Is(err, remote.ErrNoDaemon) {
			return listWithoutDaemon(cmd, asks.File, p)
		}
		if err != nil {
			return err
		}
		defer asked.CloseIdle()
		return remote.Hint(p.List(cmd.Context(), asked, cmd.OutOrStdout()))
	})
	orders := sheepOrders{target: asks, drain: -1}
	restart := orders.restart()
	c.AddCommand(orders.stop(b), orders.start())
	for _, order := range remote.SheepOrders(asks) {
		if order.Name() == restart.Name() { // which also knows --all here
			order = restart
		}
		c.AddCommand(order)
	}
	return c
}

// sheepOrders are the commands for the sheep of this machine: those that are named, or all.
type sheepOrders struct {
	target *remote.Target
	all    bool
	drain  time.Duration // negative where no flag says it
}

// command returns one that calls run with the query that names the sheep.
func (o *sheepOrders) command(verb string, run func(cmd *cobra.Command, query url.Values) error) *cobra.Command {
	c := &cobra.Command{
		Use: verb + " [--all] [SHEEP...]", ValidArgsFunction: remote.SheepArgs(o.target),
		RunE: func(cmd *cobra.Command, names []string) error {
			if o.all == (len(names) > 0) {
				return &usageError{errors.New("name the sheep, or say --all")}
			}
			return run(cmd, url.Values{"sheep": names})
		},
	}
	c.Flags().BoolVar(&o.all, "all", false, "all sheep of the machine")
	return c
}

// postStop has the daemon stop the sheep of the query, and postStart has it start them.
func (o *sheepOrders) postStop(ctx context.Context, query url.Values) error {
	if o.drain >= 0 {
		query.Set("drain_timeout", o.drain.String())
	}
	return post(ctx, o.target, "/admin/sheep/stop?"+query.Encode())
}

func (o *sheepOrders) postStart(ctx context.Context, query url.Values) error {
	return post(ctx, o.target, "/admin/sheep/start?"+query.Encode())
}

// report prints one for each sheep of the query, or every where all sheep are meant.
func (o *sheepOrders) report(cmd *cobra.Command, query url.Values, one, every string) {
	for _, name := range query["sheep"] {
		fmt.Fprintf(cmd.OutOrStdout(), one+"\n", name)
	}
	if o.all {
		fmt.Fprintln(cmd.OutOrStdout(), every)
	}
}

func (o *sheepOrders) stop(b Build) *cobra.Command {
	c := o.command("stop", func(cmd *cobra.Command, query url.Values) error {
		err := o.postStop(cmd.Context(), query)
		if o.all && errors.Is(err, remote.ErrNoDaemon) {
			err = stopWithoutDaemon(cmd, daemon.Options{
				ConfigFile: o.target.File, StopSheep: true, DrainTimeout: o.drain, Version: b.Version, Commit: b.Commit,
			})
		}
		if err == nil {
			o.report(cmd, query, "Sheep %s is stopped.", "All sheep are stopped.")
		}
		return err
	})
	c.Short = "Stop sheep; with --all, so that no runner is left on the machine"
	c.Long = "Stops sheep. Running jobs may finish for drain_timeout; those that do not go back to\n" +
		"the queue. A running daemon still accepts jobs; those that no other sheep can run wait\n" +
		"until `shepherdd sheep start` or a restart of the daemon."
	remote.AddDrainTimeout(c, &o.drain)
	return c
}

func (o *sheepOrders) start() *cobra.Command {
	c := o.command("start", func(cmd *cobra.Command, query url.Values) error {
		err := o.postStart(cmd.Context(), query)
		if err == nil {
			o.report(cmd, query, "Sheep %s works again.", "The sheep work again.")
		}
		return err
	})
	c.Short = "Let stopped sheep work again"
	return c
}

func (o *sheepOrders) restart() *cobra.Command {
	c := o.command("restart", func(cmd *cobra.Command, query url.Values) error {
		if !o.all {
			return o.target.Restart(cmd, query["sheep"], o.drain)
		}
		err := o.postStop(cmd.Context(), url.Values{})
		if err == nil {
			err = o.postStart(cmd.Context(), url.Values{})
		}
		if err == nil {
			o.report(cmd, query, "", "All sheep have ended their runners and work again.")
		}
		return err
	})
	c.Short = "Restart the runners of sheep"
	c.Long = "Stops the runners of sheep. Running jobs may finish for drain_timeout; those that do\n" +
		"not go back to the queue, and the attempt is not counted. The next job starts a new\n" +
		"runner."
	remote.AddDrainTimeout(c, &o.drain)
	return c
}

// post sends a request without a response body to the daemon.
func post(ctx context.Context, asks *remote.Target, path string) error {
	asked, err := asks.Open()
	if err != nil {
		return err
	}
	defer asked.CloseIdle()
	return remote.Hint(asked.Call(ctx, http.MethodPost, path, nil, nil))
}

// stopWithoutDaemon stops the sheep that an earlier daemon has left running.
func stopWithoutDaemon(cmd *cobra.Command, o daemon.Options) error {
	ctx, stop := signal.NotifyContext(cmd.Context(), daemon.StopSignals(nil)...)
	defer stop()
	return daemon.Run(ctx, o, cmd.ErrOrStderr())
}

// listWithoutDaemon lists the runners that an earlier daemon has left running.
func listWithoutDaemon(cmd *cobra.Command, file string, p *remote.SheepPrinter) error {
	cfg, err := daemon.LoadConfig(file)
	if err != nil {
		return err
	}
	lives, err := runningSheep(cfg)
	if err != nil {
		return err
	}
	if len(lives) == 0 {
		fmt.Fprintln(cmd.ErrOrStderr(), "No daemon is up, and no sheep.")
		return nil
	}
	var sheep []client.Sheep
	for _, spec := range lives {
		model := spec.Model
		sheep = append(sheep, client.Sheep{Name: spec.Sheep, Running: true, Model: client.Model{Name: &model.Name, Version: &model.Version}})
	}
	return p.Print(cmd.OutOrStdout(), sheep)
}

// runningSheep are the runners whose shims hold a directory below the state directory.
func runningSheep(cfg *config.Config) ([]shim.Spec, error) {
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
