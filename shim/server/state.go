package server

import (
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/shim"
)

// state is a shim's state; see the package comment for the goroutines that change it.
//
// mu guards the fields below it, the embedded ones included. It is held while a message
// is sent to the runner, and while one is queued for the daemon, which never blocks.
// Lock order: outcome.writing is taken before mu. The locks of limiter, eventQueue,
// output, rotated and supervisor may be taken with mu held, and no other lock is taken
// with one of them held.
type state struct {
	spec    shim.Spec
	log     *slog.Logger
	limited *limiter      // for log lines that a runner or daemon can cause
	outcome *outcome      // persists changes
	begun   chan *watched // receives the container's process when it has begun
	stopRequests
	ending

	mu      sync.Mutex
	session *session // of the connected daemon, or nil
	runner
	connection
	jobs
	orphan
}

// runner is the state of the runner's process.
type runner struct {
	watched *watched // the container's process, once it is known
	netns   string   // path of the container's network namespace; "" if it shares the shim's
	pid     int
	memory  *memoryWatch
	output  *output // nil for a runner that the shim does not manage
	exit    *shim.Exit
}

// connection is the connection to the runner.
type connection struct {
	link      Conn // nil while not connected
	connected bool // the runner has been connected at least once
}

// newState returns the initial state. The caller sets outcome.
func newState(spec shim.Spec, log *slog.Logger) *state {
	return &state{
		spec: spec, log: log, limited: newLimiter(log),
		stopRequests: stopRequests{stops: make(chan stopRequest, 1)},
		ending:       ending{quit: make(chan struct{})},
		begun:        make(chan *watched, 1),
	}
}

// startClocks creates the timers; Run stops them.
func (s *state) startClocks() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clock = time.AfterFunc(time.Hour, s.orphaned)
	s.clock.Stop()
	s.deadline = time.AfterFunc(time.Hour, s.deadlinePassed)
	s.deadline.Stop()
	s.settleOrphan()
}

// kept returns the outcome to persist.
func (s *state) kept() shim.Outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	return shim.Outcome{Job: s.job, Answers: slices.Clone(s.answers), Exit: s.exit}
}

// attended reports whether a daemon is connected.
func (s *state) attended() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.session != nil
}

// started records the runner's process and tells the daemon.
func (s *state) started(pid int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pid = pid
	s.session.send(&shim.Message{Kind: shim.KindStarted, PID: pid})
}

func (s *state) connect(conn Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.link = conn
	if !s.connected {
		s.connected = true
		s.session.send(&shim.Message{Kind: shim.KindConnected})
		s.session.event(shim.Event{Kind: messenger.EventReady, Time: time.Now()})
	}
	s.forward()
}

func (s *state) disconnect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.link = nil
}

// admit makes c the present session and sends it the state. It returns false if a newer
// connection is the session already. The newest connection counts, not the one whose
// hello comes last: that of a daemon that was killed may still arrive after its
// successor's.
func (s *state) admit(c *session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.quit:
		return false
	default:
	}
	if s.session != nil {
		if s.session.turn > c.turn {
			return false
		}
		s.session.supersede()
	}
	s.session = c
	s.settleOrphan()
	c.send(&shim.Message{Kind: shim.KindHello, Hello: &shim.Hello{
		Version: shim.Version, Features: shim.Features(), Life: s.spec.Life, PID: os.Getpid(), RunnerPID: s.pid,
		Connected: s.connected, Exited: s.exit != nil, Job: s.job, Answers: len(s.answers),
	}})
	for _, a := range s.answers {
		c.send(&shim.Message{Kind: shim.KindAnswer, Answer: &a})
	}
	if s.exit != nil {
		c.send(&shim.Message{Kind: shim.KindExit, Exit: s.exit})
	}
	s.replayEvents(c)
	return true
}

func (s *state) leave(c *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.session == c {
		s.session = nil
		s.outcome.unattended()
		s.settleOrphan()
		s.armDeadline(deadlinePatience)
	}
}
