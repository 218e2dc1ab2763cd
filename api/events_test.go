package api

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iterait/shepherd/internal/claims"
	"github.com/iterait/shepherd/job"
)

// sentEvent is one event of a stream, as a browser reads it.
type sentEvent struct {
	id, kind string
	data     Event
}

// readEvents reads a stream, by the rules of browsers; the last id is that of an event
// without data, too.
func readEvents(t *testing.T, stream string) (events []sentEvent, lastID string) {
	t.Helper()
	var e sentEvent
	var data string
	lines := bufio.NewScanner(strings.NewReader(stream))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		switch name {
		case "id":
			e.id, lastID = value, value
		case "event":
			e.kind = value
		case "data":
			data += value
		case "":
			if data != "" {
				if err := json.Unmarshal([]byte(data), &e.data); err != nil {
					t.Fatalf("%q: %v", data, err)
				}
				if string(e.data.Event) != e.kind || e.data.Id != nil && *e.data.Id != e.id {
					t.Errorf("event %s %q has the data %s", e.id, e.kind, data)
				}
				events = append(events, e)
			}
			e, data = sentEvent{}, ""
		case "retry":
		default:
			t.Errorf("an unknown line %q", lines.Text())
		}
	}
	return events, lastID
}

// told writes events as "ID KIND JOB".
func told(events []sentEvent) string {
	var b strings.Builder
	for _, e := range events {
		fmt.Fprintf(&b, "%s %s %s; ", e.id, e.kind, e.data.JobId)
	}
	return strings.TrimSuffix(b.String(), "; ")
}

// follower follows a stream in a bubble.
type follower struct {
	mu     sync.Mutex
	header http.Header
	status int
	text   strings.Builder
	leave  context.CancelFunc
	left   chan struct{}
}

func (f *follower) Header() http.Header { return f.header }
func (f *follower) WriteHeader(status int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status = status
}
func (f *follower) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.text.Write(p)
}
func (f *follower) Flush() {}

// got is what came so far, once all others have nothing to do.
func (f *follower) got() string {
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.text.String()
}

func (f *follower) stop() {
	f.leave()
	<-f.left
}

func follow(t *testing.T, handler http.Handler, path string, headers ...string) *follower {
	ctx, leave := context.WithCancel(t.Context())
	f := &follower{header: make(http.Header), leave: leave, left: make(chan struct{})}
	r := httptest.NewRequestWithContext(ctx, "GET", path, nil)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	go func() {
		defer close(f.left)
		handler.ServeHTTP(f, r)
	}()
	synctest.Wait()
	return f
}

func TestFollowEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := newFake()
		service.add("a", job.Queued)
		service.add("b", job.Queued)
		service.happens(job.Event{Job: "a", Kind: job.EventQueued, Run: 1})
		handler := New(Config{Service: service})
		now := follow(t, handler, "/events")
		oldest := follow(t, handler, "/events?after=oldest")
		resumed := follow(t, handler, "/events", "Last-Event-ID", "1")
		service.happens(job.Event{Job: "b", Kind: job.EventStarted, Run: 1, Attempt: 2, Sheep: "dolly", Node: "box", State: job.Processing})
		service.happens(job.Event{
			Job: "b", Kind: job.EventEnded, Run: 1, Attempt: 2, Sheep: "dolly", State: job.Failed, Cause: job.CauseError, Reason: "KeyError",
			Status: &job.Status{State: job.Failed, Failure: &job.Failure{Message: "KeyError", Type: "T", Traceback: "/srv/secret"}},
		})
		const later = "2 started b; 3 ended b"
		for name, c := range map[string]struct {
			f    *follower
			want string
		}{"now": {now, later}, "oldest": {oldest, "1 queued a; " + later}, "resumed": {resumed, later}} {
			events, _ := readEvents(t, c.f.got())
			if told(events) != c.want || c.f.status != 200 || c.f.header.Get("Content-Type") != "text/event-stream; charset=utf-8" {
				t.Errorf("%s: %d %s, want %s", name, c.f.status, told(events), c.want)
			}
			last := events[len(events)-1].data
			if last.Status != job.Failed || *last.Cause != "error" || last.ErrorDetails == nil || last.ErrorDetails.Message != "KeyError" || last.ErrorDetails.ExceptionTraceback != nil {
				t.Errorf("%s: ended as %+v", name, last)
			}
			c.f.stop()
		}
	})
}

