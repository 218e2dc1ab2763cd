package webhook

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// consumer makes messages from events.
type consumer struct {
	name   string // of its checkpoint in the ledger
	tenant string // whose events it reads, empty for all
	// messages returns the messages about the events, and the runs whose messages are
	// complete.
	messages func(ctx context.Context, events []job.Event) ([]job.Delivery, []ledger.JobRun, error)
}

// receiverConsumer makes messages for a configured receiver.
func receiverConsumer(r Receiver, show func(job.Event) (json.RawMessage, error)) consumer {
	return consumer{name: "webhook/" + r.Name, tenant: r.Tenant, messages: func(_ context.Context, events []job.Event) (messages []job.Delivery, _ []ledger.JobRun, err error) {
		for _, e := range events {
			if !r.wants(e) {
				continue
			}
			m, err := newMessage(r.Name, e, show)
			if err != nil {
				return nil, nil, err
			}
			m.Tenant = r.Tenant // tenants may not see the receivers that the operator configured
			messages = append(messages, m)
		}
		return messages, nil, nil
	}}
}

// jobsConsumer makes messages for the receivers that jobs name.
func jobsConsumer(l Ledger, show func(job.Event) (json.RawMessage, error)) consumer {
	return consumer{name: "webhooks of jobs", messages: func(ctx context.Context, events []job.Event) (messages []job.Delivery, complete []ledger.JobRun, err error) {
		var runs []ledger.JobRun
		seen := map[ledger.JobRun]bool{}
		for _, e := range events {
			if run := (ledger.JobRun{Job: e.Job, Run: e.Run}); !seen[run] {
				seen[run] = true
				runs = append(runs, run)
			}
		}
		if len(runs) == 0 {
			return nil, nil, nil
		}
		webhooks, err := l.JobWebhooks(ctx, runs)
		if err != nil {
			return nil, nil, err
		}
		for _, e := range events {
			run := ledger.JobRun{Job: e.Job, Run: e.Run}
			webhook, ok := webhooks[run]
			if !ok {
				continue
			}
			if e.Kind == job.EventEnded {
				complete = append(complete, run)
			}
			if webhook.Group != "" && e.Kind == job.EventEnded {
				g, err := readGroup(ctx, l, webhook.Group, e.Tenant)
				if err != nil {
					return nil, nil, err
				}
				if !g.ended {
					continue
				}
				m, err := g.message(webhook.URL, e)
				if err != nil {
					return nil, nil, err
				}
				messages = append(messages, m)
			}
			if webhook.Group != "" || !webhook.Wants(e.Kind) {
				continue
			}
			m, err := newMessage(webhook.URL, e, show)
			if err != nil {
				return nil, nil, err
			}
			messages = append(messages, m)
		}
		return messages, complete, nil
	}}
}

// envelope is the body of a message.
type envelope struct {
	Type      string          `json:"type"`
	Timestamp *string         `json:"timestamp"`
	Data      json.RawMessage `json:"data"`
}

// newMessage returns the message about an event, always the same for the same event.
func newMessage(receiver string, e job.Event, show func(job.Event) (json.RawMessage, error)) (job.Delivery, error) {
	data, err := show(e)
	if err != nil {
		return job.Delivery{}, fmt.Errorf("write event %s: %w", e.Cursor, err)
	}
	payload, err := job.JSON(envelope{Type: "job." + string(e.Kind), Timestamp: job.FormatTime(e.At), Data: data})
	if err != nil {
		return job.Delivery{}, fmt.Errorf("write event %s: %w", e.Cursor, err)
	}
	return job.Delivery{
		ID: messageID(receiver, e), Receiver: receiver, Job: e.Job, Run: e.Run, Tenant: e.Tenant, Kind: e.Kind, Payload: payload,
	}, nil
}

// groupPage is how many records of a group are read at a time.
const groupPage = 1000

// groupEnd is the content of a message about a group.
type groupEnd struct {
	Group     string `json:"group"`
	Done      int    `json:"done"`
	Failed    int    `json:"failed"`
	Cancelled int    `json:"cancelled"`

	ended bool // all its jobs have
	runs  int  // of all its jobs
}

// readGroup reads the states of the jobs of a tenant's group.
func readGroup(ctx context.Context, l Ledger, name, tenant string) (groupEnd, error) {
	g := groupEnd{Group: name, ended: true}
	for cursor := int64(0); ; {
		records, next, err := l.List(ctx, ledger.Filter{Group: name, Tenant: tenant}, cursor, groupPage)
		if err != nil {
			return groupEnd{}, err
		}
		for _, rec := range records {
			if rec.Tenant != tenant { // of another group with this name
				continue
			}
			g.runs += rec.Run
			switch rec.State {
			case job.Done:
				g.Done++
			case job.Failed:
				g.Failed++
			case job.Cancelled:
				g.Cancelled++
			default:
				g.ended = false
			}
		}
		if next == 0 || !g.ended {
			return g, nil
		}
		cursor = next
	}
}

