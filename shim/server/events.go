package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/iterait/shepherd/internal/logspan"
	"github.com/iterait/shepherd/internal/logtext"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/shim"
)

// maxEvents is how many events wait for a daemon that does not read.
const maxEvents = 256

// mailbox holds events for a daemon. It is bounded: of progress it keeps the
// latest, and beyond maxEvents it drops the oldest and counts them.
type mailbox struct {
	ready chan struct{} // has an element when there is something to take

	mu    sync.Mutex
	queue []shim.Event
	lost  int
}

func newMailbox() *mailbox { return &mailbox{ready: make(chan struct{}, 1)} }

func (b *mailbox) put(e shim.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e.Kind == messenger.EventProgress {
		b.queue = slices.DeleteFunc(b.queue, func(old shim.Event) bool { return old.Kind == e.Kind && old.Job == e.Job })
	}
	if len(b.queue) == maxEvents {
		b.queue = slices.Delete(b.queue, 0, 1)
		b.lost++
	}
	b.queue = append(b.queue, e)
	select {
	case b.ready <- struct{}{}:
	default:
	}
}

// take returns all that is there, oldest first.
func (b *mailbox) take() []shim.Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := b.queue
	if len(all) > 0 {
		all[0].Lost += b.lost
		b.lost = 0
	}
	b.queue = nil
	return all
}

// A runner's log lines are passed on at this rate; others are dropped.
const (
	logBurst = 200
	logRate  = 100 // a second
)

// rate is a token bucket.
type rate struct {
	tokens float64
	at     time.Time
}

func (r *rate) admit(now time.Time) bool {
	if r.at.IsZero() {
		r.tokens = logBurst
	} else {
		r.tokens = min(logBurst, r.tokens+now.Sub(r.at).Seconds()*logRate)
	}
	r.at = now
	if r.tokens < 1 {
		return false
	}
	r.tokens--
	return true
}

// running is what is known of the job under way beside its id.
type running struct {
	deadline time.Time
	overdue  bool        // and it was told so
	features []string    // what its runner announced for it
	progress *shim.Event // the latest
	logs     rate
	lost     int          // log lines that were dropped, not told yet
	warnings []string     // see messenger.Answer
	begin    logspan.Mark // where its lines begin
}

// given says that the job was sent to the runner. The caller holds s.mu.
func (s *server) given() shim.Event {
	return shim.Event{Kind: messenger.EventGiven, Job: s.job, Time: time.Now(), Log: logspan.Span{Begin: s.current.begin}.String()}
}

// event takes what a runner tells of the job under way.
func (s *server) event(e messenger.Event) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.job == "" || e.JobID != s.job || s.frame != nil {
		s.noise.warn("dropped an event of the runner: its job is not under way", "job", e.JobID, "under_way", s.job)
		return
	}
	told := shim.Event{Kind: e.Kind, Job: e.JobID, Time: now, Progress: e.Progress, Text: logtext.Clean(e.Text), Features: e.Features}
	switch e.Kind {
	case messenger.EventAccepted:
		s.current.features = e.Features
	case messenger.EventProgress:
		s.current.progress = &told
	case messenger.EventLog:
		if !s.current.logs.admit(now) {
			s.current.lost++
			return
		}
		told.Lost, s.current.lost = s.current.lost, 0
	}
	s.session.event(told)
}

// replayEvents sends a new session how the runner and the job under way stand. The
// caller holds s.mu.
func (s *server) replayEvents(c *session) {
	if s.connected {
		c.event(shim.Event{Kind: messenger.EventReady, Time: time.Now()})
	}
	if s.job == "" {
		return
	}
	if s.frame == nil {
		c.event(s.given())
	}
	if s.current.features != nil {
		c.event(shim.Event{Kind: messenger.EventAccepted, Job: s.job, Time: time.Now(), Features: s.current.features})
	}
	if s.current.progress != nil {
		c.event(*s.current.progress)
	}
	for _, warning := range s.current.warnings {
		c.event(shim.Event{Kind: messenger.EventWarning, Job: s.job, Time: time.Now(), Text: warning})
	}
}

// cancel asks the runner to give a job up.
func (s *server) cancel(id job.ID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.job != id:
		return fmt.Errorf("job %s is not under way", id)
	case !slices.Contains(s.current.features, messenger.FeatureCancel):
		return errors.New("the runner did not announce that it can")
	}
	return s.sendCancel()
}

// sendCancel sends the message. The caller holds s.mu.
func (s *server) sendCancel() error {
	frame, err := messenger.EncodeCancel(s.job)
	if err != nil {
		return err
	}
	if s.link == nil {
		return errors.New("the runner is not connected")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return s.link.Send(ctx, frame)
}

// A daemon that is there holds jobs to their deadlines itself. One that has just
// left may be back in a moment, and was perhaps about to.
const deadlinePatience = 5 * time.Second

// armDeadline starts the clock of the job under way, which rings after the given
// time at the earliest. The caller holds s.mu.
func (s *server) armDeadline(earliest time.Duration) {
	if s.job == "" || s.current.deadline.IsZero() {
		s.deadline.Stop()
		return
	}
	s.deadline.Reset(max(time.Until(s.current.deadline), earliest))
}

// deadlinePassed ends a job that has reached its deadline while no daemon is
// there: its runner is asked to give it up, where it can, and else stopped.
func (s *server) deadlinePassed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.session != nil || s.job == "" || s.exit != nil || s.current.deadline.IsZero() || time.Now().Before(s.current.deadline) {
		return
	}
	if !s.current.overdue {
		s.current.overdue = true
		s.log.Info("a job has reached its deadline", "job", s.job)
		if slices.Contains(s.current.features, messenger.FeatureCancel) && s.sendCancel() == nil {
			s.deadline.Reset(max(s.spec.Grace, time.Second))
			return
		}
	}
	id := s.job
	s.settleJob(shim.Answer{Job: id, Failure: timeoutFailure()})
	s.stop(stopRequest{grace: s.spec.Grace, fault: true, why: fmt.Sprintf("job %s was not done by its deadline", id)})
}

// timeoutFailure is the answer in the place of a runner that missed a deadline.
func timeoutFailure() *job.Failure {
	return &job.Failure{Message: messenger.TimeoutType + ": the job was not done by its deadline", Type: messenger.TimeoutType}
}
