package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/client"
	"github.com/iterait/shepherd/job"
)

const (
	// latest is how many jobs a list has where the user does not say.
	latest = 20
	// page is how many jobs are requested at once.
	page = 500
)

// withTarget adds the flags of a target of its own to a command.
func withTarget(c Config, build func(*Target) *cobra.Command) *cobra.Command {
	t := NewTarget(c)
	cmd := build(t)
	t.Add(cmd.Flags())
	return cmd
}

func lsCommand(c Config) *cobra.Command      { return withTarget(c, ls) }
func statusCommand(c Config) *cobra.Command  { return withTarget(c, status) }
func waitCommand(c Config) *cobra.Command    { return withTarget(c, wait) }
func logsCommand(c Config) *cobra.Command    { return withTarget(c, logs) }
func cancelCommand(c Config) *cobra.Command  { return withTarget(c, cancel) }
func retryCommand(c Config) *cobra.Command   { return withTarget(c, retry) }
func explainCommand(c Config) *cobra.Command { return withTarget(c, explain) }
func eventsCommand(c Config) *cobra.Command  { return withTarget(c, events) }
func resultCommand(c Config) *cobra.Command  { return withTarget(c, result) }
func submitCommand(c Config) *cobra.Command  { return withTarget(c, submit) }

// jobsCommand has those commands that were only here before.
func jobsCommand(c Config) *cobra.Command {
	t := NewTarget(c)
	cmd := &cobra.Command{
		Use:   "jobs",
		Short: "List jobs, show them and their logs, cancel them and run them again",
		Long: "The commands that there are for jobs, under the names that they had first: `jobs ls`\n" +
			"is `ls`, and so on.",
	}
	t.Add(cmd.PersistentFlags())
	show := status(t)
	show.Use, show.Short, show.Hidden = "show JOB", "Show all there is to know of a job, as JSON", false
	if err := show.Flags().Set("output", FormJSON); err != nil {
		panic(err) // it is one of the forms
	}
	show.Flags().Lookup("output").DefValue = FormJSON
	cmd.AddCommand(ls(t), show, logs(t), explain(t), retry(t), cancel(t))
	return cmd
}

// jobs checks that there is at least one id.
func jobs(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usage("the id of a job is needed; `shepherd ls` lists them")
	}
	return nil
}

// oneJob checks that there is one id.
func oneJob(_ *cobra.Command, args []string) error {
	switch len(args) {
	case 0:
		return usage("the id of a job is needed; `shepherd ls` lists them")
	case 1:
		return nil
	}
	return usage("one job at a time")
}

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
		Long: "Lists jobs, the latest first. With --watch it goes on: each change of a job that the\n" +
			"filters let through is a line of its own.",
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
				return s.interruptible(ctx, func(ctx context.Context) error {
					if watch {
						return s.watchJobs(ctx, filter, limit, &printer)
					}
					return s.listJobs(ctx, filter, limit, &printer)
				})
			})
		},
	}
	f := cmd.Flags()
	form.Add(f)
	f.BoolVarP(&all, "all", "a", false, "all that the daemon knows of, not the latest alone")
	f.IntVarP(&limit, "limit", "n", latest, "how many at most; 0 for all")
	f.BoolVar(&active, "active", false, "only those that have not ended")
	f.BoolVar(&oldest, "oldest", false, "in the order they were submitted")
	f.Bool("newest", true, "the latest first")
	f.BoolVarP(&watch, "watch", "w", false, "go on with what changes")
	f.BoolVar(&noHeading, "no-heading", false, "no line with the names of the columns")
	f.StringSliceVar(&states, "state", nil, "only those in this state: queued, processing, done, failed or cancelled; may be given more than once")
	f.StringSliceVar(&labels, "label", nil, "only those with this label, KEY=VALUE; may be given more than once")
	f.StringVar(&model, "model", "", "only those of this model, NAME:VERSION")
	f.StringVar(&sheep, "sheep", "", "only those addressed to this sheep")
	f.StringVar(&group, "group", "", "only those of this group")
	f.StringVar(&prefix, "prefix", "", "only those whose id begins so")
	f.StringVar(&since, "since", "", "only those submitted since this time, or this long ago at most (30m, 7d)")
	f.StringVar(&before, "before", "", "only those submitted before this time, or longer ago than this")
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
	if p.heading && !p.begun {
		rows = slices.Insert(rows, 0, jobHeading(p.form == FormWide))
	}
	p.begun, p.rows = true, nil
	return rows.print(p.to)
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

