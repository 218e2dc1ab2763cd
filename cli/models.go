package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/cli/remote"
	"github.com/iterait/shepherd/daemon"
	"github.com/iterait/shepherd/job"
)

// models are the models of a daemon, by its API, or of this machine where no daemon is
// running.
type models interface {
	Pull(ctx context.Context, m job.Model, sheep string, report func(job.PullProgress)) error
	List(ctx context.Context) ([]job.KeptModel, error)
	Remove(ctx context.Context, m job.Model) error
}

func modelsCommand(target remote.Config) *cobra.Command {
	asks := remote.NewTarget(target)
	c := &cobra.Command{
		Use:   "models",
		Short: "Fetch models ahead of time, list and remove them",
		Long: "Fetches, lists and removes the models that container sheep run. With --server it\n" +
			"asks the daemon at that address; with -c the one that is up with that\n" +
			"configuration or, where none is, it works by itself; with neither the one\n" +
			"that is up as a service.",
	}
	asks.Add(c.PersistentFlags())

	// with runs do with whom the flags name.
	with := func(cmd *cobra.Command, do func(context.Context, models) error) error {
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		asked, closeModels, err := openModels(ctx, asks, cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		defer closeModels()
		err = remote.Hint(do(ctx, asked))
		if err != nil && ctx.Err() != nil {
			return errors.New("interrupted; what was fetched is kept for the next time")
		}
		return err
	}

	var sheep string
	pull := &cobra.Command{
		Use:   "pull NAME[:VERSION]…",
		Short: "Fetch models",
		Args:  atLeastOneModel,
		RunE: func(cmd *cobra.Command, args []string) error {
			return with(cmd, func(ctx context.Context, asked models) error {
				for _, arg := range args {
					bar := newBar(cmd.ErrOrStderr(), job.ParseModel(arg).String())
					err := asked.Pull(ctx, job.ParseModel(arg), sheep, bar.show)
					bar.end()
					if err != nil {
						return fmt.Errorf("pull %s: %w", arg, err)
					}
					fmt.Fprintf(cmd.OutOrStdout(), "%s is here\n", job.ParseModel(arg))
				}
				return nil
			})
		},
	}
	pull.Flags().StringVar(&sheep, "sheep", "", "fetch for this sheep only; all that fetch models, if left out")
	c.AddCommand(pull, &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the models that are here",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return with(cmd, func(ctx context.Context, asked models) error {
				list, err := asked.List(ctx)
				if err != nil {
					return err
				}
				if len(list) == 0 {
					fmt.Fprintln(cmd.ErrOrStderr(), "No models are kept here: none was pulled, or no configured sheep fetches any.")
				}
				return printModels(cmd.OutOrStdout(), list)
			})
		},
	}, &cobra.Command{
		Use:     "rm NAME[:VERSION]…",
		Aliases: []string{"remove"},
		Short:   "Remove models that neither a job nor a sheep needs",
		Args:    atLeastOneModel,
		RunE: func(cmd *cobra.Command, args []string) error {
			return with(cmd, func(ctx context.Context, asked models) error {
				var errs []error
				for _, arg := range args {
					if err := asked.Remove(ctx, job.ParseModel(arg)); err != nil {
						errs = append(errs, fmt.Errorf("remove %s: %w", arg, err))
						continue
					}
					fmt.Fprintf(cmd.OutOrStdout(), "%s is removed\n", job.ParseModel(arg))
				}
				return errors.Join(errs...)
			})
		},
	})
	return c
}

func atLeastOneModel(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return &usageError{errors.New("a model is needed: NAME:VERSION")}
	}
	return nil
}

// openModels connects to the daemon, or opens the models of this machine. The caller
// calls close.
func openModels(ctx context.Context, asks *remote.Target, logTo io.Writer) (_ models, close func(), err error) {
	asked, err := asks.Open()
	if err == nil {
		return remoteModels{asked}, asked.CloseIdle, nil
	}
	if !errors.Is(err, errNoDaemon) {
		return nil, nil, err
	}
	cfg, err := daemon.LoadConfig(asks.File)
	if err != nil {
		return nil, nil, err
	}
	return daemon.OpenModels(ctx, cfg, logTo)
}

func printModels(w io.Writer, list []job.KeptModel) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "NAME\tVERSION\tSIZE\tALONE\tLAST USED\tIN USE\tDIGEST")
	for _, m := range list {
		used, last := "no", "never"
		if m.InUse {
			used = "yes"
		}
		if !m.LastUsed.IsZero() {
			last = m.LastUsed.UTC().Format(time.DateTime)
		}
		digest := m.Digest
		if algorithm, hex, ok := strings.Cut(digest, ":"); ok && len(hex) > 12 {
			digest = algorithm + ":" + hex[:12]
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n",
			m.Model.Name, cmp.Or(m.Model.Version, "-"), remote.BytesText(m.Size), remote.BytesText(m.Own), last, used, digest)
	}
	return table.Flush()
}

// bar shows the progress of a pull: on a terminal as a bar, elsewhere as a line every
// lineEvery.
type bar struct {
	to       io.Writer
	model    string
	terminal bool
	shown    bool
	last     string
	at       time.Time
}

// lineEvery is the time between two lines where there is no terminal.
const lineEvery = 5 * time.Second

func newBar(to io.Writer, model string) *bar {
	b := &bar{to: to, model: model}
	if f, ok := to.(*os.File); ok {
		info, err := f.Stat()
		b.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
	}
	return b
}

func (b *bar) show(p job.PullProgress) {
	if b.terminal {
		fmt.Fprintf(b.to, "\r\x1b[K%s", b.line(p))
		b.shown = true
		return
	}
	// Text without its numbers is the stage.
	stage, _, _ := strings.Cut(p.Text, ":")
	if now := time.Now(); stage != b.last || now.Sub(b.at) >= lineEvery {
		b.last, b.at = stage, now
		fmt.Fprintln(b.to, p.Text)
	}
}

const barWidth = 30

// line is a bar of fixed width, so that it does not jump, within 80 columns for
// names of ordinary length.
func (b *bar) line(p job.PullProgress) string {
	if p.Total <= 0 || p.Done >= p.Total {
		return p.Text
	}
	done := min(max(p.Done, 0), p.Total)
	full := int(float64(done) / float64(p.Total) * barWidth)
	return fmt.Sprintf("%s [%s%s] %3d%% %s of %s %s/s", b.model, strings.Repeat("=", full), strings.Repeat(" ", barWidth-full),
		int(float64(done)/float64(p.Total)*100), remote.BytesText(done), remote.BytesText(p.Total), remote.BytesText(int64(p.Rate)))
}

// end leaves the terminal as it was.
func (b *bar) end() {
	if b.shown {
		fmt.Fprint(b.to, "\r\x1b[K")
	}
}
