package messenger_test

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
)

// The original's runner rejects an InputMessage with any other field.
func TestInputGolden(t *testing.T) {
	for _, c := range []struct {
		in   messenger.Input
		want string
	}{
		{messenger.Input{JobID: "job-1", IODataRoot: "/srv/shepherd-data/bare_sheep"},
			`{"message":{"identity":"","job_id":"job-1","message_type":"InputMessage","io_data_root":"/srv/shepherd-data/bare_sheep"}}`},
		{messenger.Input{JobID: "J.2_x", IODataRoot: `/srv/R&D <new> "é"/š`},
			`{"message":{"identity":"","job_id":"J.2_x","message_type":"InputMessage","io_data_root":"/srv/R&D <new> \"é\"/š"}}`},
	} {
		frame, err := messenger.EncodeInput(c.in)
		if err != nil || string(frame) != c.want {
			t.Errorf("got  %s, %v\nwant %s", frame, err, c.want)
		}
		if back, err := messenger.DecodeInput(frame); err != nil || back != c.in {
			t.Errorf("decoded to %+v, %v; expected %+v", back, err, c.in)
		}
	}
}

func TestAnswerGolden(t *testing.T) {
	for _, c := range []struct {
		answer messenger.Answer
		want   string
	}{
		{messenger.Answer{JobID: "job-1"},
			`{"message":{"identity":"","job_id":"job-1","message_type":"DoneMessage"}}`},
		{messenger.Answer{JobID: "job-1", Failure: &job.Failure{Message: "KeyError: 'key'", Type: "<class 'KeyError'>", Traceback: `['  File "x.py"\n']`}},
			`{"message":{"identity":"","job_id":"job-1","message_type":"ErrorMessage","message":"KeyError: 'key'","exception_type":"<class 'KeyError'>","exception_traceback":"['  File \"x.py\"\\n']"}}`},
	} {
		frame, err := messenger.EncodeAnswer(c.answer)
		if err != nil || string(frame) != c.want {
			t.Errorf("got  %s, %v\nwant %s", frame, err, c.want)
		}
		same(t, frame, c.answer)
	}
}

func same(t *testing.T, frame []byte, want messenger.Answer) {
	t.Helper()
	got, err := messenger.DecodeAnswer(frame)
	if err != nil {
		t.Errorf("%s: %v", frame, err)
		return
	}
	if got.JobID != want.JobID || (got.Failure == nil) != (want.Failure == nil) || got.Failure != nil && *got.Failure != *want.Failure {
		t.Errorf("%s\ngot  %+v %+v\nwant %+v %+v", frame, got, got.Failure, want, want.Failure)
	}
}

// What Python's json.dumps and other writers make of the same message.
func TestAnswersOfOtherWriters(t *testing.T) {
	failed := func(message, typ, traceback string) messenger.Answer {
		return messenger.Answer{JobID: "job-1", Failure: &job.Failure{Message: message, Type: typ, Traceback: traceback}}
	}
	for frame, want := range map[string]messenger.Answer{
		`{"message": {"identity": "", "job_id": "job-1", "message_type": "DoneMessage"}}`:                                                        {JobID: "job-1"},
		"\n{ \"message\" :\t{\"message_type\":\"DoneMessage\",\"job_id\":\"job-1\"} }\n":                                                         {JobID: "job-1"},
		`{"message": {"identity": null, "job_id": "job-1", "message_type": "DoneMessage", "extra": [1, {}]}, "more": 1}`:                         {JobID: "job-1"},
		`{"message": {"job_id": "\u006aob-1", "message_type": "DoneMessage"}}`:                                                                   {JobID: "job-1"},
		`{"message": {"job_id": "job-1", "message_type": "ErrorMessage", "message": "chyba: \u017elu\u0165", "exception_type": null}}`:           failed("chyba: žluť", "", ""),
		`{"message": {"job_id": "job-1", "message_type": "ErrorMessage", "message": "\ud83d\ude00 \ud83d", "exception_traceback": ""}}`:          failed("😀 \ufffd", "", ""),
		`{"message": {"job_id": "job-1", "message_type": "ErrorMessage", "message": null, "exception_type": null, "exception_traceback": null}}`: failed("the runner reported an error without a message", "", ""),
		`{"message": {"job_id": "job-1", "message_type": "ErrorMessage", "message": 7, "exception_traceback": ["a", "b"]}}`:                      failed("7", "", `["a", "b"]`),
		"{\"message\": {\"job_id\": \"job-1\", \"message_type\": \"ErrorMessage\", \"message\": \"\xff\"}}":                                      failed("\ufffd", "", ""),
	} {
		same(t, []byte(frame), want)
	}
}

