package remote

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/client"
)

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

// succeeded returns the error of a request that changes something, or one for an answer that does
// not say that it was done.
func succeeded(answer interface{ GetJSON200() *client.Success }, err error) error {
	if err == nil && answer.GetJSON200() == nil {
		return errors.New("the daemon's answer cannot be read")
	}
	return err
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
					if err := succeeded(s.RetryGroupWithResponse(ctx, group)); err != nil {
						return err
					}
					return s.tellGroup(ctx, group)
				}
				return eachOf(args, "retry", func(id string) error {
					if err := succeeded(s.RetryJobWithResponse(ctx, id)); err != nil {
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
					if err := succeeded(s.CancelGroupWithResponse(ctx, group)); err != nil {
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
	if err := succeeded(s.CancelJobWithResponse(ctx, id)); err != nil {
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
