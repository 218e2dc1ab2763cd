// Package server is the inside of shepherd-shim: it starts a runner, or watches
// one that containerd has started, talks ZeroMQ to it, and serves the daemon that is there now, and the next one, over
// the protocol of package shim. See there for the promises.
//
// One value of the state below, guarded by one mutex, is changed by four
// parties, each a goroutine: the daemon's session, the link to the runner, the
// supervisor of the runner's process, and the clock that ends a shim nobody
// wants. What must survive the shim itself is written by a fifth, beside the
// way of a message and not in it.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/iterait/shepherd/internal/cgroup"
	"github.com/iterait/shepherd/internal/logspan"
	"github.com/iterait/shepherd/internal/proc"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/shim"
)

// Conn is one connection to a runner, from its bind to the end of either side.
type Conn interface {
	Send(ctx context.Context, frame []byte) error
	// Recv returns an error when the connection has ended and everything that
	// came before was received.
	Recv(ctx context.Context) ([]byte, error)
	Close() error
}

// DialFunc makes a network connection, as net.Dialer.DialContext does.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// Config is what a shim is made of.
type Config struct {
	Folder *shim.Folder // locked by the caller
	Spec   shim.Spec
	// Dial connects to a runner at HOST:PORT, which may bind long after the
	// call, by network connections made with dial. An error is final.
	Dial func(ctx context.Context, address string, dial DialFunc) (Conn, error)
	Log  *slog.Logger
}

// server is the state of a shim.
type server struct {
	cfg   Config
	spec  shim.Spec
	log   *slog.Logger
	noise *limiter // for what a runner can make us log
	boot  string

	stops    chan stopRequest
	begun    chan *watched // the container's process, when it has begun
	dirty    chan struct{} // the outcome has changed
	quit     chan struct{} // closed when the shim is to end
	quitOnce sync.Once

	mu        sync.Mutex
	session   *session // the daemon that is there, or nil
	watched   *watched // the container's process, once it is known
	netns     string   // the container's network namespace; empty means ours
	link      Conn     // nil while not connected
	connected bool     // once was
	pid       int      // the runner's
	memory    *memoryWatch
	job       job.ID  // given and not answered
	frame     []byte  // of job, until it has been sent
	output    *output // of the runner; nil where it is somebody else's
	current   running // of job
	deadline  *time.Timer
	answers   []shim.Answer
	exit      *shim.Exit
	orphan    *time.Timer
	waiting   bool // the orphan timer runs
	forsaken  bool // it ran out

	writing sync.Mutex // of the outcome; never taken with mu held
}

// stopRequest asks for the runner's end. Grace is the time between TERM and
// KILL. Why is the cause where the daemon did not ask for it.
type stopRequest struct {
	grace time.Duration
	why   string
	fault bool // of the runner
	lost  bool // it goes down with the shim
}

// Run is a shim's life: it returns when the daemon has released it or none came
// back in time. Ready is called when daemons can connect. Ending ctx stops the
// runner.
func Run(ctx context.Context, cfg Config, ready func()) error {
	boot, err := proc.BootID()
	if err != nil {
		return fmt.Errorf("tell this boot of the machine from others: %w", err)
	}
	self, err := proc.Read(os.Getpid())
	if err != nil {
		return err
	}
	s := &server{
		cfg: cfg, spec: cfg.Spec, boot: boot,
		log:   cfg.Log,
		noise: newLimiter(cfg.Log),
		stops: make(chan stopRequest, 1),
		begun: make(chan *watched, 1),
		dirty: make(chan struct{}, 1),
		quit:  make(chan struct{}),
	}
	state := shim.State{Boot: boot, Shim: self}
	var group cgroup.Group
	if s.spec.Runner != nil {
		group = cgroup.Create(shim.GroupName(s.spec.Life))
		state.Groups = group.Dirs()
	}
	if err := shim.WriteState(cfg.Folder.Path(), state); err != nil {
		_ = group.Remove()
		return err
	}
	var out *output
	if s.spec.Container != nil {
		if out, err = openFIFOs(s.spec, cfg.Folder.Path(), s.log); err != nil {
			return err
		}
		defer out.close()
		s.output = out
	}
	listener, err := cfg.Folder.Listen()
	if err != nil {
		_ = group.Remove()
		return err
	}

	var running sync.WaitGroup
	s.mu.Lock()
	s.orphan = time.AfterFunc(time.Hour, s.orphaned)
	s.orphan.Stop()
	s.deadline = time.AfterFunc(time.Hour, s.deadlinePassed)
	s.deadline.Stop()
	s.settleOrphan()
	s.mu.Unlock()
	running.Go(func() { s.accept(listener, &running) })
	running.Go(s.keep)
	ready()
	running.Go(func() {
		switch {
		case s.spec.Runner != nil:
			s.live(s.supervise(ctx, group, state))
		case s.spec.Container != nil:
			s.live(s.watch(ctx, out, state))
		default:
			s.live(s.converse(ctx))
		}
	})

	<-s.quit
	s.orphan.Stop()
	s.deadline.Stop()
	listener.Close()
	s.mu.Lock()
	last := s.session
	s.mu.Unlock()
	if last != nil {
		last.drain()
	}
	running.Wait()
	return nil
}

