package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open returns a client of a server that ends with the test.
func open(t *testing.T, handler http.HandlerFunc) *ClientWithResponses {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	c, err := New(Config{Server: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.CloseIdle)
	return c
}

func TestStatusErrors(t *testing.T) {
	for _, test := range []struct {
		status          int
		body            string
		message, detail string
		kind, field     string
	}{
		{404, `{"type":"urn:shepherd:problem:unknown-job","title":"Not Found","status":404,"detail":"no","message":"no","request_id":"r","field":"f"}`, "no", "no", "urn:shepherd:problem:unknown-job", "f"},
		{500, `{"message":"m","detail":"the cause"}`, "m", "", "", ""},
		{502, `<html>`, "answers 502 Bad Gateway; a proxy is there", "", "", ""},
		{302, ``, "answers 302 Found; is it a shepherd", "", "", ""},
		{503, `{"message":`, "answers 503", "", "", ""},
	} {
		c := open(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "http://127.0.0.1:1/")
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(test.status)
			io.WriteString(w, test.body)
		})
		_, err := c.GetJobWithResponse(t.Context(), "a", &GetJobParams{})
		var e *StatusError
		if !errors.As(err, &e) || !Is(err, test.status) || !strings.Contains(e.Message, test.message) || e.RetryAfter.Seconds() != 7 || string(e.Body) != test.body {
			t.Errorf("%d %s: %+v", test.status, test.body, err)
			continue
		}
		if problem := e.Problem; (problem != nil) != (test.kind != "") || problem != nil && (problem.Type != test.kind || problem.Detail != test.detail || *problem.Field != test.field) {
			t.Errorf("%d %s: problem %+v", test.status, test.body, problem)
		}
	}
	c, err := New(Config{Server: "http://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	var away *UnreachableError
	if _, err := c.ListJobsWithResponse(t.Context(), &ListJobsParams{}); !errors.As(err, &away) || strings.Contains(err.Error(), "/jobs") {
		t.Errorf("nobody there: %v", err)
	}
}

// A form has the description and the files as they are, whatever their names.
func TestForm(t *testing.T) {
	names := []string{"a", "sub/b", `q"u\ote`, "ü ü", "line\nbreak"}
	form := NewForm(JobRequest{Labels: &map[string]string{"k": "v"}}, func(w *FormWriter) error {
		for _, name := range names {
			if err := w.File(name, strings.NewReader("of "+name)); err != nil {
				return err
			}
		}
		return nil
	})
	defer form.Close()
	_, params, err := mime.ParseMediaType(form.ContentType())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for parts := multipart.NewReader(form, params["boundary"]); ; {
		part, err := parts.NextPart()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(part)
		if err != nil {
			t.Fatal(err)
		}
		_, fields, err := mime.ParseMediaType(part.Header.Get("Content-Disposition"))
		if err != nil {
			t.Fatal(err)
		}
		if fields["name"] == "job" {
			var j JobRequest
			if err := json.Unmarshal(text, &j); err != nil || (*j.Labels)["k"] != "v" {
				t.Errorf("the description is %s", text)
			}
			continue
		}
		got = append(got, fields["filename"])
		if want := "of " + names[len(got)-1]; string(text) != want {
			t.Errorf("%q, want %q", text, want)
		}
	}
	names[4] = "line%0Abreak"
	if !slices.Equal(got, names) {
		t.Errorf("names %q, want %q", got, names)
	}
}

// A form that nobody reads to its end ends, and an error of its files is the reader's.
func TestFormEnds(t *testing.T) {
	form := NewForm(JobRequest{}, func(w *FormWriter) error { return w.File("a", strings.NewReader(strings.Repeat("x", 1<<20))) })
	if _, err := form.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	form.Close()
	broken := errors.New("broken")
	form = NewForm(JobRequest{}, func(*FormWriter) error { return broken })
	defer form.Close()
	if _, err := io.ReadAll(form); !errors.Is(err, broken) {
		t.Errorf("read %v", err)
	}
}

func TestEvents(t *testing.T) {
	var got []string
	for e, err := range Events(strings.NewReader("retry: 2000\n\n: alive\n\nid: 1\nevent: queued\ndata: {\"event\":\"queued\",\ndata: \"job_id\":\"a\"}\n\nid: 9\n\ndata:{\"event\":\"progress\",\"job_id\":\"a\"}\n\nid: 10\ndata: {")) {
		if err != nil {
			t.Fatal(err)
		}
		id := "-"
		if e.Id != nil {
			id = *e.Id
		}
		got = append(got, fmt.Sprintf("%s %s %s", id, e.Event, e.JobId))
	}
	if want := []string{"1 queued a", "9  ", "- progress a"}; !slices.Equal(got, want) {
		t.Errorf("read %q, want %q", got, want)
	}
	for _, err := range Events(strings.NewReader("data: {\n\n")) {
		if err == nil {
			t.Error("no error of data that is no JSON")
		}
	}
}

// transport answers requests without a network.
type transport func(*http.Request) (*http.Response, error)

func (f transport) Do(r *http.Request) (*http.Response, error) { return f(r) }

// Follow comes back with the last id after each kind of break, waits between tries,
// and ends with the job.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		event := func(id, kind string) string {
			return "id: " + id + "\ndata: {\"event\":\"" + kind + "\",\"job_id\":\"a\"}\n\n"
		}
		answers := []struct {
			after string
			text  string
			err   error
		}{
			{"", event("1", "queued"), nil},
			{"1", "", &UnreachableError{Server: "s", Err: io.ErrUnexpectedEOF}},
			{"1", "id: 5\n\n", nil},
			{"5", "", &StatusError{Status: 503, RetryAfter: 1}},
			{"5", "", &StatusError{Status: 502}},
			{"5", "", &StatusError{Status: 504}},
			{"5", event("6", "ended") + event("7", "queued"), nil},
			{"7", event("8", "ended"), nil},
		}
		asked := 0
		c, err := NewClientWithResponses("http://s", WithHTTPClient(transport(func(r *http.Request) (*http.Response, error) {
			a := answers[asked]
			asked++
			if got := r.URL.Query().Get("after"); got != a.after || r.URL.Path != "/jobs/a/events" {
				t.Errorf("request %d: %s", asked, r.URL)
			}
			return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(a.text))}, a.err
		})))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for e, err := range Follow(t.Context(), c, "a", "") {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, *e.Id+" "+string(e.Event))
		}
		if want := []string{"1 queued", "6 ended", "7 queued", "8 ended"}; !slices.Equal(got, want) || asked != len(answers) {
			t.Errorf("followed %q in %d requests", got, asked)
		}
	})
}

