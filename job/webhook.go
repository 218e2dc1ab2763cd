package job

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
)

// MaxWebhookURL bounds the URL of a webhook, in bytes.
const MaxWebhookURL = 2048

// Webhook is where events of a job are sent. The zero Webhook is none.
type Webhook struct {
	// URL is an http or https URL without credentials and fragment.
	URL string
	// Events are the kinds of events to send, sorted and joined by commas; empty means
	// EventEnded.
	Events string
	// Group, if not empty, is the run's group: one message is sent when all its jobs have
	// ended, instead of messages about the run.
	Group string
}

// NewWebhook validates a client's webhook. The error is an *Invalid.
func NewWebhook(address string, events []EventKind) (Webhook, error) {
	if err := CheckWebhookURL(address); err != nil {
		return Webhook{}, &Invalid{Field: "webhook", Problem: err.Error()}
	}
	names := make([]string, 0, len(events))
	for _, kind := range events {
		if !slices.Contains(WebhookEvents(), kind) {
			return Webhook{}, &Invalid{Field: "webhook", Problem: fmt.Sprintf("%q is not an event that can be sent; expected some of %s", string(kind), joinKinds(WebhookEvents()))}
		}
		names = append(names, string(kind))
	}
	slices.Sort(names)
	return Webhook{URL: address, Events: strings.Join(slices.Compact(names), ",")}, nil
}

// WebhookEvents returns the kinds of events that can be sent.
func WebhookEvents() []EventKind {
	return []EventKind{EventQueued, EventClaimed, EventStarted, EventReturned, EventDue, EventCancelled, EventEnded}
}

// CheckWebhookURL returns an error that describes what is wrong with a receiver's URL.
func CheckWebhookURL(address string) error {
	u, err := url.Parse(address)
	switch {
	case len(address) > MaxWebhookURL:
		return fmt.Errorf("the URL has %d bytes, at most %d are allowed", len(address), MaxWebhookURL)
	case err != nil, u.Scheme != "http" && u.Scheme != "https", u.Hostname() == "", u.Opaque != "":
		return fmt.Errorf("expected a URL such as https://example.com/hook")
	case u.User != nil:
		return fmt.Errorf("the URL holds credentials; messages are signed, the receiver verifies the signature")
	case u.Fragment != "":
		return fmt.Errorf("the URL has a fragment (#), which is not sent")
	}
	return nil
}

// IsZero reports whether there is no webhook.
func (w Webhook) IsZero() bool { return w.URL == "" }

// Wants reports whether events of the kind are sent.
func (w Webhook) Wants(kind EventKind) bool {
	if w.Events == "" {
		return kind == EventEnded
	}
	return slices.Contains(strings.Split(w.Events, ","), string(kind))
}

// webhookJSON is the JSON form of a webhook in ledgers and archives.
type webhookJSON struct {
	URL    string `json:"url"`
	Events string `json:"events,omitempty"`
	Group  string `json:"group,omitempty"`
}

// MarshalText returns nothing for the zero Webhook.
func (w Webhook) MarshalText() ([]byte, error) {
	if w.IsZero() {
		return nil, nil
	}
	return json.Marshal(webhookJSON(w))
}

// UnmarshalText reads the output of MarshalText.
func (w *Webhook) UnmarshalText(text []byte) error {
	var read webhookJSON
	if len(text) > 0 {
		if err := json.Unmarshal(text, &read); err != nil {
			return fmt.Errorf("read a webhook: %w", err)
		}
	}
	*w = Webhook(read)
	return nil
}

func joinKinds(kinds []EventKind) string {
	names := make([]string, len(kinds))
	for i, kind := range kinds {
		names[i] = string(kind)
	}
	return strings.Join(names, ", ")
}

// Delivery is a message for a receiver and the state of its delivery. A ledger stores ID,
// Receiver, Job, Run, Tenant, Kind and Payload of a new one.
type Delivery struct {
	// Seq orders all messages.
	Seq int64
	// ID identifies the message; it is the same in every try.
	ID string
	// Receiver is the name of a configured receiver, or the URL of a job's own.
	Receiver string
	Job      ID
	Run      int
	// Tenant is the tenant of the job, empty for none.
	Tenant  string
	Kind    EventKind // of the event
	Payload []byte

	State DeliveryState
	// Created is when the message was queued. Began is when its current series of tries
	// began, later if it was redelivered on request.
	Created, Began time.Time
	// Due is the time of the next try; zero if the message is settled or waits for an
	// earlier one.
	Due time.Time
	// Settled is when it was delivered or given up; zero before.
	Settled time.Time
	// Tries is the number of tries since Began.
	Tries int
	// Status is the HTTP status of the last answer, 0 for none. Problem is why the last try
	// failed.
	Status  int
	Problem string
}

// DeliveryState is the state of a message.
type DeliveryState string

// The states of a message.
const (
	DeliveryWaiting   DeliveryState = "waiting" // or being tried
	DeliveryDelivered DeliveryState = "delivered"
	DeliveryGivenUp   DeliveryState = "given-up"
)

// DeliveryFilter narrows a list of messages. The zero DeliveryFilter matches every message.
type DeliveryFilter struct {
	Job      ID
	Tenant   string
	Receiver string
	State    DeliveryState
}

// Match reports whether the message matches.
func (f DeliveryFilter) Match(d Delivery) bool {
	return (f.Job == "" || f.Job == d.Job) && (f.Tenant == "" || f.Tenant == d.Tenant) &&
		(f.Receiver == "" || f.Receiver == d.Receiver) && (f.State == "" || f.State == d.State)
}
