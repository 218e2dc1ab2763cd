package remote

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/client"
)

func events(t *Target) *cobra.Command {
	var form Format
	var follow bool
	var after string
	var newest int
	cmd := &cobra.Command{
		Use:   "events [JOB]",
		Short: "Show the events of a job, or of all jobs",
		Long: "Prints the events of a job, or those of all jobs that the daemon keeps. With --follow\n" +
			"it continues with new ones, beginning with the job's first event or, for all jobs,\n" +
			"with the next one; if the daemon is restarted it reconnects and misses nothing.\n" +
			"--after begins after an event whose id an earlier command has printed, --newest with\n" +
			"the last events of all jobs.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id := ""
			if len(args) > 0 {
				id = args[0]
			}
			begin := client.FollowEventsParams{}
			switch given := cmd.Flags().Changed("newest"); {
			case given && id != "":
				return usage("--newest is for the events of all jobs; those of a job are few")
			case given && after != "":
				return usage("--newest and --after both say where to begin; give one")
			case given && newest < 0:
				return usage("--newest must be 0 or more")
			case given:
				begin.Newest = new(strconv.Itoa(newest))
			case after != "":
				begin.After = &after
			case !follow:
				begin.After = new("oldest")
			}
			return t.run(cmd, func(ctx context.Context, s *session) error {
				printer := eventPrinter{to: s.out, form: form}
				from := after
				if follow {
					if err := reach(ctx, s.ClientWithResponses); err != nil {
						return err
					}
				}
				if !follow || begin.Newest != nil {
					last, err := s.keptEvents(ctx, id, begin, &printer)
					if err != nil || !follow {
						return err
					}
					from = last
				}
				for event, err := range client.Follow(ctx, s.ClientWithResponses, id, from) {
					if err == nil {
						err = printer.print(event)
					}
					if err != nil {
						return err
					}
				}
				return nil
			})
		},
		ValidArgsFunction: jobArgs(t, 1),
	}
	form.Add(cmd.Flags())
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "continue with new events")
	cmd.Flags().StringVar(&after, "after", "", "begin after the event with this id; oldest is the oldest that is kept")
	cmd.Flags().IntVar(&newest, "newest", 0, "begin with this many of the newest events of all jobs, at most 256")
	return cmd
}

// keptEvents prints the events that there are from begin on, and returns the id of the last.
func (s *session) keptEvents(ctx context.Context, id string, begin client.FollowEventsParams, printer *eventPrinter) (last string, err error) {
	begin.Follow = new("false")
	var response *http.Response
	if id == "" {
		response, err = s.FollowEvents(ctx, &begin)
	} else {
		response, err = s.FollowJob(ctx, id, &client.FollowJobParams{After: begin.After, Follow: begin.Follow})
	}
	if err == nil {
		err = client.CheckStream(response)
	}
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	for event, err := range client.Events(response.Body) {
		if err == nil && event.Event != "" {
			err = printer.print(event)
		}
		if err != nil {
			return "", err
		}
		last = cmp.Or(deref(event.Id), last)
	}
	return last, nil
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
