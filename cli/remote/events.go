package remote

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/client"
)

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
	if err == nil {
		err = client.CheckStream(response)
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
