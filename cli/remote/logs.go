package remote

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/client"
)

func logs(t *Target) *cobra.Command {
	var follow bool
	var tail string
	cmd := &cobra.Command{
		Use:   "logs JOB",
		Short: "Show the log of a job",
		Long: "Prints what runners wrote during the job's last run, as far as it is kept. With\n" +
			"--follow it continues until the job has ended.",
		Args: oneJob,
		RunE: func(cmd *cobra.Command, args []string) error {
			return t.run(cmd, func(ctx context.Context, s *session) error {
				response, err := s.openLog(ctx, args[0], &client.GetJobLogsParams{Tail: &tail, Follow: new(strconv.FormatBool(follow))})
				if err != nil {
					return err
				}
				defer response.Body.Close()
				if _, err := io.Copy(s.out, response.Body); err != nil && ctx.Err() == nil {
					return fmt.Errorf("read the log of job %s: %w", args[0], err)
				}
				return nil
			})
		},
		ValidArgsFunction: jobArgs(t, 1),
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "continue with new lines until the job has ended")
	cmd.Flags().StringVar(&tail, "tail", "all", "begin with this many of the last lines of the last attempt")
	return cmd
}

// openLog opens the log of a job; the caller closes the response's body.
func (s *session) openLog(ctx context.Context, id string, params *client.GetJobLogsParams) (*http.Response, error) {
	response, err := s.GetJobLogs(ctx, id, params)
	if err != nil || strings.HasPrefix(response.Header.Get("Content-Type"), "text/plain") {
		return response, err
	}
	response.Body.Close() // the page of something between, perhaps
	return nil, fmt.Errorf("the daemon's answer about the log of job %s cannot be read", id)
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
