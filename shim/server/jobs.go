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

// jobs are the one under way, and the answers that no daemon has acknowledged.
type jobs struct {
	job      job.ID  // given and not answered
	frame    []byte  // of job, until it has been sent
	current  running // of job
	deadline *time.Timer
	answers  []shim.Answer
}

// give takes a job for the runner. The last words of a daemon that was
// superseded do not count: its successor has been told how things stand.
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

// forward sends the job to the runner if it can be sent now. A failure ends the
// connection, which the link notices. The caller holds s.mu.
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

// received takes a message of the runner: an answer, or an event, about the job
// under way. Whatever else it is, it is dropped.
func (s *state) received(frame []byte) {
	a, err := messenger.DecodeAnswer(frame)
	if err != nil {
		if e, notEvent := messenger.DecodeEvent(frame); notEvent == nil {
			s.event(e)
			return
		}
		s.limited.warn("dropped a message of the runner", "error", err)
		return
	}
	s.settleOutput()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lookForKills() // such a process may be why it answers as it does
	if s.job == "" || a.JobID != s.job || s.frame != nil {
		s.limited.warn("dropped an answer of the runner: its job is not under way", "job", a.JobID, "under_way", s.job)
		return
	}
	if s.current.overdue && a.Failure != nil {
		a.Failure = timeoutFailure()
	}
	s.settleJob(shim.Answer{Job: a.JobID, Failure: a.Failure})
}

// settleTime is how long an answer waits for what the runner has written before it.
const settleTime = time.Second

// settleOutput waits until what the runner has written by now is in the logs.
func (s *state) settleOutput() {
	s.mu.Lock()
	out, w := s.output, s.watched
	s.mu.Unlock()
	by := time.Now().Add(settleTime)
	if w != nil {
		w.pipes.settle(by)
	}
	out.settle(by)
}

// settleJob keeps the answer to the job under way and tells it. The caller holds
// s.mu.
func (s *state) settleJob(answer shim.Answer) {
	answer.Warnings = s.current.warnings
	answer.Log = logspan.Span{Begin: s.current.begin, End: s.output.position()}.String()
	s.session.send(&shim.Message{Kind: shim.KindAnswer, Answer: &answer})
	s.answers = append(s.answers, answer)
	s.job, s.frame, s.current = "", nil, running{}
	s.deadline.Stop()
	s.outcome.changed()
}

// acknowledge forgets an answer.
func (s *state) acknowledge(id job.ID) {
	s.mu.Lock()
	s.answers = slices.DeleteFunc(s.answers, func(a shim.Answer) bool { return a.Job == id })
	ended := s.exit != nil
	s.outcome.changed()
	s.settleOrphan()
	s.mu.Unlock()
	if ended {
		s.outcome.persist() // the daemon may release us next
	}
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
func (s *jobs) given() shim.Event {
	return shim.Event{Kind: messenger.EventGiven, Job: s.job, Time: time.Now(), Log: logspan.Span{Begin: s.current.begin}.String()}
}

// event takes what a runner tells of the job under way.
func (s *state) event(e messenger.Event) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.job == "" || e.JobID != s.job || s.frame != nil {
		s.limited.warn("dropped an event of the runner: its job is not under way", "job", e.JobID, "under_way", s.job)
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

// cancel asks the runner to give a job up.
func (s *state) cancel(id job.ID) error {
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

// A daemon that is there holds jobs to their deadlines itself. One that has just
// left may be back in a moment, and was perhaps about to.
const deadlinePatience = 5 * time.Second

// armDeadline starts the clock of the job under way, which rings after the given
// time at the earliest. The caller holds s.mu.
func (s *jobs) armDeadline(earliest time.Duration) {
	if s.job == "" || s.current.deadline.IsZero() {
		s.deadline.Stop()
		return
	}
	s.deadline.Reset(max(time.Until(s.current.deadline), earliest))
}

// deadlinePassed ends a job that has reached its deadline while no daemon is
// there: its runner is asked to give it up, where it can, and else stopped.
func (s *state) deadlinePassed() {
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