func status(t *Target) *cobra.Command {
	var form Format
	var watch bool
	cmd := &cobra.Command{
		Use:   "status JOB",
		Short: "Show the state of a job",
		Args:  oneJob,
		RunE: func(cmd *cobra.Command, args []string) error {
			return t.run(cmd, func(ctx context.Context, s *session) error {
				return s.interruptible(ctx, func(ctx context.Context) error {
					if watch {
						return s.watchStatus(ctx, args[0], form)
					}
					j, err := s.job(ctx, args[0])
					if err != nil {
						return err
					}
					return printStatus(s.out, j, form)
				})
			})
		},
		ValidArgsFunction: jobArgs(t, 1),
	}
	form.Add(cmd.Flags())
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show it again whenever something happens to the job, until it has ended")
	return cmd
}

// watchStatus shows how a job is doing, and again whenever something happens to it that
// changes that, until it has ended.
func (s *session) watchStatus(ctx context.Context, id string, form Format) error {
	last := ""
	for _, err := range client.Follow(ctx, s.ClientWithResponses, id, "") {
		if err != nil {
			return err
		}
		j, err := s.job(ctx, id)
		if err != nil {
			return err
		}
		var text strings.Builder
		if err := printStatus(&text, j, form); err != nil {
			return err
		}
		if text.String() != last {
			if last != "" && (form == FormTable || form == FormWide) {
				fmt.Fprintln(s.out)
			}
			if _, err := io.WriteString(s.out, text.String()); err != nil {
				return err
			}
		}
		if last = text.String(); j.FinishedAt != nil {
			return nil
		}
	}
	return nil
}

// job returns a job in detail.
func (s *session) job(ctx context.Context, id string) (client.Job, error) {
	answer, err := s.GetJobWithResponse(ctx, id, &client.GetJobParams{})
	if err != nil {
		return client.Job{}, err
	}
	if answer.JSON200 == nil {
		return client.Job{}, fmt.Errorf("the daemon's answer about job %s cannot be read", id)
	}
	return *answer.JSON200, nil
}

func printStatus(to io.Writer, j client.Job, form Format) error {
	switch form {
	case FormJSON, FormLines:
		return PrintJSON(to, j, form == FormJSON)
	case FormName:
		_, err := fmt.Fprintln(to, clean(string(j.Status)))
		return err
	}
	rows := table{
		{"Job:", j.JobId},
		{"State:", string(j.Status)},
		{"Model:", modelName(j.Model)},
	}
	add := func(name, value string) {
		if value != "" && value != "-" {
			rows = append(rows, []string{name, value})
		}
	}
	add("Sheep:", sheepOf(j))
	add("Submitted:", shortTime(j.EnqueuedAt))
	add("Started:", shortTime(j.ProcessingStartedAt))
	add("Ended:", shortTime(j.FinishedAt))
	add("To start:", expected(j.ExpectedStart, time.Now()))
	add("To end:", expected(j.ExpectedEnd, time.Now()))
	add("Detail:", about(j))
	for _, w := range j.Warnings {
		add("Warning:", w)
	}
	for _, key := range slices.Sorted(maps.Keys(j.Labels)) {
		add("Label:", key+"="+j.Labels[key])
	}
	if err := rows.print(to); err != nil || form != FormWide {
		return err
	}
	rows = table{{"AT", "EVENT", "ATTEMPT", "SHEEP", "REASON"}}
	for _, e := range deref(j.Timeline) {
		attempt := "-"
		if e.Attempt != nil {
			attempt = strconv.Itoa(*e.Attempt)
		}
		rows = append(rows, []string{shortTime(e.At), string(e.Event), attempt, cmp.Or(deref(e.Sheep), "-"), cmp.Or(deref(e.Reason), "-")})
	}
	fmt.Fprintln(to)
	return rows.print(to)
}