// end makes Run return.
func (s *server) end() { s.quitOnce.Do(func() { close(s.quit) }) }

// live ends the runner's life: it reports its end.
func (s *server) live(exit shim.Exit) {
	s.mu.Lock()
	s.exit = &exit
	s.frame = nil
	s.mu.Unlock()
	s.persist() // before the daemon hears of it and may end us
	s.mu.Lock()
	s.session.send(&shim.Message{Kind: shim.KindExit, Exit: &exit})
	if s.forsaken {
		s.conclude()
	}
	s.settleOrphan()
	s.mu.Unlock()
	s.log.Info("the runner has ended", "code", exit.Code, "signal", exit.Signal, "detail", exit.Detail, "error", exit.StartError)
}

// converse keeps the link to a runner that is somebody else's until its end is
// wanted.
func (s *server) converse(ctx context.Context) shim.Exit {
	link := s.openLink()
	request := s.awaitStop(ctx)
	link.close(0)
	return shim.Exit{Code: -1, Stopped: !request.lost && !request.fault, Lost: request.lost, Detail: request.why}
}

// supervise runs the runner and the link to it, and returns when nothing is left
// of either.
func (s *server) supervise(ctx context.Context, group cgroup.Group, state shim.State) shim.Exit {
	defer func() {
		if err := group.Remove(); err != nil {
			s.log.Warn("control group of the ended runner stays", "error", err)
		}
	}()
	if err := s.portFree(); err != nil {
		return shim.Exit{Code: -1, StartError: err.Error(), Retry: true}
	}
	super := newSupervisor(group, s.log)
	defer super.close()
	out, err := openOutput(s.spec, s.log)
	if err != nil {
		return shim.Exit{Code: -1, StartError: err.Error()}
	}
	defer out.close()
	s.mu.Lock()
	s.output = out
	s.mu.Unlock()
	pid, err := super.start(s.spec, out)
	if err != nil {
		return shim.Exit{Code: -1, StartError: err.Error(), Retry: isScarcity(err)}
	}
	if p, err := proc.Read(pid); err == nil {
		state.Runner = &p
		if err := shim.WriteState(s.cfg.Folder.Path(), state); err != nil {
			s.log.Warn("cannot note the runner's process", "error", err)
		}
	}
	s.started(pid)
	link := s.openLink()
	exit := s.awaitExit(ctx, super)
	link.close(lastWords)
	exit.LastLog = out.last()
	return exit
}

// started says that the runner's process exists.
func (s *server) started(pid int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pid = pid
	s.session.send(&shim.Message{Kind: shim.KindStarted, PID: pid})
}

// awaitStop waits until somebody wants the runner's end.
func (s *server) awaitStop(ctx context.Context) stopRequest {
	select {
	case r := <-s.stops:
		return r
	case <-ctx.Done():
		return stopRequest{grace: s.spec.Grace, why: "its shim was told to end", lost: true}
	}
}

// process is a runner's process and what it started.
type process interface {
	ended() <-chan struct{} // closed when the process has ended
	alive() bool
	terminate()               // asks it to end
	endAll() (problem string) // ends it and all it started
	exitStatus() shim.Exit
	oomKills() (own, shared int) // see cgroup.Group
}

