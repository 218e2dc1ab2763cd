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

// EventKind is what an Event tells.
type EventKind string

// The kinds of events.
const (
	// EventReady: the runner takes jobs. It has no job.
	EventReady EventKind = "ready"
	// EventGiven: the job was sent to the runner. Log is where its lines begin, as
	// Answer.Log has it at the end. It comes of any runner.
	EventGiven EventKind = "given"
	// EventAccepted: the runner has begun the job. Features says what more it can
	// be told about it.
	EventAccepted EventKind = "accepted"
	// EventProgress: Progress is how much of the job is done, Text at what it is.
	EventProgress EventKind = "progress"
	// EventLog: Text is a line for the job's log.
	EventLog EventKind = "log"
	// EventWarning: Text says what happened to the runner, as Answer.Warnings will.
	// It comes of any runner, and has no job where none was under way.
	EventWarning EventKind = "warning"
)

// Event is what a runner tells of its work, unasked.
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

// FeatureCancel says that a runner understands CancelMessage for a job.
const FeatureCancel = "cancel"

// EnvFeatures is the variable by which a runner is told what the other side
// understands, separated by spaces: FeatureEvents. A runner that is not told so
// says nothing but its answers, as the original shepherd expects it.
const EnvFeatures = "SHEPHERD_FEATURES"

// FeatureEvents in EnvFeatures says that the runner may send events.
const FeatureEvents = "events"

// EventSource is a Conn that passes the runner's events on. Events are for
// people: they may be dropped, and never hold answers up.
type EventSource interface {
	// RecvEvent waits for the next event. Of progress that nobody received, the
	// latest is kept; of other events some hundred. After the runner's end it
	// returns ErrClosed.
	RecvEvent(ctx context.Context) (Event, error)
}

// Canceller is a Conn that can ask its runner to give a job up.
type Canceller interface {
	// Cancel asks the runner to give the job up that is under way. It does not
	// wait for it: an answer still comes by Recv, a failure of type CancelledType
	// where the runner did give it up. The error is of class
	// errdefs.ErrNotImplemented where the runner has not announced that it can,
	// and of class errdefs.ErrNotFound where the job is not under way.
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

// anyEventJSON reads events of other writers.
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

// EncodeEvent is the frame by which a runner tells an event. Text is cut to 4
// KiB.
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

// DecodeEvent reads an event of a runner about one of its jobs.
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

// cutText cuts s to what an event may have, as valid UTF-8.
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

// EncodeCancel is the frame that asks a runner to give a job up. It goes only to
// runners that announced FeatureCancel for the job.
func EncodeCancel(id job.ID) ([]byte, error) {
	var m cancelJSON
	m.Message.JobID, m.Message.Type = string(id), cancelType
	return marshal(m)
}

// DecodeCancel reads what EncodeCancel wrote.
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
