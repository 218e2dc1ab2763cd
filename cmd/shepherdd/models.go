package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/image"
	"github.com/iterait/shepherd/job"
)

// modelsCommand looks after the images of models. It speaks to containerd
// itself: whether a daemon runs does not matter.
func modelsCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "models",
		Short: "Fetch, list and remove the images of models that container sheep run",
	}
	c.PersistentFlags().StringVarP(&file, "config", "c", "", "configuration file (required)")
	models := func(use, short, long string, least int, run func(ctx context.Context, out io.Writer, images *image.Store, models []job.Model) error) {
		c.AddCommand(&cobra.Command{
			Use: use, Short: short, Long: long,
			Args: func(cmd *cobra.Command, args []string) error {
				if len(args) < least || least == 0 && len(args) > 0 {
					return &usageError{fmt.Errorf("expected shepherdd models %s", use)}
				}
				return nil
			},
			RunE: func(cmd *cobra.Command, args []string) error {
				if file == "" {
					return &usageError{errors.New("a configuration file is needed: -c FILE")}
				}
				ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
				defer stop()
				return withImages(ctx, file, func(images *image.Store) error {
					return run(ctx, cmd.OutOrStdout(), images, modelsOf(args))
				})
			},
		})
	}
	models("pull NAME:VERSION…", "Fetch the images of models",
		"Fetches and unpacks the images of models from the configured registry, so that\njobs find them here.", 1, pullModels)
	models("ls", "List the images that are here", "", 0, listModels)
	models("rm NAME:VERSION…", "Remove the images of models",
		"Removes the images of models. One that a sheep has loaded is refused.", 1, removeModels)
	return c
}

// modelsOf reads NAME, NAME:VERSION and NAME@DIGEST.
func modelsOf(args []string) []job.Model {
	var list []job.Model
	for _, arg := range args {
		m := job.Model{Name: arg}
		if i := strings.IndexAny(arg, ":@"); i >= 0 {
			m = job.Model{Name: arg[:i], Version: arg[i+1:]}
		}
		list = append(list, m)
	}
	return list
}

// withImages opens the images of a configuration.
func withImages(ctx context.Context, file string, use func(*image.Store) error) error {
	cfg, err := config.Loader{Types: checks()}.Load(file)
	if err != nil {
		return err
	}
	if cfg.Registry == nil {
		return errors.New("the configuration has no registry")
	}
	// Nothing is removed for a budget here: what jobs need, the daemon knows.
	cfg.Containerd.ImageBudget = 0
	driver := newContainers(&environment{config: cfg, log: slog.New(slog.DiscardHandler)})
	defer driver.Close()
	images, err := driver.Images(ctx)
	if err != nil {
		return err
	}
	return use(images)
}

// pullModels fetches one after the other, and says how far it is.
func pullModels(ctx context.Context, out io.Writer, images *image.Store, models []job.Model) error {
	for _, m := range models {
		report := &reporter{out: out}
		img, err := images.Ensure(ctx, m, report.observe)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%s is here: %s\n", img.Reference, img.Target.Digest)
	}
	return nil
}

// reporter prints progress, at most once a second.
type reporter struct {
	out io.Writer

	mu    sync.Mutex
	phase image.Phase
	last  time.Time
}

func (r *reporter) observe(p image.Progress) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.Phase == r.phase && time.Since(r.last) < time.Second {
		return
	}
	r.phase, r.last = p.Phase, time.Now()
	fmt.Fprintln(r.out, p)
}

func listModels(ctx context.Context, out io.Writer, images *image.Store, _ []job.Model) error {
	list, err := images.List(ctx)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "IMAGE\tSIZE\tLAST USED\tIN USE")
	for _, i := range list {
		used, inUse := "never", ""
		if !i.LastUsed.IsZero() {
			used = i.LastUsed.Local().Format(time.DateTime)
		}
		if i.InUse {
			inUse = "yes"
		}
		fmt.Fprintf(table, "%s\t%d MiB\t%s\t%s\n", i.Reference, (i.Size+1<<20-1)>>20, used, inUse)
	}
	return table.Flush()
}

func removeModels(ctx context.Context, out io.Writer, images *image.Store, models []job.Model) error {
	for _, m := range models {
		if err := images.Remove(ctx, m); err != nil {
			return err
		}
		fmt.Fprintf(out, "%s is removed\n", m)
	}
	return nil
}