// Follow ends with an answer that no second try changes, and with its context.
func TestFollowEnds(t *testing.T) {
	c := open(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusGone)
		io.WriteString(w, `{"message":"gone"}`)
	})
	for _, err := range Follow(t.Context(), c, "", "3") {
		if !Is(err, http.StatusGone) {
			t.Errorf("ended with %v", err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range Follow(ctx, c, "", "3") {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
	}
}

// Neither stream takes a page for one of its connections.
func TestFollowPage(t *testing.T) {
	c := open(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, "<html>\n\nsign in\n\n</html>\n")
	})
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	page := func(err error) bool {
		return Is(err, http.StatusOK) && strings.Contains(err.Error(), `"text/html" instead of events`)
	}
	for _, job := range []string{"", "a"} {
		events := 0
		for event, err := range Follow(ctx, c, job, "") {
			if events++; !page(err) {
				t.Errorf("of job %q: %+v, %v", job, event, err)
			}
		}
		if events != 1 {
			t.Errorf("of job %q there were %d events", job, events)
		}
	}
	for change, err := range FollowFlock(ctx, c) {
		if !page(err) {
			t.Errorf("of the flock: %+v, %v", change, err)
			break
		}
	}
}

// An answer that switches protocols is an error, though nothing follows it and the connection
// stays open.
func TestSwitchedProtocol(t *testing.T) {
	over := make(chan struct{})
	c := open(t, func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: wool\r\n\r\n")
		<-over
	})
	defer close(over)
	ended := make(chan error, 1)
	go func() {
		_, err := c.ListJobsWithResponse(t.Context(), &ListJobsParams{})
		ended <- err
	}()
	select {
	case err := <-ended:
		if !Is(err, http.StatusSwitchingProtocols) {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("it waits for what follows")
	}
}

