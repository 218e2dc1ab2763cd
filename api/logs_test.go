package api

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/iterait/shepherd/job"
)

func TestLogs(t *testing.T) {
	h := newHarness(t)
	h.expect(h.get("/sheep/wolf/logs"), 400, "{\"message\": \"Unknown sheep id `wolf`\"}")
	var asked []job.LogQuery
	h.service.logs = func(_ context.Context, sheep string, q job.LogQuery) (io.ReadCloser, error) {
		asked = append(asked, q)
		if sheep != "a b" {
			return nil, job.ErrNoLog
		}
		return io.NopCloser(strings.NewReader("one\ntwo\n")), nil
	}
	h.expect(h.get("/sheep/x/logs"), 404, `{"message": "This sheep keeps no log"}`)
	asked = nil
	for query, want := range map[string]job.LogQuery{
		"": {Tail: -1}, "?tail=all": {Tail: -1}, "?tail=0": {}, "?tail=12&follow=false": {Tail: 12},
		"?tail=99999999999999999999999&follow=0": {Tail: int(^uint(0) >> 1)}, "?follow": {Tail: -1, Follow: true},
		"?follow=": {Tail: -1, Follow: true}, "?follow=true&tail=1": {Tail: 1, Follow: true}, "?follow=1": {Tail: -1, Follow: true},
	} {
		got := h.get("/sheep/a%20b/logs" + query)
		if got.status != 200 || got.body != "one\ntwo\n" || got.header.Get("Content-Type") != "text/plain; charset=utf-8" {
			t.Errorf("%q: %d %q %v", query, got.status, got.body, got.header)
		}
		if len(asked) != 1 || asked[0] != want {
			t.Errorf("%q asks for %+v, want %+v", query, asked, want)
		}
		asked = nil
	}
	for _, query := range []string{"?tail=-1", "?tail=x", "?tail=", "?tail=1.5", "?follow=yes", "?tail=1&tail=2"} {
		if got := h.get("/sheep/a%20b/logs" + query); got.status != 400 || len(asked) > 0 {
			t.Errorf("%q: %d %s", query, got.status, got.body)
		}
	}
	if got := h.do(http.MethodHead, "/sheep/a%20b/logs", ""); got.status != 200 || got.body != "" {
		t.Errorf("HEAD: %d %q", got.status, got.body)
	}
}

// A job's log is asked for as a sheep's is.
func TestJobLogs(t *testing.T) {
	h := newHarness(t)
	h.service.add("job-1", job.Processing)
	h.problem(h.get("/jobs/other/logs"), 404, "unknown-job", "Data for job `other` does not exist")
	h.problem(h.get("/jobs/job-1/logs"), 404, "no-log", "No log of this job is kept")
	var asked []job.LogQuery
	h.service.jobLogs = func(_ context.Context, id job.ID, q job.LogQuery) (io.ReadCloser, error) {
		asked = append(asked, q)
		return io.NopCloser(strings.NewReader("one of " + string(id) + "\n")), nil
	}
	for query, want := range map[string]job.LogQuery{"": {Tail: -1}, "?tail=3&follow": {Tail: 3, Follow: true}} {
		got := h.get("/jobs/job-1/logs" + query)
		if got.status != 200 || got.body != "one of job-1\n" || got.header.Get("Content-Type") != "text/plain; charset=utf-8" || len(asked) != 1 || asked[0] != want {
			t.Errorf("%q: %d %q %v, asked for %+v", query, got.status, got.body, got.header, asked)
		}
		asked = nil
	}
	if got := h.get("/jobs/job-1/logs?tail=x"); got.status != 400 || len(asked) > 0 {
		t.Errorf("%d %s", got.status, got.body)
	}
}

// A follower gets each line as it comes, and its leaving ends the reading.
func TestLogsFollow(t *testing.T) {
	h := newHarness(t)
	in, out := io.Pipe()
	left := make(chan struct{})
	h.service.logs = func(ctx context.Context, _ string, _ job.LogQuery) (io.ReadCloser, error) {
		context.AfterFunc(ctx, func() {
			in.CloseWithError(context.Cause(ctx))
			close(left)
		})
		return in, nil
	}
	ctx, leave := context.WithCancel(t.Context())
	request, err := http.NewRequestWithContext(ctx, "GET", h.url+"/sheep/a/logs?follow", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := h.client.Do(request) // answers before there is anything to read
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	lines := bufio.NewReader(response.Body)
	for _, line := range []string{"one\n", "two\n"} {
		if _, err := io.WriteString(out, line); err != nil {
			t.Fatal(err)
		}
		if got, err := lines.ReadString('\n'); got != line || err != nil {
			t.Fatalf("read %q, %v; want %q", got, err, line)
		}
	}
	leave()
	receive(t, left, "the log is not left")
}

// A log that cannot be read on must not look whole.
func TestLogsBrokenOff(t *testing.T) {
	h := newHarness(t)
	h.service.logs = func(context.Context, string, job.LogQuery) (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(strings.NewReader("one\n"), failing{errors.New("I/O error")})), nil
	}
	response, err := h.client.Get(h.url + "/sheep/a/logs")
	if err == nil {
		defer response.Body.Close()
		_, err = io.ReadAll(response.Body)
	}
	if err == nil {
		t.Error("a broken log was read to its end")
	}
	if !strings.Contains(h.log.String(), "I/O error") {
		t.Errorf("the cause is not in the log: %s", h.log)
	}
}