// message returns the message about the end of the group, made from the event of one of its
// jobs. It has the same id until one of them runs again.
func (g groupEnd) message(receiver string, e job.Event) (job.Delivery, error) {
	data, err := job.JSON(g)
	if err != nil {
		return job.Delivery{}, fmt.Errorf("write the end of group %s: %w", g.Group, err)
	}
	payload, err := job.JSON(envelope{Type: "group.ended", Timestamp: job.FormatTime(e.At), Data: data})
	if err != nil {
		return job.Delivery{}, fmt.Errorf("write the end of group %s: %w", g.Group, err)
	}
	return job.Delivery{
		ID:       nameOf(fmt.Appendf(nil, "%s\x00group\x00%s\x00%s\x00%d", receiver, g.Group, e.Tenant, g.runs)),
		Receiver: receiver, Job: e.Job, Run: e.Run, Tenant: e.Tenant, Kind: e.Kind, Payload: payload,
	}, nil
}

// messageID returns the id of a message. A cursor alone does not identify an event: another
// ledger, to which the jobs were moved, gives out the same cursors.
func messageID(receiver string, e job.Event) string {
	return nameOf(fmt.Appendf(nil, "%s\x00%s\x00%s\x00%d\x00%s\x00%d", receiver, e.Cursor, e.Job, e.Run, e.Kind, e.At.UnixMicro()))
}

// nameOf returns the id of a message about the parts.
func nameOf(what []byte) string {
	sum := sha256.Sum256(what)
	return "msg_" + strings.ToLower(base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:16]))
}

// reader reads the events of a consumer and queues its messages.
type reader struct {
	*Dispatcher
	consumer
	kept job.Cursor // the checkpoint in the ledger
	at   job.Cursor // all events before it were read
}

func (d *Dispatcher) newReader(c consumer) *reader { return &reader{Dispatcher: d, consumer: c} }

// run reads until ctx ends.
func (r *reader) run(ctx context.Context) {
	rest := time.Second
	for ctx.Err() == nil {
		err := r.open(ctx)
		if err == nil {
			rest = time.Second
			err = r.follow(ctx)
		}
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			r.cfg.Log.Error("Cannot read the events for a receiver of webhooks; retrying", "consumer", r.name, "error", err)
			if !pause(ctx, rest) {
				break
			}
			rest = min(2*rest, 30*time.Second)
		}
	}
	if r.kept != "" && r.at != r.kept {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_, _ = r.cfg.Ledger.QueueDeliveries(ctx, r.name, r.kept, r.at, nil, nil) // if it fails, these events are read again
	}
}

// open reads the consumer's cursor from the ledger. A new consumer begins at the latest event.
func (r *reader) open(ctx context.Context) error {
	kept, err := r.cfg.Ledger.Checkpoint(ctx, r.name)
	if errors.Is(err, ledger.ErrNotFound) {
		if kept, err = r.cfg.Ledger.Now(ctx); err != nil {
			return err
		}
		var moved bool
		if moved, err = r.cfg.Ledger.QueueDeliveries(ctx, r.name, "", kept, nil, nil); err == nil && !moved { // another node was faster
			kept, err = r.cfg.Ledger.Checkpoint(ctx, r.name)
		}
	}
	if err != nil {
		return err
	}
	r.kept, r.at = kept, kept
	r.nudge() // messages may have been queued although the ledger failed to say so
	return nil
}

// follow reads events from the cursor on. It returns nil if another node has moved the
// cursor.
func (r *reader) follow(ctx context.Context) error {
	var keep <-chan time.Time // receives when the cursor is to be stored although nothing was queued
	due := false              // keep has received
	for {
		changed := r.cfg.Ledger.Changed()
		events, next, err := r.cfg.Ledger.Events(ctx, r.at, ledger.EventFilter{Tenant: r.tenant}, eventBatch)
		if errors.Is(err, ledger.ErrEventsGone) {
			if next, err = r.cfg.Ledger.Now(ctx); err == nil {
				r.cfg.Log.Error("A receiver of webhooks has missed events that are no longer kept; it gets those from now on. Keep events for longer (ledger.event_keep, ledger.event_number)", "consumer", r.name)
			}
		}
		var messages []job.Delivery
		var complete []ledger.JobRun
		if err == nil {
			messages, complete, err = r.messages(ctx, events)
		}
		if err != nil {
			return err
		}
		r.at = next
		if len(messages) > 0 || len(complete) > 0 || due && r.at != r.kept {
			moved, err := r.cfg.Ledger.QueueDeliveries(ctx, r.name, r.kept, r.at, messages, complete)
			if err != nil {
				r.at = r.kept
				return err
			}
			if !moved {
				r.at = r.kept
				return nil
			}
			r.kept, keep, due = r.at, nil, false
			if len(messages) > 0 {
				r.nudge()
			}
		}
		if len(events) == eventBatch {
			continue
		}
		if keep == nil && r.at != r.kept {
			keep = time.After(checkpointEvery)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-keep:
			due = true
		}
	}
}
