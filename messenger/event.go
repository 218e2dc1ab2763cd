package messenger

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/iterait/shepherd/job"
)

// EventKind is the kind of an Event.
type EventKind string

// The kinds of events.
const (
	// EventReady: the runner accepts jobs. It has no job.
	EventReady EventKind = "ready"
	// EventGiven: the job was sent to the runner. Log is the open span of the job's
	// log; see Answer.Log. The runner need not support events.
	EventGiven EventKind = "given"
	// EventAccepted: the runner has begun the job. Features lists what it supports for
	// the job.
	EventAccepted EventKind = "accepted"
	// EventProgress: Progress is how much of the job is done, Text a description.
	EventProgress EventKind = "progress"
	// EventLog: Text is a line of the job's log.
	EventLog EventKind = "log"
	// EventWarning: Text is a warning about the runner, which will also be in
	// Answer.Warnings. It has no job if none was under way. The runner need not support
	// events.
	EventWarning EventKind = "warning"
)

// Event is a message of a runner about its work other than an answer.
type Event struct {
	Kind     EventKind
	JobID    job.ID
	Time     time.Time // when it was received; zero on the wire
	Progress float64   // 0 to 1
	Text     string
	Features []string // with EventAccepted: FeatureCancel
	Log      string   // with EventGiven
	Lost     int      // how many events before this one were dropped
}

// FeatureCancel is the feature of a runner that handles CancelMessage for a job.
const FeatureCancel = "cancel"

// EnvFeatures is the environment variable with the features that the runner's peer
// supports, separated by spaces: FeatureEvents. Without it a runner sends only answers, as
// the original shepherd expects.
const EnvFeatures = "SHEPHERD_FEATURES"

// FeatureEvents in EnvFeatures allows the runner to send events.
const FeatureEvents = "events"

// EventSource is a Conn that forwards the runner's events. Events are informational: they
// may be dropped, and never delay answers.
type EventSource interface {
	// RecvEvent waits for the next event. Of a job's progress events only the latest is
	// kept until it is received; of other events a few hundred. After the runner's end
	// it returns ErrClosed.
	RecvEvent(ctx context.Context) (Event, error)
}

// Canceller is a Conn that can ask its runner to cancel a job.
type Canceller interface {
	// Cancel asks the runner to cancel the job under way. It does not wait: the job's
	// answer is still received by Recv, a failure of type CancelledType if the runner
	// has cancelled the job. The error is of class errdefs.ErrNotImplemented if the
	// runner has not announced FeatureCancel, and errdefs.ErrNotFound if the job is not
	// under way.
	Cancel(ctx context.Context, id job.ID) error
}

const (
	eventType  = "EventMessage"
	cancelType = "CancelMessage"

	maxEventText     = 4 << 10
	maxEventFeatures = 16
)

type eventJSON struct {
	Message struct {
		Identity string   `json:"identity"`
		JobID    string   `json:"job_id"`
		Type     string   `json:"message_type"`
		Event    string   `json:"event"`
		Progress *float64 `json:"progress,omitempty"`
		Text     string   `json:"text,omitempty"`
		Features []string `json:"features,omitempty"`
	} `json:"message"`
}

// anyEventJSON decodes events of any runner leniently.
type anyEventJSON struct {
	Message *struct {
		JobID    string   `json:"job_id"`
		Type     string   `json:"message_type"`
		Event    string   `json:"event"`
		Progress *float64 `json:"progress"`
		Text     text     `json:"text"`
		Features []string `json:"features"`
	} `json:"message"`
}

// EncodeEvent returns the frame with a runner's event. Text is cut to 4 KiB.
func EncodeEvent(e Event) ([]byte, error) {
	var m eventJSON
	m.Message.JobID, m.Message.Type, m.Message.Event = string(e.JobID), eventType, string(e.Kind)
	m.Message.Text, m.Message.Features = cutText(e.Text), e.Features
	if e.Kind == EventProgress {
		p := fraction(e.Progress)
		m.Message.Progress = &p
	}
	return marshal(m)
}

// DecodeEvent decodes a runner's event about a job.
func DecodeEvent(frame []byte) (Event, error) {
	var m anyEventJSON
	if err := unmarshal(frame, &m); err != nil {
		return Event{}, err
	}
	if m.Message == nil || m.Message.Type != eventType {
		return Event{}, fmt.Errorf("%w: expected %s", ErrMalformed, eventType)
	}
	kind := EventKind(m.Message.Event)
	if !slices.Contains([]EventKind{EventAccepted, EventProgress, EventLog}, kind) {
		return Event{}, fmt.Errorf("%w: event %q", ErrMalformed, m.Message.Event)
	}
	id, err := job.ParseID(m.Message.JobID)
	if err != nil {
		return Event{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	e := Event{Kind: kind, JobID: id, Text: cutText(string(m.Message.Text))}
	switch kind {
	case EventAccepted:
		e.Features = m.Message.Features[:min(len(m.Message.Features), maxEventFeatures)]
	case EventProgress:
		if m.Message.Progress == nil {
			return Event{}, fmt.Errorf("%w: progress without a number", ErrMalformed)
		}
		e.Progress = fraction(*m.Message.Progress)
	}
	return e, nil
}

func fraction(p float64) float64 {
	if math.IsNaN(p) {
		return 0
	}
	return max(0, min(p, 1))
}

// cutText cuts s to maxEventText bytes and makes it valid UTF-8.
func cutText(s string) string {
	if len(s) > maxEventText {
		s = s[:maxEventText]
	}
	return strings.ToValidUTF8(s, "\ufffd")
}

type cancelJSON struct {
	Message struct {
		Identity string `json:"identity"`
		JobID    string `json:"job_id"`
		Type     string `json:"message_type"`
	} `json:"message"`
}

// EncodeCancel returns the frame that asks a runner to cancel a job. It may be sent only to
// runners that announced FeatureCancel for the job.
func EncodeCancel(id job.ID) ([]byte, error) {
	var m cancelJSON
	m.Message.JobID, m.Message.Type = string(id), cancelType
	return marshal(m)
}

// DecodeCancel decodes a frame of EncodeCancel.
func DecodeCancel(frame []byte) (job.ID, error) {
	var m cancelJSON
	if err := unmarshal(frame, &m); err != nil {
		return "", err
	}
	if m.Message.Type != cancelType {
		return "", fmt.Errorf("%w: type %q, expected %s", ErrMalformed, m.Message.Type, cancelType)
	}
	id, err := job.ParseID(m.Message.JobID)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return id, nil
}
