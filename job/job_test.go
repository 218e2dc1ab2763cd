package job

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/internal/claims"
)

func TestParseID(t *testing.T) {
	claims.Hold(t, "C12")
	for _, good := range []string{"a", "request_id", "355d7806-daf2-4249-8581-63b5fcf0d335", "A.b-c_9", strings.Repeat("x", MaxIDLength)} {
		if id, err := ParseID(good); err != nil || string(id) != good {
			t.Errorf("ParseID(%q) = %q, %v", good, id, err)
		}
	}
	for bad, says := range map[string]string{
		"": "empty", "..": "\"..\"", "a..b": "\"..\"", "/a": "'/'", "a/b": "'/'", "-a": "position 1", "ä": "position 1", "a b": "' '", "a\x00": "position 2",
		strings.Repeat("x", MaxIDLength+1): "at most 128",
	} {
		if _, err := ParseID(bad); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("ParseID(%q): %v, which does not say %s", bad, err, says)
		}
	}
}

func TestModelValidate(t *testing.T) {
	claims.Hold(t, "C12")
	for _, good := range []Model{{"m", "v1"}, {"my_project/models", ""}, {"a/b/c", "1.0"}, {"m", "sha256:abc"}} {
		if err := good.Validate(); err != nil {
			t.Errorf("%v: %v", good, err)
		}
	}
	for _, bad := range []Model{{"", "v1"}, {"../outside", "v1"}, {"a/../b", "v"}, {"/etc", "v"}, {"a//b", "v"}, {"a", "../v"}, {"a", "v/."}, {"a\x00", "v"}, {"a\\b", "v"}, {strings.Repeat("x", 256), "v"}} {
		if err := bad.Validate(); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

// The bytes are those of the original's job_status.json.
func TestStatusJSON(t *testing.T) {
	at := time.Date(2026, 11, 22, 10, 8, 3, 942214000, time.UTC)
	for _, c := range []struct {
		status Status
		want   string
	}{
		{
			Status{State: Done, Model: Model{"emloop-test", "test2"}, EnqueuedAt: at, StartedAt: at.Add(38792 * time.Microsecond), FinishedAt: at.Add(time.Second)},
			`{"status": "done", "error_details": null, "model": {"name": "emloop-test", "version": "test2"}, "enqueued_at": "2026-11-22T10:08:03.942214", "processing_started_at": "2026-11-22T10:08:03.981006", "finished_at": "2026-11-22T10:08:04.942214"}`,
		},
		{
			Status{State: Queued, Model: Model{"m", ""}, EnqueuedAt: at.Truncate(time.Second)},
			`{"status": "queued", "error_details": null, "model": {"name": "m", "version": ""}, "enqueued_at": "2026-11-22T10:08:03.000000", "processing_started_at": null, "finished_at": null}`,
		},
		{
			Status{State: Failed, Model: Model{"m", "v"}, Failure: &Failure{Message: `KeyError: 'a, "b": c\'`, Type: "<class 'KeyError'>", Traceback: "['x']"}},
			`{"status": "failed", "error_details": {"message": "KeyError: 'a, \"b\": c\\'", "exception_type": "<class 'KeyError'>", "exception_traceback": "['x']"}, "model": {"name": "m", "version": "v"}, "enqueued_at": null, "processing_started_at": null, "finished_at": null}`,
		},
		{
			Status{State: Failed, Model: Model{"m", "v"}, Failure: &Failure{Message: "died"}},
			`{"status": "failed", "error_details": {"message": "died", "exception_type": null, "exception_traceback": null}, "model": {"name": "m", "version": "v"}, "enqueued_at": null, "processing_started_at": null, "finished_at": null}`,
		},
	} {
		got, err := JSON(c.status)
		if err != nil || string(got) != c.want {
			t.Errorf("JSON is %s (%v)\nwant    %s", got, err, c.want)
		}
		var back Status
		if err := json.Unmarshal(got, &back); err != nil {
			t.Fatal(err)
		}
		if again, _ := JSON(back); string(again) != c.want {
			t.Errorf("read back: %s", again)
		}
	}
}

func FuzzStatus(f *testing.F) {
	f.Add([]byte(`{"status": "accepted", "model": {"name": null, "version": null}, "enqueued_at": "2026-11-22T10:08:03"}`))
	f.Add([]byte(`{"status": "done", "error_details": {"message": "x"}, "model": {}, "finished_at": "2026-11-22T10:08:03.5"}`))
	f.Add([]byte(`{"status": "processing", "model": {"name": "m", "version": "v"}, "enqueued_at": "2026-11-22T10:08:03.942214", "processing_started_at": "0001-01-01T00:00:00"}`))
	f.Add([]byte(`{"status": "failed", "model": {"name": "m", "version": "v"}, "error_details": {"message": "\ud83d", "exception_type": "E", "exception_traceback": "a\nb"}}`))
	f.Add([]byte(`{"status": 1, "model": null, "enqueued_at": "2026-11-22T10:08:03+01:00", "finished_at": "9999-12-31T23:59:59.999999999", "unknown": []}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var s Status
		if json.Unmarshal(data, &s) != nil {
			return
		}
		first, err := JSON(s)
		if err != nil {
			t.Skip() // a time that no layout can hold
		}
		var again Status
		if err := json.Unmarshal(first, &again); err != nil {
			t.Fatalf("%s is written but not read: %v", first, err)
		}
		if second, _ := JSON(again); string(first) != string(second) {
			t.Errorf("%s is read as %s", first, second)
		}
	})
}

func TestParseModel(t *testing.T) {
	for text, want := range map[string]Model{
		"digits:v1": {Name: "digits", Version: "v1"}, "a/b": {Name: "a/b"}, "a@sha256:0": {Name: "a", Version: "sha256:0"},
		"a:v1@sha256:0": {Name: "a", Version: "v1@sha256:0"}, "a:sha256:0": {Name: "a", Version: "sha256:0"},
	} {
		if got := ParseModel(text); got != want {
			t.Errorf("%s: %+v, want %+v", text, got, want)
		}
	}
}

// What the field's name says is not said again.
func TestInvalidSaysItOnce(t *testing.T) {
	_, id := ParseID("a b")
	_, empty := ParseID("")
	_, long := ParseID(strings.Repeat("x", MaxIDLength+1))
	for _, c := range []struct {
		field string
		err   error
		want  string
	}{
		{"job_id", id, `job_id: "a b" has ' ' at position 2; an id is made of letters, digits, '.', '_' and '-' and begins with a letter or digit`},
		{"job_id", empty, "job_id: is empty"},
		{"job_id", long, "job_id: has 129 characters, at most 128 are possible"},
		{"inputs[0].job", empty, "inputs[0].job: job id is empty"},
		{"model", Model{Name: "../x"}.Validate(), `model: name "../x" is not a relative path without empty, "." and ".." elements`},
		{"model.name", Model{Name: "../x"}.Validate(), `model.name: "../x" is not a relative path without empty, "." and ".." elements`},
		{"model.version", Model{Name: "x", Version: ".."}.Validate(), `model.version: ".." is not a relative path without empty, "." and ".." elements`},
		{"sheep_id", errors.New("sheep `a` fetches no models"), "sheep_id: sheep `a` fetches no models"},
	} {
		if got := (&Invalid{Field: c.field, Problem: c.err.Error()}).Error(); got != c.want {
			t.Errorf("%s\nwant %s", got, c.want)
		}
	}
}