// FuzzEvents reads anything as a stream of events: it makes no difference how it comes
// in pieces, and a message that is written is read as the same.
func FuzzEvents(f *testing.F) {
	f.Add("id: 1\ndata: {}\n\n")
	f.Add(":\ndata\ndata: \n\nid\n\n")
	f.Add("retry: 1\n\nevent: flock\ndata: {\"sheep\":\ndata:  [] }\n\n: alive\n\ndata: [\n\n")
	f.Add("id: 1\r\ndata: {\"job_id\": \"j\", \"kind\": \"ended\"}\r\n\r\nid: 2")
	read := func(from io.Reader) (all []message) {
		for m, err := range messages(from) {
			if err == nil {
				all = append(all, m)
			}
		}
		return all
	}
	f.Fuzz(func(t *testing.T, text string) {
		want := read(strings.NewReader(text))
		if got := read(iotest.OneByteReader(strings.NewReader(text))); !reflect.DeepEqual(got, want) {
			t.Errorf("in pieces it is %+v, whole %+v", got, want)
		}
		var written strings.Builder
		for _, m := range want {
			if len(m.data) == 0 && m.id == nil {
				t.Errorf("a message of nothing: %+v", m)
			}
			fmt.Fprintf(&written, "event: %s\n", m.name)
			if len(m.data) > 0 {
				fmt.Fprintf(&written, "data: %s\n", strings.ReplaceAll(string(m.data), "\n", "\ndata: "))
			}
			if m.id != nil {
				fmt.Fprintf(&written, "id: %s\n", *m.id)
			}
			written.WriteByte('\n')
		}
		again := read(strings.NewReader(written.String()))
		same := func(a, b message) bool {
			return a.name == b.name && reflect.DeepEqual(a.id, b.id) && bytes.Equal(a.data, b.data)
		}
		if !strings.Contains(text, "\r") && !slices.EqualFunc(again, want, same) {
			t.Errorf("%+v is read again as %+v", want, again)
		}
		for _, err := range Events(strings.NewReader(text)) {
			if err != nil {
				return
			}
		}
	})
}

// The flock is followed over connections that break; an error that says no ends it.
func TestFollowFlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers := []struct {
			text string
			err  error
		}{
			{"retry: 1\n\nevent: flock\ndata: {\"sheep\": [{\"name\": \"a\"}]}\n\nevent: gpus\ndata: {\"driver\": \"550\"}\n\n", nil},
			{"", &UnreachableError{Server: "s", Err: io.ErrUnexpectedEOF}},
			{"event: alive\ndata: {}\n\nevent: jobs\ndata: {\"events\": [{\"job_id\": \"j\"}], \"skipped\": true}\n\n", nil},
			{"", &StatusError{Status: 503, RetryAfter: 1}},
			{"", &StatusError{Status: 502}},
			{"event: flock\ndata: [\n\n", nil},
			{"", &StatusError{Status: 403}},
		}
		asked := 0
		c, err := NewClientWithResponses("http://s", WithHTTPClient(transport(func(*http.Request) (*http.Response, error) {
			a := answers[asked]
			asked++
			return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(a.text))}, a.err
		})))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for change, err := range FollowFlock(t.Context(), c) {
			switch {
			case err != nil:
				got = append(got, "refused")
				if !Is(err, 403) {
					t.Errorf("it ended with %v", err)
				}
			case change.Flock != nil:
				got = append(got, "flock "+change.Flock.Sheep[0].Name)
			case change.GPUs != nil:
				got = append(got, "gpus "+*change.GPUs.Driver)
			case change.Jobs != nil:
				got = append(got, "jobs "+change.Jobs.Events[0].JobId)
			case change.Lost != nil:
				got = append(got, "lost")
			default:
				got = append(got, "alive")
			}
		}
		if want := []string{"flock a", "gpus 550", "lost", "lost", "alive", "jobs j", "lost", "lost", "lost", "lost", "refused"}; !slices.Equal(got, want) {
			t.Errorf("it brought %q, want %q", got, want)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		asked = 0
		for change, err := range FollowFlock(ctx, c) {
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("without a caller: %+v, %v", change, err)
			}
		}
	})
}
