package api

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/job"
)

// EventService reads the durable log of what happens to jobs.
type EventService interface {
	// Events returns up to limit events after the cursor, in order, of one job or, where
	// id is empty, of all, of one tenant or, where that is empty, of all, and the cursor
	// to go on with. Fewer than limit are all there are. It returns job.ErrEventsGone
	// for a cursor that is too old or not the log's.
	Events(ctx context.Context, after job.Cursor, id job.ID, tenant string, limit int) ([]job.Event, job.Cursor, error)

	// NewestEvents returns the last events, at most as many as asked for, in order, of
	// one tenant or, where that is empty, of all, and the cursor to go on with.
	NewestEvents(ctx context.Context, tenant string, most int) ([]job.Event, job.Cursor, error)

	// EventsNow is the cursor of the latest event.
	EventsNow(ctx context.Context) (job.Cursor, error)

	// EventsChanged returns a channel that is closed when there may be an event that
	// there was not when it was called.
	EventsChanged() <-chan struct{}
}

// eventServer serves streams of events.
type eventServer struct {
	answers
	views
	jobIDs
	service interface {
		EventService
		Job(ctx context.Context, id job.ID) (job.Status, error)
		View(ctx context.Context, id job.ID) (job.View, error)
		Watch(id job.ID) (changed <-chan struct{}, stop func())
	}
}

const (
	// eventBatch is how many events are read at a time.
	eventBatch = 256
	// keepAlive is how often a stream without events shows that it lives.
	keepAlive = 15 * time.Second
	// progressEvery bounds how often a job's progress is told.
	progressEvery = time.Second
	// reconnect is how long browsers wait before they connect again.
	reconnect = 2 * time.Second
	// longestEventID bounds the ids of events that clients send, in bytes.
	longestEventID = 128
	// oldestEvent is the value of after that stands for the beginning of the log.
	oldestEvent = "oldest"
)

// FollowEvents answers GET /events.
func (s *eventServer) FollowEvents(w http.ResponseWriter, r *http.Request, params FollowEventsParams) {
	stream := eventStream{eventServer: s, tenant: access.From(r.Context()).Tenant}
	given, err := stream.begin(params.LastEventID, params.After, params.Follow)
	var newest int
	if err == nil {
		newest, err = newestWanted(params.Newest)
	}
	changed := s.service.EventsChanged() // before the log is read, so that no event falls between
	var events []job.Event
	var next job.Cursor
	switch {
	case err != nil:
	case given:
		events, next, err = stream.read(r.Context())
	case newest > 0:
		events, next, err = s.service.NewestEvents(r.Context(), stream.tenant, newest)
	default:
		next, err = s.service.EventsNow(r.Context())
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	stream.serve(w, r, events, next, changed)
}

// newestWanted is the number of the newest events that a stream begins with.
func newestWanted(given *string) (int, error) {
	if given == nil || *given == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(*given)
	if err != nil || n < 0 || n > eventBatch {
		return 0, &job.Invalid{Field: "newest", Problem: fmt.Sprintf("must be a number from 0 to %d", eventBatch)}
	}
	return n, nil
}

// FollowJob answers GET /jobs/{job_id}/events.
func (s *eventServer) FollowJob(w http.ResponseWriter, r *http.Request, rawID string, params FollowJobParams) {
	id, err := s.jobID(r, rawID)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	stream := eventStream{eventServer: s, tenant: access.From(r.Context()).Tenant, job: id}
	if _, err = stream.begin(params.LastEventID, params.After, params.Follow); err == nil {
		changed, stop := s.service.Watch(id) // before the log is read, so that no change falls between
		defer stop()
		stream.watch = changed
		var status job.Status
		status, err = s.service.Job(r.Context(), id)
		stream.over = status.State.Final()
	}
	var events []job.Event
	var next job.Cursor
	if err == nil {
		events, next, err = stream.read(r.Context())
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	stream.serve(w, r, events, next, nil) // the job's own bell is enough
}

// eventStream is one client that follows events.
type eventStream struct {
	*eventServer
	tenant string
	job    job.ID          // that alone is followed; empty for all
	watch  <-chan struct{} // receives after a change of the job; nil where all are followed
	at     job.Cursor      // that the client has everything up to
	told   job.Cursor      // that the client was told last
	over   bool            // the job has ended, as far as the client knows
	once   bool            // the stream ends with the newest event

	progress     *job.Progress // that was told last
	nextProgress time.Time

	to *steadyWriter
}

// begin sets where the stream begins and whether it continues; given says that the client
// has named where.
func (e *eventStream) begin(header, query, follow *string) (given bool, err error) {
	if follow != nil {
		goesOn, err := flag("follow", follow)
		if err != nil {
			return false, err
		}
		e.once = !goesOn
	}
	named := header
	if named == nil || *named == "" {
		named = query
	}
	switch {
	case named == nil || *named == "":
		return false, nil
	case len(*named) > longestEventID:
		return false, &job.Invalid{Field: "Last-Event-ID", Problem: "is not the id of an event"}
	case named == query && *named == oldestEvent:
		return true, nil
	}
	e.at = job.Cursor(*named)
	return true, nil
}

// read returns the next events of the log, and where to go on.
func (e *eventStream) read(ctx context.Context) ([]job.Event, job.Cursor, error) {
	return e.service.Events(ctx, e.at, e.job, e.tenant, eventBatch)
}

// serve answers with the stream, which begins with the events and goes on at next once
// changed is closed.
func (e *eventStream) serve(w http.ResponseWriter, r *http.Request, events []job.Event, next job.Cursor, changed <-chan struct{}) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	if e.at != "" && e.over && len(events) == 0 {
		w.WriteHeader(http.StatusNoContent) // which tells browsers not to come back
		return
	}
	h.Set("Content-Type", "text/event-stream; charset=utf-8")
	h.Set("X-Accel-Buffering", "no") // proxies that know it pass events on as they come
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return
	}
	unbounded(w)
	e.to = &steadyWriter{to: w, control: http.NewResponseController(w)}
	if _, err := fmt.Fprintf(e.to, "retry: %d\n\n", reconnect.Milliseconds()); err != nil {
		return
	}
	e.told = e.at
	err := e.follow(r.Context(), events, next, changed)
	switch {
	case e.to.err != nil || r.Context().Err() != nil: // the client has left, or the daemon is going
	case err != nil:
		e.log.WarnContext(r.Context(), "event stream ended", "path", r.URL.Path, "request", requestID(r.Context()), "error", err)
	}
	_ = e.to.control.Flush()
	_ = e.to.control.SetWriteDeadline(time.Time{})
}

