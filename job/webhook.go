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

// Webhook says where events of a job are sent. The zero Webhook is none.
type Webhook struct {
	// URL is http or https, without credentials and fragment.
	URL string
	// Events are the kinds that are sent, sorted and joined by commas; empty stands for
	// EventEnded alone.
	Events string
	// Group, where it is not empty, is the run's group: one message is sent when all jobs of
	// it have ended, in place of those about the run.
	Group string
}

// NewWebhook checks a webhook as a client asks for it. The error is an *Invalid.
func NewWebhook(address string, events []EventKind) (Webhook, error) {
	if err := CheckWebhookURL(address); err != nil {
		return Webhook{}, &Invalid{Field: "webhook", Problem: err.Error()}
	}
	names := make([]string, 0, len(events))
	for _, kind := range events {
		if !slices.Contains(WebhookEvents(), kind) {
			return Webhook{}, &Invalid{Field: "webhook", Problem: fmt.Sprintf("%q is no event that is sent; these are: %s", string(kind), joinKinds(WebhookEvents()))}
		}
		names = append(names, string(kind))
	}
	slices.Sort(names)
	return Webhook{URL: address, Events: strings.Join(slices.Compact(names), ",")}, nil
}

// WebhookEvents are the kinds of events that can be sent.
func WebhookEvents() []EventKind {
	return []EventKind{EventQueued, EventClaimed, EventStarted, EventReturned, EventDue, EventCancelled, EventEnded}
}

// CheckWebhookURL says what is wrong with the URL of a receiver.
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

// webhookJSON is a webhook as ledgers and archives write it.
type webhookJSON struct {
	URL    string `json:"url"`
	Events string `json:"events,omitempty"`
	Group  string `json:"group,omitempty"`
}

// MarshalText is empty for the zero Webhook.
func (w Webhook) MarshalText() ([]byte, error) {
	if w.IsZero() {
		return nil, nil
	}
	return json.Marshal(webhookJSON(w))
}

// UnmarshalText reads what MarshalText wrote.
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

// Delivery is a message for a receiver, and what became of it so far. A
// ledger takes ID, Receiver, Job, Run, Tenant, Kind and Payload.
type Delivery struct {
	// Seq is the message's place among all.
	Seq int64
	// ID names the message, the same at each try.
	ID string
	// Receiver is the name of a configured receiver, or the URL of a job's own.
	Receiver string
	Job      ID
	Run      int
	// Tenant is whose the message is, empty for nobody's in particular.
	Tenant  string
	Kind    EventKind // of the event
	Payload []byte

	State DeliveryState
	// Created is when the message was queued, and Began when its present tries began,
	// which is later where it was delivered again on request.
	Created, Began time.Time
	// Due is when it is tried next; zero where it is settled, or waits for another one.
	Due time.Time
	// Settled is when it was delivered or given up; zero before.
	Settled time.Time
	// Tries is how often it was tried since Began.
	Tries int
	// Status is the HTTP status of the last answer, 0 where there was none, and Problem
	// why the last try failed.
	Status  int
	Problem string
}

// DeliveryState is what became of a message.
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
