package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/client"
)

// webhooksCommand looks at the messages for receivers of webhooks.
func webhooksCommand(c Config) *cobra.Command {
	t := NewTarget(c)
	cmd := &cobra.Command{
		Use:   "webhooks",
		Short: "List webhook messages, and send them again",
		Long: "Messages about jobs are sent to the receivers in the daemon's configuration, and to\n" +
			"those that jobs name (submit --webhook).",
	}
	t.Add(cmd.PersistentFlags())
	cmd.AddCommand(listMessages(t), redeliver(t), webhookSecret(t))
	return cmd
}

func listMessages(t *Target) *cobra.Command {
	var form Format
	var about, receiver, state string
	var limit int
	var noHeading, watch bool
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List messages, the latest first",
		Example: "  shepherd webhooks ls --state given-up\n  shepherd webhooks ls --job page-7 -o wide",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			params := client.ListMessagesParams{}
			for value, to := range map[*string]**string{&about: &params.Job, &receiver: &params.Receiver} {
				if *value != "" {
					*to = value
				}
			}
			if state != "" {
				params.State = new(client.ListMessagesParamsState(state))
			}
			return t.run(cmd, func(ctx context.Context, s *session) error {
				lines := messageListing(s.out, form, !noHeading)
				if watch {
					return s.watchMessages(ctx, params, limit, lines)
				}
				messages, err := s.messages(ctx, params, limit)
				if err != nil {
					return err
				}
				return lines.Print(messages)
			})
		},
	}
	f := cmd.Flags()
	form.Add(f)
	f.StringVar(&about, "job", "", "only messages about this job")
	f.StringVar(&receiver, "receiver", "", "only messages to this receiver: its name, or its URL")
	f.StringVar(&state, "state", "", "only messages that are waiting, delivered or given-up")
	f.IntVarP(&limit, "limit", "n", latest, "how many at most; 0 is all")
	f.BoolVarP(&watch, "watch", "w", false, "continue with new messages and changes")
	f.BoolVar(&noHeading, "no-headers", false, "leave out the names of the columns")
	return cmd
}

// messagesAgain is how long a command that watches messages waits before it asks for them
// again: the daemon's events are of jobs, and do not tell of messages.
const messagesAgain = time.Second

// watchMessages lists messages, and then those that are new or have changed, the latest last.
func (s *session) watchMessages(ctx context.Context, params client.ListMessagesParams, limit int, lines *Listing[client.Message]) error {
	again := time.NewTicker(messagesAgain)
	defer again.Stop()
	for first := true; ; first = false {
		messages, err := s.messages(ctx, params, limit)
		if err != nil {
			return err
		}
		if !first {
			slices.Reverse(messages)
		}
		if err := lines.Print(messages); err != nil {
			return err
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// messages are the latest messages, limit of them at most; 0 for all.
func (s *session) messages(ctx context.Context, params client.ListMessagesParams, limit int) ([]client.Message, error) {
	var all []client.Message
	for limit == 0 || len(all) < limit {
		params.Limit = new(strconv.Itoa(page))
		if limit > 0 {
			params.Limit = new(strconv.Itoa(min(page, limit-len(all))))
		}
		answer, err := s.ListMessagesWithResponse(ctx, &params)
		if err != nil {
			return nil, err
		}
		if answer.JSON200 == nil {
			return nil, errors.New("the daemon's list of messages cannot be read")
		}
		all = append(all, answer.JSON200.Messages...)
		if params.After = answer.JSON200.Next; params.After == nil {
			break
		}
	}
	return all, nil
}

func messageListing(to io.Writer, form Format, heading bool) *Listing[client.Message] {
	l := &Listing[client.Message]{
		To: to, Form: form,
		Name: func(m client.Message) string { return m.Id },
		Row: func(m client.Message) []string {
			row := []string{m.Id, m.JobId, string(m.Event), string(m.State), strconv.Itoa(m.Tries), nextTry(m), m.Receiver}
			if form == FormWide {
				row = append(row, deref(m.CreatedAt), cmp.Or(deref(m.Problem), "-"))
			}
			return row
		},
		// How long it is until the next try is other at each look.
		Version: func(m client.Message) string { return fmt.Sprint(m.State, m.Tries, deref(m.DueAt)) },
	}
	if heading {
		l.Heading = []string{"MESSAGE", "JOB", "EVENT", "STATE", "TRIES", "NEXT", "RECEIVER"}
		if form == FormWide {
			l.Heading = append(l.Heading, "CREATED", "PROBLEM")
		}
	}
	return l
}

// nextTry is when a message is tried next.
func nextTry(m client.Message) string {
	switch at, err := time.Parse(time.RFC3339, deref(m.DueAt)); {
	case m.State != client.MessageStateWaiting:
		return "-"
	case m.DueAt == nil:
		return "after another"
	case err != nil:
		return *m.DueAt
	case time.Until(at) <= time.Second:
		return "now"
	default:
		return "in " + time.Until(at).Round(time.Second).String()
	}
}

func redeliver(t *Target) *cobra.Command {
	return &cobra.Command{
		Use:   "redeliver MESSAGE…",
		Short: "Send messages again, with the same id",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage("the id of a message is needed; `webhooks ls` lists them")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return t.run(cmd, func(ctx context.Context, s *session) error {
				for _, id := range args {
					answer, err := s.RedeliverMessageWithResponse(ctx, id)
					if err == nil && answer.JSON200 == nil {
						err = errors.New("the daemon's answer cannot be read")
					}
					if err != nil {
						return fmt.Errorf("send %s again: %w", id, err)
					}
					if m := answer.JSON200; m.DueAt == nil {
						fmt.Fprintf(s.out, "%s waits for an earlier message about job %s\n", clean(m.Id), clean(m.JobId))
						continue
					}
					fmt.Fprintf(s.out, "%s is sent again\n", id)
				}
				return nil
			})
		},
	}
}

func webhookSecret(t *Target) *cobra.Command {
	return &cobra.Command{
		Use:   "secret",
		Short: "Print the secret that signs messages to the receivers that your jobs name",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return t.run(cmd, func(ctx context.Context, s *session) error {
				answer, err := s.GetWebhookSecretWithResponse(ctx)
				if err != nil {
					return err
				}
				if answer.JSON200 == nil {
					return errors.New("the daemon's answer cannot be read")
				}
				_, err = fmt.Fprintln(s.out, answer.JSON200.Secret)
				return err
			})
		},
	}
}
