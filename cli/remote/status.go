package remote

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/client"
)

func status(t *Target) *cobra.Command {
	var form Format
	var watch bool
	cmd := &cobra.Command{
		Use:   "status JOB",
		Short: "Show the state of a job",
		Args:  oneJob,
		RunE: func(cmd *cobra.Command, args []string) error {
			return t.run(cmd, func(ctx context.Context, s *session) error {
				if watch {
					return s.watchStatus(ctx, args[0], form)
				}
				j, err := s.job(ctx, args[0])
				if err != nil {
					return err
				}
				return printStatus(s.out, j, form)
			})
		},
		ValidArgsFunction: jobArgs(t, 1),
	}
	form.Add(cmd.Flags())
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show it again after each change, until the job has ended")
	return cmd
}

// watchStatus shows how a job is doing, and again whenever something happens to it that
// changes that, until it has ended.
func (s *session) watchStatus(ctx context.Context, id string, form Format) error {
	if err := reach(ctx, s.ClientWithResponses); err != nil {
		return err
	}
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