// expected is an estimate in words; empty where there is none.
func expected(e *client.Estimate, now time.Time) string {
	if e == nil {
		return ""
	}
	in := func(text *string) time.Duration {
		at, err := time.Parse("2006-01-02T15:04:05.000000", deref(text))
		if err != nil {
			return 0
		}
		return max(at.Sub(now), 0).Round(time.Second)
	}
	earliest, latest := in(e.Earliest), in(e.Latest)
	if latest == 0 {
		return "about now"
	}
	return fmt.Sprintf("in about %s (%s to %s)", in(e.Likely), earliest, latest)
}

// sheepOf is the sheep that has the job, or had it last, or else the one that it is
// addressed to; empty where there is none.
func sheepOf(j client.Job) string {
	return cmp.Or(deref(j.Sheep), deref(j.LastSheep), deref(j.SheepId))
}

func wait(t *Target) *cobra.Command {
	var limit time.Duration
	var quiet bool
	var form Format
	cmd := &cobra.Command{
		Use:   "wait JOB…",
		Short: "Wait until jobs have ended",
		Long: "Waits until all of the jobs have ended and says how. The exit code is 0 where all are\n" +
			"done, 3 where one has failed, 4 where one was cancelled, and 9 where --timeout passed\n" +
			"first. A daemon that is restarted meanwhile is waited for.",
		Args: jobs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return t.run(cmd, func(ctx context.Context, s *session) error {
				if limit > 0 {
					var stop context.CancelFunc
					ctx, stop = context.WithTimeoutCause(ctx, limit, errWaited)
					defer stop()
				}
				printer := jobPrinter{to: s.out, form: form, heading: true}
				worst := error(nil)
				err := s.interruptible(ctx, func(ctx context.Context) error {
					for _, id := range args {
						shown := newDisplay(s.err, quiet || len(args) > 1)
						j, err := s.await(ctx, id, shown.job)
						shown.end()
						if err != nil {
							return err
						}
						worst = cmp.Or(worst, outcome(j))
						if err := printer.add(j); err != nil {
							return err
						}
					}
					return nil
				})
				err = errors.Join(err, printer.flush())
				if err == nil && worst != nil {
					s.explainEnds(ctx, worst)
					return worst
				}
				return err
			})
		},
		ValidArgsFunction: jobArgs(t, 0),
	}
	form.Add(cmd.Flags())
	cmd.Flags().DurationVar(&limit, "timeout", 0, "how long to wait at most; 0 for as long as it takes")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "do not show what happens meanwhile")
	return cmd
}

// errWaited is the cause of a context whose time, as the user has set it, is over.
var errWaited = errors.New("the job has not ended")

// ended is a job that ended otherwise than it should.
type ended struct {
	id    string
	state job.State
	said  string // why; empty once that was shown
}

func (e *ended) Error() string {
	if e.state == job.Cancelled {
		return fmt.Sprintf("job %s was cancelled", e.id)
	}
	if e.said == "" {
		return fmt.Sprintf("job %s has failed", e.id)
	}
	return fmt.Sprintf("job %s has failed: %s", e.id, cleanLines(e.said))
}

// outcome is nil for a job that is done, and else an error with the exit code.
func outcome(j client.Job) error {
	switch j.Status {
	case job.Done:
		return nil
	case job.Cancelled:
		return &Error{Code: ExitCancelled, Err: &ended{j.JobId, j.Status, ""}}
	}
	said := "it does not say why"
	if j.ErrorDetails != nil {
		said = j.ErrorDetails.Message
	}
	return &Error{Code: ExitJobFailed, Err: &ended{j.JobId, j.Status, said}}
}

