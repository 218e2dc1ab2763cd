package api

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
)

// messages is a Webhooks of a few messages.
type messages struct {
	secret string
	asked  job.DeliveryFilter
}

func (m *messages) Deliveries(_ context.Context, filter job.DeliveryFilter, cursor int64, limit int) ([]job.Delivery, int64, error) {
	m.asked = filter
	if cursor == 13 {
		return nil, 0, errors.New("no ledger")
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	return []job.Delivery{
		{ID: "msg_b", Receiver: "ops", Job: "x", Run: 2, Kind: job.EventEnded, State: job.DeliveryWaiting, Created: at, Due: at, Tries: 1, Status: 500, Problem: "no"},
		{ID: "msg_a", Receiver: "https://example.com", Job: "x", Run: 2, Kind: job.EventQueued, State: job.DeliveryDelivered, Created: at, Settled: at, Tries: 1, Status: 204},
	}[:min(limit, 2)], int64(2 - min(limit, 2)), nil
}

func (m *messages) Redeliver(_ context.Context, id, tenant string) (job.Delivery, error) {
	if id != "msg_a" || tenant == "other" {
		return job.Delivery{}, job.ErrNoMessage
	}
	return job.Delivery{ID: id, State: job.DeliveryWaiting, Kind: job.EventEnded, Created: time.Unix(1, 0)}, nil
}

func (m *messages) JobSecret(tenant string) (string, error) {
	if m.secret == "" {
		return "", nil
	}
	return m.secret + tenant, nil
}

func TestWebhookRoutes(t *testing.T) {
	fake := &messages{secret: "whsec_"}
	h := newHarness(t, asAdmin, func(c *Config) { c.Webhooks = fake })
	r := h.do("GET", "/webhooks/messages?job=x&receiver=ops&state=waiting&limit=1&after=9", "")
	const want = `{"messages": [{"created_at": "2026-01-02T03:04:05.000006", "due_at": "2026-01-02T03:04:05.000006", "event": "ended", "id": "msg_b", "job_id": "x", "problem": "no", "receiver": "ops", "run": 2, "settled_at": null, "state": "waiting", "status": 500, "tries": 1}], "next": "1"}`
	if r.status != 200 || strings.TrimSpace(r.body) != want || fake.asked.Job != "x" || fake.asked.Receiver != "ops" || fake.asked.State != job.DeliveryWaiting {
		t.Errorf("%d %s, asked for %+v", r.status, r.body, fake.asked)
	}
	for query, field := range map[string]string{"job=..": "job", "state=gone": "state", "limit=0": "limit", "limit=1001": "limit", "after=x": "after", "after=0": "after", "receiver=" + strings.Repeat("r", job.MaxWebhookURL+1): "receiver"} {
		if r := h.do("GET", "/webhooks/messages?"+query, ""); r.status != 400 || !strings.Contains(r.body, field+": ") {
			t.Errorf("%.20s: %d %s", query, r.status, r.body)
		}
	}
	if r := h.do("POST", "/webhooks/messages/msg_a/redeliver", ""); r.status != 200 || !strings.Contains(r.body, `"state": "waiting"`) {
		t.Errorf("%d %s", r.status, r.body)
	}
	h.problem(h.do("POST", "/webhooks/messages/none/redeliver", ""), 404, "no-message", job.ErrNoMessage.Error())
	if r := h.do("GET", "/webhooks/secret", ""); r.status != 200 || strings.TrimSpace(r.body) != `{"secret": "whsec_"}` {
		t.Errorf("%d %s", r.status, r.body)
	}
	fake.secret = ""
	h.problem(h.do("GET", "/webhooks/secret", ""), 404, "no-webhooks", string(errNoWebhooks))
	without := newHarness(t, asAdmin)
	for _, route := range []string{"GET /webhooks/messages", "POST /webhooks/messages/msg_a/redeliver", "GET /webhooks/secret"} {
		method, path, _ := strings.Cut(route, " ")
		without.problem(without.do(method, path, ""), 404, "no-webhooks", string(errNoWebhooks))
	}
}

func TestSubmitWebhook(t *testing.T) {
	fake := &messages{secret: "whsec_"}
	h := newHarness(t, func(c *Config) { c.Webhooks = fake })
	h.service.enters = true
	submit := func(h *harness, webhook string) reply {
		return h.do("POST", "/jobs", fmt.Sprintf(`{"job_id": "hooked", "model": {"name": "m", "version": "v"}, "payload": "x", "webhook": %s}`, webhook))
	}
	for webhook, problem := range map[string]string{
		`{}`: "webhook.url", `{"url": 1}`: "webhook.url", `{"url": "ftp://x"}`: "webhook", `{"url": "http://x", "more": 1}`: "webhook.more", `[]`: "webhook",
		`{"url": "http://x", "events": ["progress"]}`: "progress", `{"url": "http://x", "events": "ended"}`: "webhook.events",
		`{"url": "http://x", "events": ["ended", "ended", "ended", "ended", "ended", "ended", "ended", "ended"]}`: "webhook.events",
	} {
		if r := submit(h, webhook); r.status != 400 || !strings.Contains(r.body, problem) {
			t.Errorf("%s: %d %s", webhook, r.status, r.body)
		}
	}
	if r := submit(h, `{"url": "https://example.com/hook", "events": ["started", "ended"]}`); r.status != 201 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	if got := h.service.submitted[len(h.service.submitted)-1].Webhook; got != (job.Webhook{URL: "https://example.com/hook", Events: "ended,started"}) {
		t.Errorf("submitted with %+v", got)
	}
	fake.secret = ""
	if r := submit(h, `{"url": "https://example.com"}`); r.status != 400 || !strings.Contains(r.body, "webhooks.secret_file") {
		t.Errorf("%d %s", r.status, r.body)
	}
}
