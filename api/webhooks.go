package api

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/job"
)

// Webhooks sends messages about jobs to receivers.
type Webhooks interface {
	// Deliveries returns up to limit messages that match, the newest first, from the
	// cursor on (0 for the first), and the cursor to go on with, 0 at the end.
	Deliveries(ctx context.Context, filter job.DeliveryFilter, cursor int64, limit int) ([]job.Delivery, int64, error)

	// Redeliver sends a message again; where tenant is not empty it must be its. It
	// returns job.ErrNoMessage.
	Redeliver(ctx context.Context, id, tenant string) (job.Delivery, error)

	// JobSecret is what messages are signed with for the receivers that jobs of the
	// tenant name, as text; empty where jobs may name none.
	JobSecret(tenant string) (string, error)
}

// webhookServer serves messages to receivers of webhooks.
type webhookServer struct {
	answers
	webhooks Webhooks // nil where none are sent
}

// ListMessages answers GET /webhooks/messages.
func (s *webhookServer) ListMessages(w http.ResponseWriter, r *http.Request, params ListMessagesParams) {
	if s.webhooks == nil {
		s.fail(w, r, errNoWebhooks)
		return
	}
	filter, cursor, limit, err := messageQuery(params)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	filter.Tenant = access.From(r.Context()).Tenant
	listed, next, err := s.webhooks.Deliveries(r.Context(), filter, cursor, limit)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	answer := MessageList{Messages: []Message{}}
	for _, m := range listed {
		answer.Messages = append(answer.Messages, shownMessage(m))
	}
	if next != 0 {
		answer.Next = new(strconv.FormatInt(next, 10))
	}
	s.answer(w, r, http.StatusOK, answer)
}

// messageQuery reads the parameters of a listing.
func messageQuery(params ListMessagesParams) (filter job.DeliveryFilter, cursor int64, limit int, err error) {
	limit = 100
	if params.Job != nil {
		if filter.Job, err = job.ParseID(*params.Job); err != nil {
			return filter, 0, 0, &job.Invalid{Field: "job", Problem: err.Error()}
		}
	}
	if params.Receiver != nil {
		if filter.Receiver = *params.Receiver; len(filter.Receiver) > job.MaxWebhookURL {
			return filter, 0, 0, &job.Invalid{Field: "receiver", Problem: "is too long"}
		}
	}
	if params.State != nil {
		switch filter.State = job.DeliveryState(*params.State); filter.State {
		case job.DeliveryWaiting, job.DeliveryDelivered, job.DeliveryGivenUp:
		default:
			return filter, 0, 0, &job.Invalid{Field: "state", Problem: "must be waiting, delivered or given-up"}
		}
	}
	if params.After != nil {
		if cursor, err = strconv.ParseInt(*params.After, 10, 64); err != nil || cursor < 1 {
			return filter, 0, 0, &job.Invalid{Field: "after", Problem: "must be the `next` of an earlier answer"}
		}
	}
	if params.Limit != nil {
		if limit, err = strconv.Atoi(*params.Limit); err != nil || limit < 1 || limit > 1000 {
			return filter, 0, 0, &job.Invalid{Field: "limit", Problem: "must be a whole number from 1 to 1000"}
		}
	}
	return filter, cursor, limit, nil
}

// RedeliverMessage answers POST /webhooks/messages/{message_id}/redeliver.
func (s *webhookServer) RedeliverMessage(w http.ResponseWriter, r *http.Request, rawID string) {
	if s.webhooks == nil {
		s.fail(w, r, errNoWebhooks)
		return
	}
	id, err := url.PathUnescape(rawID)
	if err != nil {
		s.fail(w, r, job.ErrNoMessage)
		return
	}
	m, err := s.webhooks.Redeliver(r.Context(), id, access.From(r.Context()).Tenant)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.answer(w, r, http.StatusOK, shownMessage(m))
}

// GetWebhookSecret answers GET /webhooks/secret.
func (s *webhookServer) GetWebhookSecret(w http.ResponseWriter, r *http.Request) {
	secret := ""
	var err error
	if s.webhooks != nil {
		secret, err = s.webhooks.JobSecret(access.From(r.Context()).Tenant)
	}
	if err == nil && secret == "" {
		err = errNoWebhooks
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	s.answer(w, r, http.StatusOK, WebhookSecret{Secret: secret})
}

func shownMessage(m job.Delivery) Message {
	shown := Message{
		Id: m.ID, Receiver: m.Receiver, JobId: string(m.Job), Run: m.Run, Event: MessageEvent(m.Kind), State: MessageState(m.State),
		CreatedAt: job.FormatTime(m.Created), DueAt: job.FormatTime(m.Due), SettledAt: job.FormatTime(m.Settled), Tries: m.Tries, Problem: orNull(m.Problem),
	}
	if m.Status != 0 {
		shown.Status = &m.Status
	}
	return shown
}
