package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/client"
)

const (
	// latest is how many jobs a list has where the user does not say.
	latest = 20
	// page is how many jobs are requested at once.
	page = 500
)

func ls(t *Target) *cobra.Command {
	var form Format
	var all, active, oldest, watch, noHeading bool
	var states, labels []string
	var model, sheep, group, prefix, since, before string
	var limit int
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the latest jobs, ended ones too",
		Long: "Lists jobs, the latest first. With --watch it continues and prints a line for each\n" +
			"change of a job that the filters select.",
		Example: "  shepherd ls --state queued --state processing\n  shepherd ls --label batch=42 --since 7d -a -o jsonl",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if active {
				states = append(states, "queued", "processing")
			}
			filter := client.ListJobsParams{}
			for _, s := range states {
				if filter.State == nil {
					filter.State = new([]client.ListJobsParamsState)
				}
				*filter.State = append(*filter.State, client.ListJobsParamsState(s))
			}
			if len(labels) > 0 {
				filter.Label = &labels
			}
			for value, to := range map[*string]**string{&model: &filter.Model, &sheep: &filter.SheepId, &group: &filter.Group, &prefix: &filter.Prefix, &since: &filter.Since, &before: &filter.Before} {
				if *value != "" {
					*to = value
				}
			}
			if !oldest {
				filter.Order = new("newest")
			}
			if all {
				limit = 0
			}
			return t.run(cmd, func(ctx context.Context, s *session) error {
				printer := jobPrinter{to: s.out, form: form, heading: !noHeading}
				if watch {
					return s.watchJobs(ctx, filter, limit, &printer)
				}
				return s.listJobs(ctx, filter, limit, &printer)
			})
		},
	}
	f := cmd.Flags()
	form.Add(f)
	f.BoolVarP(&all, "all", "a", false, "all jobs that the daemon knows, not only the latest")
	f.IntVarP(&limit, "limit", "n", latest, "how many at most; 0 is all")
	f.BoolVar(&active, "active", false, "only jobs that have not ended")
	f.BoolVar(&oldest, "oldest", false, "the oldest first")
	f.Bool("newest", true, "the latest first")
	f.BoolVarP(&watch, "watch", "w", false, "continue with changes")
	f.BoolVar(&noHeading, "no-headers", false, "leave out the names of the columns")
	f.StringSliceVar(&states, "state", nil, "only jobs in this state: queued, processing, done, failed or cancelled; may be repeated")
	f.StringSliceVar(&labels, "label", nil, "only jobs with this label, KEY=VALUE; may be repeated, and all must match")
	f.StringVar(&model, "model", "", "only jobs of this model, NAME:VERSION")
	f.StringVar(&sheep, "sheep", "", "only jobs addressed to this sheep")
	f.StringVar(&group, "group", "", "only jobs of this group")
	f.StringVar(&prefix, "prefix", "", "only jobs whose id begins with this")
	f.StringVar(&since, "since", "", "only jobs submitted since this time (2030-01-01T06:00:00Z), or within this duration (30m, 7d)")
	f.StringVar(&before, "before", "", "only jobs submitted before this time, or longer ago than this duration")
	if err := f.MarkHidden("newest"); err != nil {
		panic(err) // it was defined above
	}
	complete(cmd, "state", func(*Target) ([]string, error) {
		return []string{"queued", "processing", "done", "failed", "cancelled"}, nil
	}, t)
	complete(cmd, "model", models, t)
	complete(cmd, "sheep", sheepNames, t)
	return cmd
}

// eachJob calls use for the jobs that a filter lets through, page after page, limit of
// them at most; 0 for all.
func (s *session) eachJob(ctx context.Context, filter client.ListJobsParams, limit int, use func([]client.Job) error) error {
	for {
		size := page
		if limit > 0 {
			size = min(size, limit)
		}
		filter.Limit = new(strconv.Itoa(size))
		answer, err := s.ListJobsWithResponse(ctx, &filter)
		if err != nil {
			return err
		}
		if answer.JSON200 == nil {
			return errors.New("the daemon's list of jobs cannot be read")
		}
		if err := use(answer.JSON200.Jobs); err != nil {
			return err
		}
		if limit > 0 {
			if limit -= len(answer.JSON200.Jobs); limit <= 0 {
				return nil
			}
		}
		if filter.After = answer.JSON200.Next; filter.After == nil {
			return nil
		}
	}
}

func (s *session) listJobs(ctx context.Context, filter client.ListJobsParams, limit int, printer *jobPrinter) error {
	if err := s.eachJob(ctx, filter, limit, func(list []client.Job) error { return printer.add(list...) }); err != nil {
		return err
	}
	return printer.flush()
}

