package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/api"
)

// pageOfJobs is how many jobs are requested at once.
const pageOfJobs = 500

func jobsCommand() *cobra.Command {
	var asks target
	c := &cobra.Command{
		Use:   "jobs",
		Short: "List jobs, look at them and their logs, cancel them and run them again",
		Long: "Asks a daemon for its jobs: the one at the address given with --api, the one\n" +
			"that is up with the configuration given with -c, or the one that is up as a\n" +
			"service.",
	}
	asks.add(c.PersistentFlags())

	// with runs do with the daemon that the flags name.
	with := func(cmd *cobra.Command, do func(context.Context, *client) error) error {
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		remote, err := asks.find()
		if err != nil {
			return err
		}
		defer remote.close()
		return do(ctx, remote)
	}

	var all, newest bool
	var states []string
	var model, sheep string
	ls := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the jobs that have not ended, or others",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			query := url.Values{"limit": {strconv.Itoa(pageOfJobs)}}
			if !all && len(states) == 0 {
				states = []string{"queued", "processing"}
			}
			for _, s := range states {
				query.Add("state", s)
			}
			if model != "" {
				query.Set("model", model)
			}
			if sheep != "" {
				query.Set("sheep_id", sheep)
			}
			if newest {
				query.Set("order", "newest")
			}
			return with(cmd, func(ctx context.Context, remote *client) error {
				return listJobs(ctx, remote, query, cmd.OutOrStdout())
			})
		},
	}
	f := ls.Flags()
	f.BoolVarP(&all, "all", "a", false, "those that have ended, too")
	f.BoolVar(&newest, "newest", false, "the latest submitted first")
	f.StringSliceVar(&states, "state", nil, "only those in this state: queued, processing, done, failed or cancelled; may be given more than once")
	f.StringVar(&model, "model", "", "only those of this model, NAME:VERSION")
	f.StringVar(&sheep, "sheep", "", "only those addressed to this sheep")

	var follow bool
	var tail string
	logs := &cobra.Command{
		Use:   "logs JOB",
		Short: "Show what runners wrote while they had a job",
		Long: "Shows what runners wrote while they had a job, in its last run, as far as that is\n" +
			"kept. With --follow it goes on until the job has ended.",
		Args: oneJob,
		RunE: func(cmd *cobra.Command, args []string) error {
			query := url.Values{"tail": {tail}, "follow": {strconv.FormatBool(follow)}}
			return with(cmd, func(ctx context.Context, remote *client) error {
				response, err := remote.call(ctx, http.MethodGet, "/jobs/"+url.PathEscape(args[0])+"/logs?"+query.Encode(), nil)
				if err != nil {
					return err
				}
				defer response.Body.Close()
				if _, err := io.Copy(cmd.OutOrStdout(), response.Body); err != nil && ctx.Err() == nil {
					return fmt.Errorf("read the log of job %s: %w", args[0], err)
				}
				return nil
			})
		},
	}
	logs.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what is written later, until the job has ended")
	logs.Flags().StringVar(&tail, "tail", "all", "how many of the last lines of the last attempt to begin with")

	c.AddCommand(ls, logs, &cobra.Command{
		Use:   "show JOB",
		Short: "Show all there is to know of a job, its attempts included, as JSON",
		Args:  oneJob,
		RunE: func(cmd *cobra.Command, args []string) error {
			return with(cmd, func(ctx context.Context, remote *client) error {
				var j api.Job
				if err := remote.ask(ctx, http.MethodGet, "/jobs/"+url.PathEscape(args[0]), nil, &j); err != nil {
					return err
				}
				out := json.NewEncoder(cmd.OutOrStdout())
				out.SetIndent("", "  ")
				out.SetEscapeHTML(false)
				return out.Encode(j)
			})
		},
	}, &cobra.Command{
		Use:   "explain JOB",
		Short: "Say why a job waits or has failed, and what to do",
		Args:  oneJob,
		RunE: func(cmd *cobra.Command, args []string) error {
			return with(cmd, func(ctx context.Context, remote *client) error {
				var e api.Explanation
				if err := remote.ask(ctx, http.MethodGet, "/jobs/"+url.PathEscape(args[0])+"/explain", nil, &e); err != nil {
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), e.Text)
				return nil
			})
		},
	}, &cobra.Command{
		Use:   "retry JOB",
		Short: "Run a job that has ended again",
		Args:  oneJob,
		RunE: func(cmd *cobra.Command, args []string) error {
			return with(cmd, func(ctx context.Context, remote *client) error {
				if err := remote.ask(ctx, http.MethodPost, "/jobs/"+url.PathEscape(args[0])+"/retry", nil, nil); err != nil {
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), args[0]+" is queued")
				return nil
			})
		},
	}, &cobra.Command{
		Use:   "cancel JOB…",
		Short: "Ask for the end of jobs that have not ended",
		Args:  oneJob,
		RunE: func(cmd *cobra.Command, args []string) error {
			return with(cmd, func(ctx context.Context, remote *client) error {
				var errs []error
				for _, id := range args {
					said, err := cancelJob(ctx, remote, id)
					if err != nil {
						errs = append(errs, fmt.Errorf("cancel job %s: %w", id, err))
						continue
					}
					fmt.Fprintln(cmd.OutOrStdout(), said)
				}
				return errors.Join(errs...)
			})
		},
	})
	return c
}

