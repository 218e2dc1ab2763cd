package job

import (
	"encoding/json"
	"fmt"
	"time"
)

// timeLayout is the original shepherd's format: ISO 8601, UTC without a zone, always six
// digits.
const timeLayout = "2006-01-02T15:04:05.000000"

// Status is a job as clients see it, over HTTP and in job_status.json. The JSON format is
// the original shepherd's: UTC times without a zone and with six digits, null for what is
// not known yet.
type Status struct {
	State      State
	Failure    *Failure
	Model      Model
	EnqueuedAt time.Time
	StartedAt  time.Time
	FinishedAt time.Time
	// Accepted is set if the job's place exists and the job is not in the queue yet; State
	// is Queued then. With a Failure the job was never queued: the place belongs to an
	// upload that is in progress or was interrupted.
	Accepted bool
}

// accepted is the original shepherd's value of the status in job_status.json of an Accepted
// job.
const accepted State = "accepted"

// Status returns the part of r that clients see.
func (r *Record) Status() Status {
	return Status{
		State: r.State, Failure: r.Failure, Model: r.Model,
		EnqueuedAt: r.EnqueuedAt, StartedAt: r.StartedAt, FinishedAt: r.FinishedAt,
	}
}

type statusJSON struct {
	Status       State        `json:"status"`
	ErrorDetails *failureJSON `json:"error_details"`
	Model        modelJSON    `json:"model"`
	EnqueuedAt   *string      `json:"enqueued_at"`
	StartedAt    *string      `json:"processing_started_at"`
	FinishedAt   *string      `json:"finished_at"`
}

// failureJSON and modelJSON write null where the original does.
type failureJSON struct {
	Message   string  `json:"message"`
	Type      *string `json:"exception_type"`
	Traceback *string `json:"exception_traceback"`
}

type modelJSON struct {
	Name    *string `json:"name"`
	Version *string `json:"version"`
}

// MarshalJSON writes s as the original does.
func (s Status) MarshalJSON() ([]byte, error) {
	out := statusJSON{
		Status:     s.State,
		Model:      modelJSON{Name: &s.Model.Name, Version: &s.Model.Version},
		EnqueuedAt: FormatTime(s.EnqueuedAt),
		StartedAt:  FormatTime(s.StartedAt),
		FinishedAt: FormatTime(s.FinishedAt),
	}
	if s.Accepted && s.State == Queued {
		out.Status = accepted
	}
	if s.Failure != nil {
		out.ErrorDetails = &failureJSON{Message: s.Failure.Message, Type: orNull(s.Failure.Type), Traceback: orNull(s.Failure.Traceback)}
	}
	return plain(out)
}

// UnmarshalJSON reads what MarshalJSON or the original wrote.
func (s *Status) UnmarshalJSON(data []byte) error {
	var in statusJSON
	if err := json.Unmarshal(data, &in); err != nil {
		return err
	}
	isAccepted := in.Status == accepted
	switch in.Status {
	case accepted:
		in.Status = Queued
	case Queued, Processing, Done, Failed, Cancelled:
	default:
		return fmt.Errorf("unknown job status %q", in.Status)
	}
	*s = Status{State: in.Status, Accepted: isAccepted, Model: Model{Name: orEmpty(in.Model.Name), Version: orEmpty(in.Model.Version)}}
	if in.ErrorDetails != nil {
		s.Failure = &Failure{Message: in.ErrorDetails.Message, Type: orEmpty(in.ErrorDetails.Type), Traceback: orEmpty(in.ErrorDetails.Traceback)}
	}
	for _, t := range []struct {
		text *string
		into *time.Time
	}{{in.EnqueuedAt, &s.EnqueuedAt}, {in.StartedAt, &s.StartedAt}, {in.FinishedAt, &s.FinishedAt}} {
		if t.text == nil {
			continue
		}
		parsed, err := time.ParseInLocation("2006-01-02T15:04:05", *t.text, time.UTC) // fractions of any length are accepted
		if err != nil {
			return fmt.Errorf("job status: %w", err)
		}
		*t.into = parsed
	}
	return nil
}

// FormatTime formats a time for clients: UTC without a zone, with six fractional digits. It
// returns nil for the zero time.
func FormatTime(t time.Time) *string {
	if t.IsZero() {
		return nil
	}
	s := t.UTC().Format(timeLayout)
	return &s
}

func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func orEmpty(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