// watchJobs lists jobs, and then each that changes.
func (s *session) watchJobs(ctx context.Context, filter client.ListJobsParams, limit int, printer *jobPrinter) error {
	// The stream begins before the list, so that no change falls between.
	stream, err := s.FollowEvents(ctx, &client.FollowEventsParams{})
	if err != nil {
		return err
	}
	defer stream.Body.Close()
	if err := s.listJobs(ctx, filter, limit, printer); err != nil {
		return err
	}
	for event, err := range client.Events(stream.Body) {
		if err != nil {
			return &client.UnreachableError{Server: "the daemon", Err: err}
		}
		if event.Event == "" {
			continue
		}
		one := filter
		one.Prefix, one.Order = &event.JobId, new("oldest")
		err := s.eachJob(ctx, one, 0, func(list []client.Job) error {
			for _, j := range list {
				if j.JobId == event.JobId && strings.HasPrefix(j.JobId, deref(filter.Prefix)) {
					return printer.add(j)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		if err := printer.flush(); err != nil {
			return err
		}
	}
	return &client.UnreachableError{Server: "the daemon", Err: io.ErrUnexpectedEOF}
}

// jobPrinter prints jobs in one of the forms.
type jobPrinter struct {
	to      io.Writer
	form    Format
	heading bool
	begun   bool
	rows    table
	narrow  narrow
	list    []client.Job // of JSON
}

func (p *jobPrinter) add(list ...client.Job) error {
	for _, j := range list {
		var err error
		switch p.form {
		case FormName:
			_, err = fmt.Fprintln(p.to, clean(j.JobId))
		case FormLines:
			err = PrintJSON(p.to, j, false)
		case FormJSON:
			p.list = append(p.list, j)
		default:
			p.rows = append(p.rows, jobRow(j, p.form == FormWide))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// flush prints what needs all rows. The heading is there once.
func (p *jobPrinter) flush() error {
	switch p.form {
	case FormName, FormLines:
		return nil
	case FormJSON:
		if p.list == nil {
			p.list = []client.Job{} // an array in any case
		}
		err := PrintJSON(p.to, p.list, true)
		p.list = nil
		return err
	}
	rows := p.rows
	if !p.begun {
		p.narrow = narrowed(p.to, p.form, 4, 5, 3) // without PRIORITY, SUBMITTED and SHEEP
	}
	if p.heading && !p.begun {
		rows = slices.Insert(rows, 0, jobHeading(p.form == FormWide))
	}
	p.begun, p.rows = true, nil
	return p.narrow.fit(rows).print(p.to)
}

func jobHeading(wide bool) []string {
	row := []string{"JOB", "STATE", "MODEL", "SHEEP", "PRIORITY", "SUBMITTED"}
	if wide {
		row = append(row, "STARTED", "ENDED", "RUN", "ATTEMPT", "LABELS")
	}
	return append(row, "DETAIL")
}

// detailCells is how wide the last column of a table is at most, unless it is asked to
// be wide.
const detailCells = 100

func jobRow(j client.Job, wide bool) []string {
	row := []string{
		j.JobId, string(j.Status), modelName(j.Model), cmp.Or(sheepOf(j), "-"),
		strconv.Itoa(j.Priority), shortTime(j.EnqueuedAt),
	}
	if wide {
		var labels []string
		for _, key := range slices.Sorted(maps.Keys(j.Labels)) {
			labels = append(labels, key+"="+j.Labels[key])
		}
		row = append(row, shortTime(j.ProcessingStartedAt), shortTime(j.FinishedAt), strconv.Itoa(j.Run), strconv.Itoa(j.Attempt), cmp.Or(strings.Join(labels, ","), "-"))
	}
	detail := cmp.Or(about(j), "-")
	if !wide {
		detail = cells.Truncate(detail, detailCells, "…")
	}
	return append(row, detail)
}

func modelName(m client.Model) string {
	return strings.TrimSuffix(deref(m.Name)+":"+deref(m.Version), ":")
}

// shortTime is a time of the API's to the second, in UTC.
func shortTime(t *string) string {
	if t == nil {
		return "-"
	}
	second, _, _ := strings.Cut(*t, ".")
	return strings.Replace(second, "T", " ", 1)
}

// about is the first line of a job's description.
func about(j client.Job) string {
	said := deref(j.Detail)
	switch {
	case j.ErrorDetails != nil:
		said = j.ErrorDetails.Message
	case said == "" && j.Cancelling:
		said = "is being cancelled"
	case said == "" && deref(j.Position) > 0:
		said = fmt.Sprintf("number %d in the queue", *j.Position)
	}
	line, _, _ := strings.Cut(said, "\n")
	return line
}