// TestEventsUntilNow reads what there is, without waiting for more.
func TestEventsUntilNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := newFake()
		service.add("a", job.Queued)
		service.add("b", job.Queued)
		for range eventBatch {
			service.happens(job.Event{Job: "a", Kind: job.EventQueued, Run: 1})
		}
		service.happens(job.Event{Job: "b", Kind: job.EventQueued, Run: 1})
		handler := New(Config{Service: service})
		for path, want := range map[string]int{"/events?after=oldest": eventBatch + 1, "/events?": 0, "/jobs/a/events?after=oldest": eventBatch, "/jobs/b/events?": 1, "/events?after=256": 1} {
			f := follow(t, handler, path+"&follow=false")
			<-f.left // by itself
			if events, _ := readEvents(t, f.got()); f.status != 200 || len(events) != want {
				t.Errorf("%s: %d with %d events, want %d", path, f.status, len(events), want)
			}
		}
		if f := follow(t, handler, "/events?follow=no"); f.status != 400 || !strings.Contains(f.got(), "follow: must be true or false") {
			t.Errorf("%d %s", f.status, f.got())
		}
	})
}

// TestNewestEvents begins streams with the newest events: each goes on from there, and
// where the client says what it has, with that.
func TestNewestEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := newFake()
		config := Config{Service: service}
		asAdmin(&config)
		handler := New(config)
		service.add("mine", job.Queued).tenant = "wool"
		service.add("theirs", job.Queued).tenant = "meat"
		for range 3 {
			service.happens(job.Event{Job: "mine", Kind: job.EventDue})
			service.happens(job.Event{Job: "theirs", Kind: job.EventDue})
		}
		reader, wool := []string{"Authorization", "Bearer reader-token"}, []string{"Authorization", "Bearer wool-token"}
		follows := map[string]struct {
			f    *follower
			want string
		}{
			"newest":  {follow(t, handler, "/events?newest=2", reader...), "5 due mine; 6 due theirs; 7 queued mine"},
			"all":     {follow(t, handler, "/events?newest=256", wool...), "1 due mine; 3 due mine; 5 due mine; 7 queued mine"},
			"none":    {follow(t, handler, "/events?newest=0", reader...), "7 queued mine"},
			"resumed": {follow(t, handler, "/events?newest=2", append(reader, "Last-Event-ID", "3")...), "4 due theirs; 5 due mine; 6 due theirs; 7 queued mine"},
			"after":   {follow(t, handler, "/events?newest=2&after=5", reader...), "6 due theirs; 7 queued mine"},
		}
		service.happens(job.Event{Job: "mine", Kind: job.EventQueued})
		for name, one := range follows {
			events, last := readEvents(t, one.f.got())
			if told(events) != one.want || last != "7" {
				t.Errorf("%s: %s, and the last id %s; want %s", name, told(events), last, one.want)
			}
			one.f.stop()
		}
		once := follow(t, handler, "/events?newest=1&follow=false", reader...)
		<-once.left
		if events, _ := readEvents(t, once.got()); told(events) != "7 queued mine" {
			t.Errorf("once: %s", told(events))
		}
		for _, wrong := range []string{"-1", "257", "many"} {
			if w := send(t, handler, "GET", "/events?newest="+wrong, "", reader...); w.Code != 400 || !strings.Contains(w.Body.String(), "newest: must be a number from 0 to 256") {
				t.Errorf("%s: %d %s", wrong, w.Code, w.Body)
			}
		}
	})
}

