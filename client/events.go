package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"mime"
	"net/http"
	"strings"
	"time"
)

// longestEvent bounds a line of an event stream, in bytes.
const longestEvent = 4 << 20

// message is one of a stream of server-sent events; the form is that of the HTML standard
// (section 9.2).
type message struct {
	name string
	id   *string // nil where it has none
	data []byte
}

// messages are those of a stream, as they come.
func messages(from io.Reader) iter.Seq2[message, error] {
	return func(yield func(message, error) bool) {
		lines := bufio.NewScanner(from)
		lines.Buffer(nil, longestEvent)
		var m message
		for lines.Scan() {
			line := lines.Text()
			if line != "" {
				field, value, _ := strings.Cut(line, ":")
				value = strings.TrimPrefix(value, " ")
				switch field {
				case "event":
					m.name = value
				case "data":
					m.data = append(append(m.data, value...), '\n')
				case "id":
					m.id = &value
				}
				continue
			}
			m.data = bytes.TrimSuffix(m.data, []byte("\n"))
			if (len(m.data) > 0 || m.id != nil) && !yield(m, nil) {
				return
			}
			m = message{}
		}
		if err := lines.Err(); err != nil {
			yield(message{}, fmt.Errorf("read events: %w", err))
		}
	}
}

// Events are those of a response of FollowEvents or FollowJob, as they come; the
// caller closes the response's body. An event without data, which only moves the id on,
// has an Id alone.
func Events(from io.Reader) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		for m, err := range messages(from) {
			event := Event{Id: m.id}
			if err == nil && len(m.data) > 0 {
				if err = json.Unmarshal(m.data, &event); err != nil {
					err = fmt.Errorf("read an event: %w", err)
				}
			}
			if err != nil {
				yield(Event{}, err)
				return
			}
			if !yield(event, nil) {
				return
			}
		}
	}
}

// Follow returns events as they come, and connects again where the daemon goes away,
// with the id of the last event, so that none is missed. job names the job whose
// events they are, which end with it; empty is all jobs, whose events do not end.
// after is the id of the last event that the caller has; empty begins now, or with
// the job's oldest, and "oldest" with the oldest that is kept. It ends with ctx, whose
// error it yields, or with an answer that is an error.
func Follow(ctx context.Context, c *ClientWithResponses, job, after string) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		for pause := firstPause; ; pause = min(2*pause, longestPause) {
			response, err := follow(ctx, c, job, after)
			if err == nil && response.StatusCode == http.StatusNoContent {
				response.Body.Close()
				return
			}
			if err == nil {
				err = CheckStream(response)
			}
			if err == nil {
				var left, ended bool
				left, ended, err = relay(response.Body, &after, yield)
				response.Body.Close()
				if left || job != "" && err == nil && (ended || after == "") {
					return
				}
				pause = firstPause
			}
			var refused *StatusError
			if errors.As(err, &refused) && !mayPass(refused.Status) {
				yield(Event{}, err)
				return
			}
			if refused != nil {
				pause = max(pause, refused.RetryAfter)
			}
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				yield(Event{}, ctx.Err())
				return
			}
		}
	}
}

// CheckStream returns a *StatusError for the response to FollowEvents, FollowJob or FollowFlock
// that is no stream of events, such as the page of something between, and closes it.
func CheckStream(response *http.Response) error {
	given := response.Header.Get("Content-Type")
	kind, _, err := mime.ParseMediaType(given)
	if given == "" || err == nil && kind == "text/event-stream" {
		return nil
	}
	response.Body.Close()
	return &StatusError{Status: response.StatusCode, Message: fmt.Sprintf("what answers sends %q instead of events; is it a shepherd of this version?", given)}
}

// mayPass reports whether an error may be over soon: the daemon's own, and that of a proxy while
// the daemon is restarted.
func mayPass(status int) bool {
	switch status {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

const (
	firstPause   = 500 * time.Millisecond
	longestPause = 15 * time.Second
)

// follow asks for the events after one.
func follow(ctx context.Context, c *ClientWithResponses, job, after string) (*http.Response, error) {
	var begin *string
	if after != "" {
		begin = &after
	}
	if job == "" {
		return c.FollowEvents(ctx, &FollowEventsParams{After: begin})
	}
	return c.FollowJob(ctx, job, &FollowJobParams{After: begin})
}

// relay yields the events of one connection and keeps the id of the last. left says
// that the caller wants no more, ended that the last event was the end of a job's run;
// the error is that of the connection.
func relay(from io.Reader, after *string, yield func(Event, error) bool) (left, ended bool, err error) {
	for event, err := range Events(from) {
		if err != nil {
			return false, false, err
		}
		if event.Id != nil {
			*after = *event.Id
		}
		if event.Event == "" {
			continue
		}
		if !yield(event, nil) {
			return true, false, nil
		}
		ended = event.Event == "ended"
	}
	return false, ended, nil
}