func TestMalformed(t *testing.T) {
	for _, frame := range []string{
		"", "null", "[]", "7", `"x"`, "{", "{}", "hello", "\x00", `{"message": null}`, `{"message": []}`, `{"message": {}}`,
		`{"message": {"job_id": null, "message_type": "DoneMessage"}}`,
		`{"message": {"job_id": 7, "message_type": "DoneMessage"}}`,
		`{"message": {"job_id": "", "message_type": "DoneMessage"}}`,
		`{"message": {"job_id": "../x", "message_type": "DoneMessage"}}`,
		`{"message": {"job_id": "a/b", "message_type": "InputMessage", "io_data_root": "/x"}}`,
		`{"message": {"job_id": "job-1"}}`,
		`{"message": {"job_id": "job-1", "message_type": "NoSuchMessage"}}`,
		`{"message": {"job_id": "job-1", "message_type": "DoneMessage"}} trailing`,
		strings.Repeat(`{"message":`, 100000),
		`{"message": {"job_id": "job-1", "message_type": "DoneMessage", "pad": "` + strings.Repeat("x", messenger.MaxMessage) + `"}}`,
	} {
		if a, err := messenger.DecodeAnswer([]byte(frame)); !errors.Is(err, messenger.ErrMalformed) {
			t.Errorf("answer %.80q: %+v, %v", frame, a, err)
		}
		if in, err := messenger.DecodeInput([]byte(frame)); !errors.Is(err, messenger.ErrMalformed) {
			t.Errorf("input %.80q: %+v, %v", frame, in, err)
		}
	}
}

// A Python peer reads what we write, field for field.
func TestPythonReadsWhatWeWrite(t *testing.T) {
	python := testenv.Command(t, "python3", "python3")
	frame, err := messenger.EncodeInput(messenger.Input{JobID: "job-1", IODataRoot: "/srv/č <&>"})
	if err != nil {
		t.Fatal(err)
	}
	const check = `
import json, sys
assert json.loads(sys.stdin.buffer.read().decode("utf-8")) == {"message": {
    "identity": "", "job_id": "job-1", "message_type": "InputMessage", "io_data_root": "/srv/č <&>"}}`
	cmd := exec.Command(python, "-X", "utf8", "-c", check)
	cmd.Stdin = strings.NewReader(string(frame))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// FuzzDecodeAnswer: whatever comes is an answer that means the same when it is
// written and read again, or an ErrMalformed.
func FuzzDecodeAnswer(f *testing.F) {
	f.Add([]byte(`{"message": {"identity": "", "job_id": "job-1", "message_type": "DoneMessage"}}`))
	f.Add([]byte(`{"message": {"job_id": "job-1", "message_type": "ErrorMessage", "message": "\ud83d", "exception_type": 7, "exception_traceback": null}}`))
	f.Add([]byte(`{"message": {"job_id": "../x", "message_type": "DoneMessage"}}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, frame []byte) {
		answer, err := messenger.DecodeAnswer(frame)
		if err != nil {
			if !errors.Is(err, messenger.ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		if _, err := job.ParseID(string(answer.JobID)); err != nil {
			t.Fatal(err)
		}
		if answer.Failure != nil && answer.Failure.Message == "" {
			t.Fatal("a failure without a message")
		}
		again, err := messenger.EncodeAnswer(answer)
		if err != nil {
			t.Fatal(err)
		}
		if len(again) > messenger.MaxMessage {
			return // replacement characters are longer than what they replace
		}
		// What was not UTF-8 is replaced by the first writing.
		if answer.Failure != nil {
			for _, s := range []*string{&answer.Failure.Message, &answer.Failure.Type, &answer.Failure.Traceback} {
				*s = strings.ToValidUTF8(*s, "\ufffd")
			}
		}
		same(t, again, answer)
	})
}

// FuzzDecodeInput: whatever comes is an input that survives being written, or an
// ErrMalformed.
func FuzzDecodeInput(f *testing.F) {
	f.Add([]byte(`{"message": {"identity": "", "job_id": "job-1", "message_type": "InputMessage", "io_data_root": "/srv/data"}}`))
	f.Add([]byte(`{"message": {"job_id": null}}`))
	f.Add([]byte(`{"message": {"job_id": "job-1", "message_type": "InputMessage", "io_data_root": "/srv/\ud800", "extra": [1e400]}}`))
	f.Add([]byte(`{"message": {"job_id": "..", "message_type": "InputMessage", "io_data_root": ""}}`))
	f.Add([]byte(`{"message": {"job_id": "a", "job_id": "b", "message_type": "DoneMessage"}}`))
	f.Add([]byte(`{"message": []}`))
	f.Fuzz(func(t *testing.T, frame []byte) {
		in, err := messenger.DecodeInput(frame)
		if err != nil {
			if !errors.Is(err, messenger.ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		again, err := messenger.EncodeInput(in)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := messenger.DecodeInput(again); err != nil || back != in {
			t.Fatalf("%+v became %+v, %v", in, back, err)
		}
	})
}
