package remote

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/client"
	"github.com/iterait/shepherd/config/size"
	"github.com/iterait/shepherd/job"
)

// Try runs one job on a daemon that is there for nothing else: it sends the files of paths,
// as `submit` does, writes the job's log to cmd's standard output as it comes, and the job's
// outputs to a directory. The error of a job that is not done has the exit code of that.
//
// A job that goes back to the queue is not tried again: the only sheep could not run it, and
// who waits for it is told why.
func Try(ctx context.Context, cmd *cobra.Command, daemon *client.ClientWithResponses, model job.Model, paths []string, to string) error {
	found, err := findInputs(paths)
	if err != nil {
		return err
	}
	on := &session{
		ClientWithResponses: daemon, out: cmd.OutOrStdout(), err: cmd.ErrOrStderr(), in: cmd.InOrStdin(),
		program: cmd.Root().Name(), interrupts: make(chan os.Signal),
	}
	s := submission{inputs: found, key: rand.Text(), to: to}
	s.request.Model.Name, s.request.Model.Version = model.Name, model.Version
	if len(found.files) == 0 {
		s.request.Payload = new("")
	}
	submitted, err := s.send(ctx, on, nil)
	if err != nil {
		return err
	}
	id := submitted.JobId

	// The log ends with the job.
	logged := make(chan error, 1)
	reading, stop := context.WithCancel(ctx)
	defer stop()
	go func() { logged <- on.copyLog(reading, id) }()
	shown := newDisplay(on.err, false)
	shown.terminal = false // bars and the log would be in each other's way
	waiting, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	j, err := on.await(waiting, id, func(j client.Job) {
		if why := returned(j); why != "" {
			giveUp(errors.New(why))
			return
		}
		shown.job(j)
	})
	if err != nil {
		stop()
		<-logged
		if waiting.Err() != nil && ctx.Err() == nil {
			fmt.Fprintf(on.err, "The job could not run: %s\n", cleanLines(context.Cause(waiting).Error()))
			return fmt.Errorf("%s was not run", model)
		}
		return err
	}
	if err := <-logged; err != nil {
		fmt.Fprintf(on.err, "The job's log could not be read: %v\n", err)
	}
	if err := outcome(j); err != nil {
		on.explainTrial(ctx, err)
		return err
	}
	for _, warning := range j.Warnings {
		fmt.Fprintln(on.err, "warning:", clean(warning))
	}
	there, err := on.outputs(ctx, id)
	if err != nil {
		return err
	}
	if err := on.fetch(ctx, id, nil, to, nil); err != nil {
		return err
	}
	_, err = fmt.Fprintf(on.err, "Done, with %s, %s, in %s\n", counted(len(there.Files), "output"), size.Text(there.Bytes), to)
	return err
}

// returned is why a job that has not ended went back to the queue; empty if it did not.
func returned(j client.Job) string {
	if j.Status.Final() {
		return ""
	}
	for _, a := range deref(j.Attempts) {
		if a.Run == j.Run && a.EndedAt != nil {
			return cmp.Or(deref(a.Reason), deref(a.Cause))
		}
	}
	return ""
}

// explainTrial is explainEnds for a job that cannot be queried or retried later, since its
// daemon ends with it.
func (s *session) explainTrial(ctx context.Context, err error) {
	var e *ended
	if !errors.As(err, &e) || e.state != job.Failed {
		return
	}
	answer, err := s.ExplainJobWithResponse(ctx, e.id)
	if err != nil || answer.JSON200 == nil {
		return
	}
	for line := range strings.Lines(answer.JSON200.Text) {
		switch {
		case strings.Contains(line, "`shepherd logs "+e.id):
			line = "What to do: The model itself reported the failure: look at its log above and at the inputs. --keep keeps all its files."
		case strings.Contains(line, "`shepherd retry "+e.id):
			line = "What to do: Correct what the reason names, and repeat this command."
		case strings.Contains(line, "`shepherd models pull"):
			continue
		}
		fmt.Fprintln(s.err, cleanLines(strings.TrimSuffix(line, "\n")))
	}
	e.said = ""
}

// copyLog writes the job's log to standard output until the job has ended.
func (s *session) copyLog(ctx context.Context, id string) error {
	response, err := s.openLog(ctx, id, &client.GetJobLogsParams{Follow: new("true")})
	if client.Is(err, 404) { // it has ended, and wrote nothing
		return nil
	}
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(s.out, response.Body)
	return err
}