// follow sends events until the job has ended, the client leaves or an error.
func (e *eventStream) follow(ctx context.Context, events []job.Event, next job.Cursor, changed <-chan struct{}) error {
	alive := time.NewTicker(keepAlive)
	defer alive.Stop()
	progress := time.NewTimer(0)
	defer progress.Stop()
	for {
		if err := e.send(events); err != nil {
			return err
		}
		more := len(events) == eventBatch
		e.at, events = next, nil
		if e.told == "" && e.job == "" { // who is cut off before the first event comes back to here
			if err := e.tellPlace(); err != nil {
				return err
			}
		}
		if !more {
			if e.over || e.once {
				return nil
			}
			if err := e.to.control.Flush(); err != nil {
				return err
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-changed:
			case <-e.watch:
				progress.Reset(time.Until(e.nextProgress))
			case <-progress.C:
				if err := e.sendProgress(ctx); err != nil {
					return err
				}
				continue
			case <-alive.C:
				if err := e.sendAlive(); err != nil {
					return err
				}
				continue
			}
		}
		if e.watch == nil {
			changed = e.service.EventsChanged()
		}
		var err error
		if events, next, err = e.read(ctx); err != nil {
			return err
		}
	}
}

// send sends events of the log.
func (e *eventStream) send(events []job.Event) error {
	for _, event := range events {
		shown := e.shownEvent(event)
		shown.Id = new(string(event.Cursor))
		if err := e.write(string(event.Cursor), shown); err != nil {
			return err
		}
		e.told = event.Cursor
		if e.job != "" {
			e.over = event.Kind == job.EventEnded
		}
	}
	return nil
}

// write sends one event; id is empty for one that is not in the log.
func (e *eventStream) write(id string, event Event) error {
	text, err := job.JSON(event)
	if err != nil {
		return fmt.Errorf("write an event as JSON: %w", err)
	}
	if id != "" {
		id = "id: " + id + "\n"
	}
	_, err = fmt.Fprintf(e.to, "%sevent: %s\ndata: %s\n\n", id, event.Event, text)
	return err
}

// sendAlive shows that the stream lives, and how far the client has come: events of
// other jobs may have been skipped, and events are deleted after a time.
func (e *eventStream) sendAlive() error {
	var err error
	if e.at != e.told {
		err = e.tellPlace()
	} else {
		_, err = io.WriteString(e.to, ": alive\n\n")
	}
	if err != nil {
		return err
	}
	return e.to.control.Flush()
}

// tellPlace tells how far the client has come, without an event.
func (e *eventStream) tellPlace() error {
	e.told = e.at
	_, err := io.WriteString(e.to, "id: "+string(e.at)+"\n\n")
	return err
}

// sendProgress tells how far the job's runner is, where that is new.
func (e *eventStream) sendProgress(ctx context.Context) error {
	if e.job == "" {
		return nil
	}
	view, err := e.service.View(ctx, e.job)
	if _, gone := asError[*job.UnknownJob](err); gone {
		return nil
	}
	if err != nil {
		return err
	}
	if view.Progress == nil || e.progress != nil && *view.Progress == *e.progress {
		return nil
	}
	e.progress, e.nextProgress = view.Progress, time.Now().Add(progressEvery)
	shown := e.shownEvent(job.Event{
		Kind: job.EventProgress, At: view.Progress.At, Job: view.ID, Run: view.Run, Model: view.Model, Address: view.Record.Sheep,
		Attempt: view.Attempt, Node: view.Node, Sheep: view.Holder, State: view.State,
	})
	shown.Progress = shownProgress(view.Progress)
	if err := e.write("", shown); err != nil {
		return err
	}
	return e.to.control.Flush()
}
