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

// state is how a shim stands; see the package comment for who changes it.
//
// What is listed below mu, the embedded parts too, is guarded by it. It is held while
// a message is sent to the runner and while one is queued for the daemon, which never
// waits. Of the other locks outcome.writing is taken before mu; those of limiter,
// mailbox, output, rotated and supervisor may be taken with mu held, and no other is
// taken with one of them.
type state struct {
	spec    shim.Spec
	log     *slog.Logger
	limited *limiter      // for what a runner can make us log
	outcome *outcome      // told of every change
	begun   chan *watched // the container's process, when it has begun
	stopRequests
	ending

	mu      sync.Mutex
	session *session // the daemon that is there, or nil
	runner
	connection
	jobs
	orphan
}

// runner is what is known of the runner's process.
type runner struct {
	watched *watched // the container's process, once it is known
	netns   string   // the container's network namespace; empty means ours
	pid     int
	memory  *memoryWatch
	output  *output // nil where the runner is somebody else's
	exit    *shim.Exit
}

// connection is the one to the runner.
type connection struct {
	link      Conn // nil while not connected
	connected bool // once was
}

// newState is the state of a shim that has done nothing yet. Its outcome is not set.
func newState(spec shim.Spec, log *slog.Logger) *state {
	return &state{
		spec: spec, log: log, limited: newLimiter(log),
		stopRequests: stopRequests{stops: make(chan stopRequest, 1)},
		ending:       ending{quit: make(chan struct{})},
		begun:        make(chan *watched, 1),
	}
}

// startClocks makes the clocks; Run stops them.
func (s *state) startClocks() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clock = time.AfterFunc(time.Hour, s.orphaned)
	s.clock.Stop()
	s.deadline = time.AfterFunc(time.Hour, s.deadlinePassed)
	s.deadline.Stop()
	s.settleOrphan()
}

// kept is what a later daemon must find if this process is gone.
func (s *state) kept() shim.Outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	return shim.Outcome{Job: s.job, Answers: slices.Clone(s.answers), Exit: s.exit}
}

// started says that the runner's process exists.
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

// admit makes c the session and tells it how things stand. The newest connection
// is the daemon's, not the one that says hello last: of a daemon that was killed
// in between, both may still be on their way.
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
		s.settleOrphan()
		s.armDeadline(deadlinePatience)
	}
}
