package messenger_test

import (
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/iterait/shepherd/messenger"
)

func TestEventGolden(t *testing.T) {
	for _, c := range []struct {
		event messenger.Event
		want  string
	}{
		{messenger.Event{Kind: messenger.EventAccepted, JobID: "job-1", Features: []string{messenger.FeatureCancel}},
			`{"message":{"identity":"","job_id":"job-1","message_type":"EventMessage","event":"accepted","features":["cancel"]}}`},
		{messenger.Event{Kind: messenger.EventProgress, JobID: "job-1", Progress: 0.4, Text: "<denoising> žluť"},
			`{"message":{"identity":"","job_id":"job-1","message_type":"EventMessage","event":"progress","progress":0.4,"text":"<denoising> žluť"}}`},
		{messenger.Event{Kind: messenger.EventProgress, JobID: "job-1"},
			`{"message":{"identity":"","job_id":"job-1","message_type":"EventMessage","event":"progress","progress":0}}`},
		{messenger.Event{Kind: messenger.EventLog, JobID: "job-1", Text: "epoch 1"},
			`{"message":{"identity":"","job_id":"job-1","message_type":"EventMessage","event":"log","text":"epoch 1"}}`},
	} {
		frame, err := messenger.EncodeEvent(c.event)
		if err != nil || string(frame) != c.want {
			t.Errorf("got  %s, %v\nwant %s", frame, err, c.want)
		}
		if back, err := messenger.DecodeEvent(frame); err != nil || !reflect.DeepEqual(back, c.event) {
			t.Errorf("decoded to %+v, %v", back, err)
		}
		if _, err := messenger.DecodeAnswer(frame); !errors.Is(err, messenger.ErrMalformed) {
			t.Errorf("an event is an answer: %v", err)
		}
	}
	frame, err := messenger.EncodeCancel("job-1")
	if want := `{"message":{"identity":"","job_id":"job-1","message_type":"CancelMessage"}}`; err != nil || string(frame) != want {
		t.Errorf("got %s, %v", frame, err)
	}
	if id, err := messenger.DecodeCancel(frame); err != nil || id != "job-1" {
		t.Errorf("got %s, %v", id, err)
	}
}

func TestEventBounds(t *testing.T) {
	for in, want := range map[float64]float64{-1: 0, 7: 1, math.Inf(1): 1, 0.25: 0.25} {
		frame, err := messenger.EncodeEvent(messenger.Event{Kind: messenger.EventProgress, JobID: "j", Progress: in, Text: strings.Repeat("ž", 10000)})
		if err != nil {
			t.Fatal(err)
		}
		if e, err := messenger.DecodeEvent(frame); err != nil || e.Progress != want || len(e.Text) > 4<<10+2 {
			t.Errorf("%v became %v, %d bytes, %v", in, e.Progress, len(e.Text), err)
		}
	}
	for _, frame := range []string{
		`{}`, `{"message": {"job_id": "j", "message_type": "EventMessage"}}`,
		`{"message": {"job_id": "j", "message_type": "EventMessage", "event": "ready"}}`,
		`{"message": {"job_id": "../j", "message_type": "EventMessage", "event": "log"}}`,
		`{"message": {"job_id": "j", "message_type": "EventMessage", "event": "progress"}}`,
		`{"message": {"job_id": "j", "message_type": "EventMessage", "event": "progress", "progress": "half"}}`,
		`{"message": {"job_id": "j", "message_type": "DoneMessage"}}`,
	} {
		if e, err := messenger.DecodeEvent([]byte(frame)); !errors.Is(err, messenger.ErrMalformed) {
			t.Errorf("%s: %+v, %v", frame, e, err)
		}
		if id, err := messenger.DecodeCancel([]byte(frame)); !errors.Is(err, messenger.ErrMalformed) {
			t.Errorf("%s: %s, %v", frame, id, err)
		}
	}
}

// FuzzDecodeEvent: whatever comes is an event within bounds that means the same
// when it is written and read again, or an ErrMalformed.
func FuzzDecodeEvent(f *testing.F) {
	f.Add([]byte(`{"message": {"job_id": "j", "message_type": "EventMessage", "event": "progress", "progress": 0.5, "text": "half"}}`))
	f.Add([]byte(`{"message": {"job_id": "j", "message_type": "EventMessage", "event": "accepted", "features": ["cancel"]}}`))
	f.Add([]byte(`{"message": {"job_id": "j", "message_type": "EventMessage", "event": "log", "text": "\u001b[31m\ud800", "progress": -1e308}}`))
	f.Add([]byte(`{"message": {"job_id": "j", "message_type": "EventMessage", "event": "progress", "progress": "0.5", "features": [1, null]}}`))
	f.Add([]byte(`{"message": {"job_id": "", "message_type": "EventMessage", "event": ""}}`))
	f.Fuzz(func(t *testing.T, frame []byte) {
		e, err := messenger.DecodeEvent(frame)
		if err != nil {
			if !errors.Is(err, messenger.ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		if !(e.Progress >= 0 && e.Progress <= 1) || len(e.Features) > 16 {
			t.Fatalf("%+v", e)
		}
		again, err := messenger.EncodeEvent(e)
		if err != nil {
			t.Fatal(err)
		}
		if len(again) > messenger.MaxMessage {
			return // replacement characters are longer than what they replace
		}
		back, err := messenger.DecodeEvent(again)
		if err != nil || back.Kind != e.Kind || back.JobID != e.JobID || back.Progress != e.Progress || len(back.Features) != len(e.Features) {
			t.Fatalf("%+v became %+v, %v", e, back, err)
		}
	})
}