// explainEnds shows why a job has failed, and what to do.
func (s *session) explainEnds(ctx context.Context, err error) {
	var e *ended
	if !errors.As(err, &e) || e.state != job.Failed {
		return
	}
	if answer, err := s.ExplainJobWithResponse(ctx, e.id); err == nil && answer.JSON200 != nil {
		fmt.Fprintln(s.err, cleanLines(answer.JSON200.Text))
		e.said = ""
	}
}

const (
	// waitEach is how long one request waits for a change.
	waitEach = "wait=20"
	// betweenLooks keeps a job that changes all the time from being asked for all the
	// time.
	betweenLooks = 200 * time.Millisecond
	// patience is how long a daemon that goes away while a job is awaited may take to
	// come back.
	patience = 2 * time.Minute
)

// await waits until a job has ended, and calls show for each change of it.
func (s *session) await(ctx context.Context, id string, show func(client.Job)) (client.Job, error) {
	tag, params := "", &client.GetJobParams{}
	var last client.Job
	var away time.Time // since when the daemon does not answer
	for {
		var editors []client.RequestEditorFn
		if tag != "" {
			editors = append(editors, client.Header("If-None-Match", tag))
		}
		answer, err := s.GetJobWithResponse(ctx, id, params, editors...)
		pause := betweenLooks
		switch {
		case ctx.Err() != nil:
			if errors.Is(context.Cause(ctx), errWaited) {
				return last, &Error{Code: ExitTimeout, Err: fmt.Errorf("job %s: %w", id, errWaited)}
			}
			return last, ctx.Err()
		case err == nil:
			away = time.Time{}
			if answer.JSON200 != nil {
				last, tag = *answer.JSON200, answer.HTTPResponse.Header.Get("ETag")
				show(last)
				if last.Status.Final() {
					return last, nil
				}
			}
			params.Prefer = new(waitEach)
		case tag == "" || !comesBack(err):
			return last, err
		default:
			if away.IsZero() {
				away = time.Now()
			}
			if time.Since(away) > patience {
				return last, err
			}
			pause = time.Second
			var status *client.StatusError
			if errors.As(err, &status) {
				pause = max(pause, status.RetryAfter)
			}
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// comesBack reports whether an error may be over soon, as that of a daemon which is
// restarted.
func comesBack(err error) bool {
	var unreachable *client.UnreachableError
	return errors.As(err, &unreachable) || client.Is(err, http.StatusServiceUnavailable) || client.Is(err, http.StatusTooManyRequests) ||
		client.Is(err, http.StatusBadGateway)
}

func logs(t *Target) *cobra.Command {
	var follow bool
	var tail string
	cmd := &cobra.Command{
		Use:   "logs JOB",
		Short: "Show the log of a job",
		Long: "Shows what runners wrote while they had a job, in its last run, as far as that is\n" +
			"kept. With --follow it goes on until the job has ended.",
		Args: oneJob,
		RunE: func(cmd *cobra.Command, args []string) error {
			return t.run(cmd, func(ctx context.Context, s *session) error {
				return s.interruptible(ctx, func(ctx context.Context) error {
					response, err := s.GetJobLogs(ctx, args[0], &client.GetJobLogsParams{Tail: &tail, Follow: new(strconv.FormatBool(follow))})
					if err != nil {
						return err
					}
					defer response.Body.Close()
					if _, err := io.Copy(s.out, response.Body); err != nil && ctx.Err() == nil {
						return fmt.Errorf("read the log of job %s: %w", args[0], err)
					}
					return nil
				})
			})
		},
		ValidArgsFunction: jobArgs(t, 1),
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what is written later, until the job has ended")
	cmd.Flags().StringVar(&tail, "tail", "all", "how many of the last lines of the last attempt to begin with")
	return cmd
}

func explain(t *Target) *cobra.Command {
	var form Format
	cmd := &cobra.Command{
		Use:   "explain JOB",
		Short: "Say why a job waits or has failed, and what to do",
		Args:  oneJob,
		RunE: func(cmd *cobra.Command, args []string) error {
			return t.run(cmd, func(ctx context.Context, s *session) error {
				answer, err := s.ExplainJobWithResponse(ctx, args[0])
				if err != nil {
					return err
				}
				if answer.JSON200 == nil {
					return fmt.Errorf("the daemon's explanation of job %s cannot be read", args[0])
				}
				switch form {
				case FormJSON, FormLines:
					return PrintJSON(s.out, answer.JSON200, form == FormJSON)
				}
				_, err = fmt.Fprintln(s.out, cleanLines(answer.JSON200.Text))
				return err
			})
		},
		ValidArgsFunction: jobArgs(t, 1),
	}
	form.Add(cmd.Flags())
	return cmd
}

// eachOf does something with each of the jobs, with all of them whatever fails, and
// returns the first error with those of the others.
func eachOf(ids []string, verb string, do func(id string) error) error {
	var errs []error
	for _, id := range ids {
		if err := do(id); err != nil {
			errs = append(errs, fmt.Errorf("%s job %s: %w", verb, id, err))
		}
	}
	return errors.Join(errs...)
}

// jobsOrGroup checks that there are ids, or the name of a group.
func jobsOrGroup(cmd *cobra.Command, args []string) error {
	switch given := cmd.Flags().Changed("group"); {
	case given && len(args) > 0:
		return usage("--group is for all its jobs; name jobs or a group")
	case given:
		return nil
	}
	return jobs(cmd, args)
}

// tellGroup says how a group stands.
func (s *session) tellGroup(ctx context.Context, name string) error {
	answer, err := s.GetGroupWithResponse(ctx, name)
	if err != nil {
		return err
	}
	if answer.JSON200 == nil {
		return fmt.Errorf("the daemon's answer about group %s cannot be read", name)
	}
	c := answer.JSON200.Counts
	_, err = fmt.Fprintf(s.out, "%s: %d queued, %d processing, %d done, %d failed, %d cancelled\n", name, c.Queued, c.Processing, c.Done, c.Failed, c.Cancelled)
	return err
}

func retry(t *Target) *cobra.Command {
	var group string
	cmd := &cobra.Command{
		Use:   "retry JOB…",
		Short: "Run jobs that have ended again",
		Args:  jobsOrGroup,
		RunE: func(cmd *cobra.Command, args []string) error {
			return t.run(cmd, func(ctx context.Context, s *session) error {
				if group != "" {
					if _, err := s.RetryGroupWithResponse(ctx, group); err != nil {
						return err
					}
					return s.tellGroup(ctx, group)
				}
				return eachOf(args, "retry", func(id string) error {
					if _, err := s.RetryJobWithResponse(ctx, id); err != nil {
						return err
					}
					_, err := fmt.Fprintln(s.out, id+" is queued")
					return err
				})
			})
		},
		ValidArgsFunction: jobArgs(t, 0),
	}
	cmd.Flags().StringVar(&group, "group", "", "the jobs of this group that failed or were cancelled")
	return cmd
}

func cancel(t *Target) *cobra.Command {
	var group string
	cmd := &cobra.Command{
		Use:   "cancel JOB…",
		Short: "Cancel jobs",
		Args:  jobsOrGroup,
		RunE: func(cmd *cobra.Command, args []string) error {
			return t.run(cmd, func(ctx context.Context, s *session) error {
				if group != "" {
					if _, err := s.CancelGroupWithResponse(ctx, group); err != nil {
						return err
					}
					return s.tellGroup(ctx, group)
				}
				return eachOf(args, "cancel", func(id string) error {
					said, err := s.cancelJob(ctx, id)
					if err != nil {
						return err
					}
					_, err = fmt.Fprintln(s.out, said)
					return err
				})
			})
		},
		ValidArgsFunction: jobArgs(t, 0),
	}
	cmd.Flags().StringVar(&group, "group", "", "the jobs of this group that have not ended")
	return cmd
}

// cancelJob requests that a job is cancelled and says in what state that leaves it.
func (s *session) cancelJob(ctx context.Context, id string) (string, error) {
	if _, err := s.CancelJobWithResponse(ctx, id); err != nil {
		return "", err
	}
	switch j, err := s.job(ctx, id); {
	case err != nil: // who may cancel jobs may not always look at them
		return id + " is being cancelled", nil
	case j.Cancelling:
		return fmt.Sprintf("%s is being cancelled: sheep %s stops it", id, deref(j.Sheep)), nil
	default:
		return fmt.Sprintf("%s is %s", id, j.Status), nil
	}
}

func events(t *Target) *cobra.Command {
	var form Format
	var follow bool
	var after string
	cmd := &cobra.Command{
		Use:   "events [JOB]",
		Short: "Show the events of a job, or of all jobs",
		Long: "Shows what has happened to a job, and to all jobs those events that the daemon\n" +
			"keeps; with --follow it goes on, from a job's first event or, for all jobs, from\n" +
			"now on. It comes back to a daemon that is restarted and misses nothing; --after\n" +
			"goes on after an event whose id an earlier command has shown.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id := ""
			if len(args) > 0 {
				id = args[0]
			}
			return t.run(cmd, func(ctx context.Context, s *session) error {
				printer := eventPrinter{to: s.out, form: form}
				return s.interruptible(ctx, func(ctx context.Context) error {
					if !follow {
						return s.keptEvents(ctx, id, after, &printer)
					}
					for event, err := range client.Follow(ctx, s.ClientWithResponses, id, after) {
						if err == nil {
							err = printer.print(event)
						}
						if err != nil {
							return err
						}
					}
					return nil
				})
			})
		},
		ValidArgsFunction: jobArgs(t, 1),
	}
	form.Add(cmd.Flags())
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what happens later")
	cmd.Flags().StringVar(&after, "after", "", "only what came after the event with this id; oldest for all that are kept")
	return cmd
}

// keptEvents prints the events that there are.
func (s *session) keptEvents(ctx context.Context, id, after string, printer *eventPrinter) error {
	if after == "" {
		after = "oldest"
	}
	var response *http.Response
	var err error
	if id == "" {
		response, err = s.FollowEvents(ctx, &client.FollowEventsParams{After: &after, Follow: new("false")})
	} else {
		response, err = s.FollowJob(ctx, id, &client.FollowJobParams{After: &after, Follow: new("false")})
	}
	if err != nil {
		return err
	}
	defer response.Body.Close()
	for event, err := range client.Events(response.Body) {
		if err == nil && event.Event != "" {
			err = printer.print(event)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// eventPrinter prints events as they come.
type eventPrinter struct {
	to   io.Writer
	form Format
}

func (p *eventPrinter) print(e client.Event) error {
	var err error
	switch p.form {
	case FormJSON, FormLines:
		err = PrintJSON(p.to, e, false)
	case FormName:
		_, err = fmt.Fprintln(p.to, clean(e.JobId))
	default:
		said := cmp.Or(deref(e.Reason), string(e.Status))
		if e.Progress != nil {
			said = strings.TrimSuffix(fmt.Sprintf("%.0f %%: %s", e.Progress.Done*100, deref(e.Progress.Text)), ": ")
		}
		line := fmt.Sprintf("%s  %-9s %s  %s", shortTime(e.At), e.Event, e.JobId, said)
		if sheep := deref(e.Sheep); sheep != "" {
			line += "  (" + sheep + ")"
		}
		if p.form == FormWide {
			line += "  " + modelName(e.Model) + "  id " + deref(e.Id)
		}
		_, err = fmt.Fprintln(p.to, clean(line))
	}
	return err
}