// TestCutOffBeforeTheFirstEvent: a client that was cut off before anything happened knows
// where it was.
func TestCutOffBeforeTheFirstEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := newFake()
		service.add("a", job.Queued)
		for range 3 {
			service.happens(job.Event{Job: "a", Kind: job.EventDue})
		}
		handler := New(Config{Service: service})
		f := follow(t, handler, "/events")
		events, last := readEvents(t, f.got())
		f.stop()
		if len(events) != 0 || last != "3" {
			t.Fatalf("%s, and the last id is %q", told(events), last)
		}
		service.happens(job.Event{Job: "a", Kind: job.EventQueued}) // while it is away
		f = follow(t, handler, "/events", "Last-Event-ID", last)
		if events, _ := readEvents(t, f.got()); told(events) != "4 queued a" {
			t.Errorf("who comes back is told %s", told(events))
		}
		f.stop()
	})
}

// TestStreamsStayAlive looks at streams while nothing happens to what they follow:
// each goes on from where it was, though events of others were passed over.
func TestStreamsStayAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := newFake()
		service.add("a", job.Queued)
		service.add("b", job.Queued).tenant = "wool"
		handler := New(Config{Service: service})
		f := follow(t, handler, "/jobs/b/events")
		time.Sleep(keepAlive + time.Second)
		if got := f.got(); !strings.HasSuffix(got, "\n\n") || strings.Count(got, "\n\n") != 2 {
			t.Errorf("after a while there is %q", got)
		}
		before := f.got()
		for range 5 {
			service.happens(job.Event{Job: "a", Kind: job.EventDue})
		}
		service.change("b", func(*fakeJob) {}) // has the stream read
		time.Sleep(keepAlive)
		events, last := readEvents(t, strings.ReplaceAll(f.got()[len(before):], ": alive\n\n", ""))
		if len(events) != 0 || last != "5" {
			t.Errorf("%v, and the last id is %q", events, last)
		}
		f.stop()
	})
}

// TestManyEvents has more events than are read at a time.
func TestManyEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := newFake()
		service.add("a", job.Queued)
		const n = 3*eventBatch + 7
		for range n - 1 {
			service.happens(job.Event{Job: "a", Kind: job.EventDue})
		}
		service.happens(job.Event{Job: "a", Kind: job.EventEnded, State: job.Done})
		handler := New(Config{Service: service})
		f := follow(t, handler, "/jobs/a/events")
		<-f.left // by itself
		events, last := readEvents(t, f.got())
		if len(events) != n || last != fmt.Sprint(n) {
			t.Errorf("%d events, the last %s", len(events), last)
		}
		for i, e := range events {
			if e.id != fmt.Sprint(i+1) {
				t.Fatalf("event %d is %s", i, e.id)
			}
		}
	})
}

func TestFollowJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := newFake()
		service.add("a", job.Queued)
		service.add("b", job.Queued)
		service.happens(job.Event{Job: "a", Kind: job.EventQueued, Run: 1})
		service.happens(job.Event{Job: "b", Kind: job.EventQueued, Run: 1})
		handler := New(Config{Service: service})
		f := follow(t, handler, "/jobs/a/events")
		service.happens(job.Event{Job: "b", Kind: job.EventEnded, State: job.Done})
		service.happens(job.Event{Job: "a", Kind: job.EventStarted, State: job.Processing})
		f.got()
		// Progress is told at once, and then once a second.
		for i := range 5 {
			service.change("a", func(j *fakeJob) { j.progress = &job.Progress{Done: float64(i) / 10, Text: "counting", At: enqueued} })
			time.Sleep(300 * time.Millisecond)
		}
		f.got()
		service.happens(job.Event{Job: "a", Kind: job.EventEnded, State: job.Done})
		<-f.left
		events, last := readEvents(t, f.got())
		if got := told(events); got != "1 queued a; 4 started a;  progress a;  progress a; 5 ended a" || last != "5" {
			t.Errorf("%s, and the last id %s", got, last)
		}
		if p := events[2].data.Progress; p == nil || p.Done != 0 || events[3].data.Progress.Done < 0.3 || *p.Text != "counting" {
			t.Errorf("progress %+v, then %+v", p, events[3].data.Progress)
		}

		// A client that comes back when all is over is sent away.
		if w := send(t, handler, "GET", "/jobs/a/events", "", "Last-Event-ID", "5"); w.Code != 204 || w.Body.Len() != 0 {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		if events, _ := readEvents(t, send(t, handler, "GET", "/jobs/a/events", "", "Last-Event-ID", "3").Body.String()); told(events) != "4 started a; 5 ended a" {
			t.Errorf("from the third on: %s", told(events))
		}
	})
}

