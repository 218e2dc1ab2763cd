package messenger

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/iterait/shepherd/job"
)

// MaxMessage is the largest message in bytes, in both directions. A runner's traceback is
// the only part that can be long.
const MaxMessage = 4 << 20

// ErrMalformed is wrapped by every error that Decode functions return.
var ErrMalformed = errors.New("malformed message")

const (
	inputType = "InputMessage"
	doneType  = "DoneMessage"
	errorType = "ErrorMessage"
)

// The field order is the original's.
type inputJSON struct {
	Message struct {
		Identity   string `json:"identity"`
		JobID      string `json:"job_id"`
		Type       string `json:"message_type"`
		IODataRoot string `json:"io_data_root"`
	} `json:"message"`
}

type doneJSON struct {
	Message struct {
		Identity string `json:"identity"`
		JobID    string `json:"job_id"`
		Type     string `json:"message_type"`
	} `json:"message"`
}

type errorJSON struct {
	Message struct {
		Identity  string `json:"identity"`
		JobID     string `json:"job_id"`
		Type      string `json:"message_type"`
		Message   string `json:"message"`
		ExcType   string `json:"exception_type"`
		Traceback string `json:"exception_traceback"`
	} `json:"message"`
}

// answerJSON reads both kinds of answer; fields may be null, and unknown ones
// are ignored.
type answerJSON struct {
	Message *struct {
		JobID     *string `json:"job_id"`
		Type      string  `json:"message_type"`
		Message   text    `json:"message"`
		ExcType   text    `json:"exception_type"`
		Traceback text    `json:"exception_traceback"`
	} `json:"message"`
}

// text is a string that accepts any JSON value: null is empty, and a value that is not a
// string is kept as JSON. So an answer whose traceback is, for example, a list of lines is
// not rejected, which would leave the job waiting.
type text string

func (t *text) UnmarshalJSON(data []byte) error {
	var s string
	if err := json.Unmarshal(data, &s); err != nil {
		s = string(data)
	}
	*t = text(s)
	return nil
}

// EncodeInput returns the frame that sends a job to a runner.
func EncodeInput(in Input) ([]byte, error) {
	var m inputJSON
	m.Message.JobID, m.Message.Type, m.Message.IODataRoot = string(in.JobID), inputType, in.IODataRoot
	return marshal(m)
}

// DecodeInput decodes a frame of EncodeInput.
func DecodeInput(frame []byte) (Input, error) {
	var m inputJSON
	if err := unmarshal(frame, &m); err != nil {
		return Input{}, err
	}
	if m.Message.Type != inputType {
		return Input{}, fmt.Errorf("%w: type %q, expected %s", ErrMalformed, m.Message.Type, inputType)
	}
	id, err := job.ParseID(m.Message.JobID)
	if err != nil {
		return Input{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return Input{JobID: id, IODataRoot: m.Message.IODataRoot}, nil
}

// EncodeAnswer returns the frame with a runner's answer.
func EncodeAnswer(a Answer) ([]byte, error) {
	if a.Failure == nil {
		var m doneJSON
		m.Message.JobID, m.Message.Type = string(a.JobID), doneType
		return marshal(m)
	}
	var m errorJSON
	m.Message.JobID, m.Message.Type = string(a.JobID), errorType
	m.Message.Message, m.Message.ExcType, m.Message.Traceback = a.Failure.Message, a.Failure.Type, a.Failure.Traceback
	return marshal(m)
}

// DecodeAnswer decodes a runner's answer.
func DecodeAnswer(frame []byte) (Answer, error) {
	var m answerJSON
	if err := unmarshal(frame, &m); err != nil {
		return Answer{}, err
	}
	if m.Message == nil || m.Message.JobID == nil {
		return Answer{}, fmt.Errorf("%w: no job id", ErrMalformed)
	}
	id, err := job.ParseID(*m.Message.JobID)
	if err != nil {
		return Answer{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	switch m.Message.Type {
	case doneType:
		return Answer{JobID: id}, nil
	case errorType:
		f := &job.Failure{Message: string(m.Message.Message), Type: string(m.Message.ExcType), Traceback: string(m.Message.Traceback)}
		if f.Message == "" {
			f.Message = "the runner reported an error without a message"
		}
		return Answer{JobID: id, Failure: f}, nil
	}
	return Answer{}, fmt.Errorf("%w: type %q, expected %s or %s", ErrMalformed, m.Message.Type, doneType, errorType)
}

// marshal encodes JSON without HTML escaping, like the original: an exception's type is
// <class 'KeyError'>.
func marshal(m any) ([]byte, error) {
	var frame bytes.Buffer
	encoder := json.NewEncoder(&frame)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(m); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(frame.Bytes(), []byte("\n")), nil
}

func unmarshal(frame []byte, into any) error {
	if len(frame) > MaxMessage {
		return fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrMalformed, len(frame), MaxMessage)
	}
	if err := json.Unmarshal(frame, into); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return nil
}