// cancelJob requests that a job is cancelled and returns its state at that moment.
func cancelJob(ctx context.Context, remote *client, id string) (string, error) {
	path := "/jobs/" + url.PathEscape(id)
	if err := remote.ask(ctx, http.MethodPost, path+"/cancel", nil, nil); err != nil {
		return "", err
	}
	var j api.Job
	switch err := remote.ask(ctx, http.MethodGet, path, nil, &j); {
	case err != nil: // who may cancel jobs may not always look at them
		return id + " is being cancelled", nil
	case j.Cancelling:
		return fmt.Sprintf("%s is being cancelled: sheep %s stops it", id, text(j.Sheep)), nil
	}
	return fmt.Sprintf("%s is %s", id, j.Status), nil
}

func oneJob(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return &usageError{errors.New("the id of a job is needed")}
	}
	if len(args) > 1 && cmd.Name() != "cancel" {
		return &usageError{errors.New("one job at a time is shown")}
	}
	return nil
}

// listJobs prints page after page, as they come.
func listJobs(ctx context.Context, remote *client, query url.Values, to io.Writer) error {
	table := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "JOB\tSTATE\tMODEL\tSHEEP\tPRIORITY\tSUBMITTED\tDETAIL")
	for {
		var page api.JobList
		if err := remote.ask(ctx, http.MethodGet, "/jobs?"+query.Encode(), nil, &page); err != nil {
			return err
		}
		for _, j := range page.Jobs {
			name := strings.TrimSuffix(text(j.Model.Name)+":"+text(j.Model.Version), ":")
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", j.JobId, j.Status, name,
				cmp.Or(text(j.Sheep), text(j.SheepId), "-"), j.Priority, submitted(j), cmp.Or(about(j), "-"))
		}
		if page.Next == nil {
			return table.Flush()
		}
		query.Set("after", *page.Next)
	}
}

// submitted is when a job was submitted, to the second, in UTC.
func submitted(j api.Job) string {
	if j.EnqueuedAt == nil {
		return "-"
	}
	second, _, _ := strings.Cut(*j.EnqueuedAt, ".")
	return strings.Replace(second, "T", " ", 1)
}

// about is the first line of a job's description.
func about(j api.Job) string {
	said := text(j.Detail)
	if j.ErrorDetails != nil {
		said = j.ErrorDetails.Message
	}
	line, _, _ := strings.Cut(said, "\n")
	return line
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