// TestEventsOfRuns follows a job that runs again: the end of the run before does not
// end the stream.
func TestEventsOfRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := newFake()
		service.add("a", job.Done)
		service.happens(job.Event{Job: "a", Kind: job.EventEnded, State: job.Done})
		service.happens(job.Event{Job: "a", Kind: job.EventQueued, State: job.Queued})
		f := follow(t, New(Config{Service: service}), "/jobs/a/events")
		service.happens(job.Event{Job: "a", Kind: job.EventEnded, State: job.Done})
		<-f.left
		if events, _ := readEvents(t, f.got()); told(events) != "1 ended a; 2 queued a; 3 ended a" {
			t.Errorf("%s", told(events))
		}
	})
}

func TestEventsRefused(t *testing.T) {
	h := newHarness(t)
	h.service.add("a", job.Done)
	for range 5 {
		h.service.happens(job.Event{Job: "a", Kind: job.EventDue})
	}
	h.service.pruned = 3
	for _, path := range []string{"/events", "/jobs/a/events"} {
		for _, id := range []string{"2", "99", "x"} {
			h.problem(h.get(path, "Last-Event-ID", id), 410, "events-gone", job.ErrEventsGone.Error())
			h.problem(h.get(path+"?after="+id), 410, "events-gone", job.ErrEventsGone.Error())
		}
		h.problem(h.get(path, "Last-Event-ID", strings.Repeat("1", 129)), 400, "invalid-request", "Last-Event-ID: is not the id of an event")
		if head := h.do(http.MethodHead, path, ""); head.status != 200 || head.body != "" {
			t.Errorf("HEAD %s: %d", path, head.status)
		}
	}
	h.problem(h.get("/jobs/nobody/events"), 404, "unknown-job", "Data for job `nobody` does not exist")
	h.service.down = &job.Unavailable{Service: "ledger", Problem: "is not reachable"}
	h.problem(h.get("/events"), 503, "unavailable", "The ledger is not reachable; try again later")
}

// TestEventsOfTenants: a tenant follows its own jobs alone.
func TestEventsOfTenants(t *testing.T) {
	claims.Hold(t, "C10")
	synctest.Test(t, func(t *testing.T) {
		service := newFake()
		config := Config{Service: service}
		asAdmin(&config)
		handler := New(config)
		service.add("mine", job.Queued).tenant = "wool"
		service.add("theirs", job.Queued).tenant = "meat"
		tenant := follow(t, handler, "/events", "Authorization", "Bearer wool-token")
		whole := follow(t, handler, "/events", "Authorization", "Bearer reader-token")
		service.happens(job.Event{Job: "theirs", Kind: job.EventDue})
		service.happens(job.Event{Job: "mine", Kind: job.EventDue})
		if events, _ := readEvents(t, tenant.got()); told(events) != "2 due mine" {
			t.Errorf("a tenant is told %s", told(events))
		}
		if events, _ := readEvents(t, whole.got()); told(events) != "1 due theirs; 2 due mine" {
			t.Errorf("who sees all is told %s", told(events))
		}
		tenant.stop()
		whole.stop()
	})
}

// TestIdleStreamsCostNothing has many streams while nothing happens: none reads the
// log.
func TestIdleStreamsCostNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := newFake()
		service.add("a", job.Queued)
		service.add("b", job.Queued)
		handler := New(Config{Service: service})
		var all []*follower
		for range 200 {
			all = append(all, follow(t, handler, "/events"), follow(t, handler, "/jobs/a/events"))
		}
		reads := service.reads.Load()
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := service.reads.Load(); got != reads {
			t.Errorf("the log was read %d times", got-reads)
		}
		service.happens(job.Event{Job: "b", Kind: job.EventDue})
		synctest.Wait()
		if got := service.reads.Load() - reads; got != 200 {
			t.Errorf("for one event of another job the log was read %d times", got)
		}
		for _, f := range all {
			f.stop()
		}
	})
}