// awaitExit waits until the runner has ended, by itself or because somebody
// wants it, and ends what it left behind.
func (s *server) awaitExit(ctx context.Context, runner process) shim.Exit {
	told := ctx.Done()
	var asked *stopRequest
	var deadline time.Time
	kill := make(<-chan time.Time)
	ask := func(r stopRequest) {
		by := time.Now().Add(r.grace)
		if asked == nil {
			asked = &r
			runner.terminate()
		} else if !by.Before(deadline) {
			return
		}
		deadline, kill = by, time.After(r.grace)
	}
	s.watchMemory(runner)
	look := time.NewTicker(memoryInterval)
	defer look.Stop()
	for ended := false; !ended; {
		select {
		case <-runner.ended():
			ended = true
		case <-look.C:
			s.lookForKillsNow()
		case r := <-s.stops:
			ask(r)
		case <-told:
			told = nil
			ask(stopRequest{grace: s.spec.Grace, why: "its shim was told to end", lost: true})
		case <-kill:
			ended = true
		}
	}
	oom := s.killedForMemory()
	killed := runner.alive()
	problem := runner.endAll()
	exit := runner.exitStatus()
	if asked != nil {
		exit.Stopped, exit.Lost, exit.Detail = !asked.fault && !asked.lost, asked.lost, asked.why
		if asked.fault && killed {
			exit.Signal = "" // ours, which says nothing
		}
	}
	if oom = max(oom, s.killedForMemory()); oom > notKilled && !killed {
		unknown := exit.Code == -1 && exit.Signal == ""
		exit.OutOfMemory = exit.Signal == "SIGKILL" || unknown && oom == itsOwn
		exit.OOMNearby = unknown && oom == perhaps
		if !exit.OutOfMemory && oom == itsOwn && exit.Code != 0 && exit.Detail == "" {
			exit.Detail = "the kernel ended one of its processes for memory"
		}
	}
	if problem != "" {
		exit.Detail = joinDetail(exit.Detail, problem)
	}
	return exit
}

func joinDetail(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

// stop asks for the runner's end; of several requests that come at once the
// first is enough, but for one that is in more of a hurry.
func (s *server) stop(r stopRequest) {
	for {
		select {
		case s.stops <- r:
			return
		default:
		}
		select {
		case earlier := <-s.stops:
			if earlier.grace <= r.grace {
				r = earlier
			}
		default:
		}
	}
}

// give takes a job for the runner. The last words of a daemon that was
// superseded do not count: its successor has been told how things stand.
func (s *server) give(from *session, in messenger.Input) error {
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
	s.changed()
	s.forward()
	return nil
}

// forward sends the job to the runner if it can be sent now. A failure ends the
// connection, which the link notices. The caller holds s.mu.
func (s *server) forward() {
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
func (s *server) received(frame []byte) {
	a, err := messenger.DecodeAnswer(frame)
	if err != nil {
		if e, notEvent := messenger.DecodeEvent(frame); notEvent == nil {
			s.event(e)
			return
		}
		s.noise.warn("dropped a message of the runner", "error", err)
		return
	}
	s.settleOutput()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lookForKills() // such a process may be why it answers as it does
	if s.job == "" || a.JobID != s.job || s.frame != nil {
		s.noise.warn("dropped an answer of the runner: its job is not under way", "job", a.JobID, "under_way", s.job)
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
func (s *server) settleOutput() {
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
func (s *server) settleJob(answer shim.Answer) {
	answer.Warnings = s.current.warnings
	answer.Log = logspan.Span{Begin: s.current.begin, End: s.output.position()}.String()
	s.session.send(&shim.Message{Kind: shim.KindAnswer, Answer: &answer})
	s.answers = append(s.answers, answer)
	s.job, s.frame, s.current = "", nil, running{}
	s.deadline.Stop()
	s.changed()
}

// acknowledge forgets an answer.
func (s *server) acknowledge(id job.ID) {
	s.mu.Lock()
	s.answers = slices.DeleteFunc(s.answers, func(a shim.Answer) bool { return a.Job == id })
	ended := s.exit != nil
	s.changed()
	s.settleOrphan()
	s.mu.Unlock()
	if ended {
		s.persist() // the daemon may release us next
	}
}
