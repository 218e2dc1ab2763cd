package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/iterait/shepherd/internal/logspan"
	"github.com/iterait/shepherd/internal/logtext"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/shim"
)

// jobs holds the job under way, and the answers that no daemon has acknowledged.
type jobs struct {
	job      job.ID  // given by the daemon and not answered yet
	frame    []byte  // the message with job, until it has been sent
	current  running // of job
	deadline *time.Timer
	answers  []shim.Answer
}

// give accepts a job for the runner from the session's daemon. It refuses one from a
// session that was superseded: the new session has been sent the state without it.
func (s *state) give(from *session, in messenger.Input) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.session != from:
		return errors.New("another daemon has taken over")
	case s.exit != nil:
		return errors.New("the runner has ended")
	case s.job == in.JobID, slices.ContainsFunc(s.answers, func(a shim.Answer) bool { return a.Job == in.JobID }):
		return nil
	case s.job != "":
		return fmt.Errorf("job %s is under way", s.job)
	case len(s.answers) >= messenger.MaxKept:
		return fmt.Errorf("%d answers are not acknowledged", len(s.answers))
	}
	frame, err := messenger.EncodeInput(in)
	if err != nil {
		return err
	}
	s.job, s.frame = in.JobID, frame
	s.current = running{deadline: in.Deadline}
	s.settleOrphan()
	s.armDeadline(0)
	s.outcome.changed()
	s.forward()
	return nil
}

// forward sends the job to the runner if it is connected. If that fails it closes the
// connection, which the connector then notices. The caller holds s.mu.
func (s *state) forward() {
	if s.frame == nil || s.link == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s.current.begin = s.output.position() // the runner may write before Send returns
	if err := s.link.Send(ctx, s.frame); err != nil {
		s.log.Warn("cannot send a job to the runner", "job", s.job, "error", err)
		_ = s.link.Close()
		return
	}
	s.frame = nil
	s.session.event(s.given())
}

// received handles a message from the runner: an answer or an event for the job under
// way. It logs and drops any other message.
func (s *state) received(frame []byte) {
	a, err := messenger.DecodeAnswer(frame)
	if err != nil {
		if e, notEvent := messenger.DecodeEvent(frame); notEvent == nil {
			s.event(e)
			return
		}
		s.limited.warn("dropped a message from the runner", "error", err)
		return
	}
	s.settleOutput()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.checkOOMKills() // a killed process may be the cause of a failure
	if s.job == "" || a.JobID != s.job || s.frame != nil {
		s.limited.warn("dropped an answer from the runner: its job is not under way", "job", a.JobID, "under_way", s.job)
		return
	}
	if s.current.overdue && a.Failure != nil {
		a.Failure = timeoutFailure()
	}
	s.settleJob(shim.Answer{Job: a.JobID, Failure: a.Failure})
}

// settleTime is how long an answer waits until the output written before it is logged.
const settleTime = time.Second

// settleOutput waits until the runner's output so far is in the logs.
func (s *state) settleOutput() {
	s.mu.Lock()
	out, w := s.output, s.watched
	s.mu.Unlock()
	by := time.Now().Add(settleTime)
	if w != nil && out != nil {
		w.pipes.settle(out.marks, by)
	}
	out.settle(by)
}

// settleJob ends the job under way: it keeps its answer and sends it to the daemon. The
// caller holds s.mu.
func (s *state) settleJob(answer shim.Answer) {
	answer.Warnings = s.current.warnings
	answer.Log = logspan.Span{Begin: s.current.begin, End: s.output.position()}.String()
	s.session.send(&shim.Message{Kind: shim.KindAnswer, Answer: &answer})
	s.answers = append(s.answers, answer)
	s.job, s.frame, s.current = "", nil, running{}
	s.deadline.Stop()
	s.outcome.changed()
}

// acknowledge removes an answer that the daemon has stored.
func (s *state) acknowledge(id job.ID) {
	s.mu.Lock()
	s.answers = slices.DeleteFunc(s.answers, func(a shim.Answer) bool { return a.Job == id })
	ended := s.exit != nil
	s.outcome.changed()
	s.settleOrphan()
	s.mu.Unlock()
	if ended {
		s.outcome.persist() // the daemon may release this shim next
	}
}

// running is the state of the job under way.
type running struct {
	deadline time.Time
	overdue  bool        // the deadline has passed, and the runner was asked to cancel
	features []string    // announced by the runner for this job
	progress *shim.Event // the latest
	logs     rate
	lost     int          // log events that were dropped since the last one sent
	warnings []string     // see messenger.Answer
	begin    logspan.Mark // where its log begins
}

// given returns the event that the job was sent to the runner. The caller holds s.mu.
func (s *jobs) given() shim.Event {
	return shim.Event{Kind: messenger.EventGiven, Job: s.job, Time: time.Now(), Log: logspan.Span{Begin: s.current.begin}.String()}
}

// event handles a runner's event for the job under way.
func (s *state) event(e messenger.Event) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.job == "" || e.JobID != s.job || s.frame != nil {
		s.limited.warn("dropped an event from the runner: its job is not under way", "job", e.JobID, "under_way", s.job)
		return
	}
	event := shim.Event{Kind: e.Kind, Job: e.JobID, Time: now, Progress: e.Progress, Text: logtext.Clean(e.Text), Features: e.Features}
	switch e.Kind {
	case messenger.EventAccepted:
		s.current.features = e.Features
	case messenger.EventProgress:
		s.current.progress = &event
	case messenger.EventLog:
		if !s.current.logs.admit(now) {
			s.current.lost++
			return
		}
		event.Lost, s.current.lost = s.current.lost, 0
	}
	s.session.event(event)
}

// replayEvents sends a new session the events that describe the present state of the
// runner and of the job under way. The caller holds s.mu.
func (s *state) replayEvents(c *session) {
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

// cancel asks the runner to cancel a job.
func (s *state) cancel(id job.ID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.job != id:
		return fmt.Errorf("job %s is not under way", id)
	case !slices.Contains(s.current.features, messenger.FeatureCancel):
		return errors.New("the runner did not announce that it can cancel jobs")
	}
	return s.sendCancel()
}

// sendCancel sends the runner the message that cancels the job under way. The caller
// holds s.mu.
func (s *state) sendCancel() error {
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

// deadlinePatience is how long the shim leaves a job's deadline to the daemon after the
// daemon has disconnected: a connected daemon enforces deadlines itself, and one that is
// restarted reconnects soon.
const deadlinePatience = 5 * time.Second

// armDeadline starts the timer for the deadline of the job under way, which expires
// after the time earliest at the soonest. The caller holds s.mu.
func (s *jobs) armDeadline(earliest time.Duration) {
	if s.job == "" || s.current.deadline.IsZero() {
		s.deadline.Stop()
		return
	}
	s.deadline.Reset(max(time.Until(s.current.deadline), earliest))
}

// deadlinePassed ends a job that has reached its deadline while no daemon is connected.
// It asks the runner to cancel the job; if the runner cannot, or has not done so within
// the grace period, it stops the runner.
func (s *state) deadlinePassed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.session != nil || s.job == "" || s.exit != nil || s.current.deadline.IsZero() {
		return
	}
	if left := time.Until(s.current.deadline); left > 0 { // the clock was set back since the timer was started
		s.deadline.Reset(left)
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

// timeoutFailure is the failure of a job that was not done by its deadline.
func timeoutFailure() *job.Failure {
	return &job.Failure{Message: messenger.TimeoutType + ": the job was not done by its deadline", Type: messenger.TimeoutType}
}
