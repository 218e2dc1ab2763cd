package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/client"
	"github.com/iterait/shepherd/job"
)

func wait(t *Target) *cobra.Command {
	var limit time.Duration
	var quiet bool
	var form Format
	cmd := &cobra.Command{
		Use:   "wait JOB…",
		Short: "Wait until jobs have ended",
		Long: "Waits until all of the jobs have ended, also while the daemon is restarted, and prints\n" +
			"how they ended. The exit code is 0 if all are done, 3 if one has failed, 4 if one was\n" +
			"cancelled, and 9 if --timeout expired first.",
		Args: jobs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return t.runTaking(cmd, func(ctx context.Context, s *session) error {
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
					return s.interruptible(ctx, func(ctx context.Context) error {
						s.explainEnds(ctx, worst)
						return worst
					})
				}
				return err
			})
		},
		ValidArgsFunction: jobArgs(t, 0),
	}
	form.Add(cmd.Flags())
	cmd.Flags().DurationVar(&limit, "timeout", 0, "how long to wait at most; 0 is no limit")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "do not show progress")
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
		case err == nil && answer.JSON200 == nil && answer.StatusCode() != http.StatusNotModified:
			return last, fmt.Errorf("the daemon's answer about job %s cannot be read", id)
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
	var network *net.OpError // in the middle of an answer
	return errors.As(err, &unreachable) || errors.As(err, &network) || errors.Is(err, io.ErrUnexpectedEOF) || client.Is(err, http.StatusServiceUnavailable) || client.Is(err, http.StatusTooManyRequests) ||
		client.Is(err, http.StatusBadGateway) || client.Is(err, http.StatusGatewayTimeout) // of a proxy
}
