package server

import (
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/cgroup"
	"github.com/iterait/shepherd/internal/proc"
	"github.com/iterait/shepherd/shim"
)

// life manages the runner from its start until it and all of its descendants have
// ended.
type life struct {
	*state
	folder    string
	connector *connector
}

// run returns when no process of the runner is left and its exit has been reported.
// group is the control group of a bare runner, out the output of one in a container.
func (s *life) run(ctx context.Context, group cgroup.Group, out *output, state shim.State) {
	switch {
	case s.spec.Runner != nil:
		s.report(s.supervise(ctx, group, state))
	case s.spec.Container != nil:
		s.report(s.watch(ctx, out, state))
	default:
		s.report(s.converse(ctx))
	}
}

// report persists the runner's exit and sends it to the daemon.
func (s *life) report(exit shim.Exit) {
	s.mu.Lock()
	s.exit = &exit
	s.frame = nil
	s.mu.Unlock()
	s.outcome.persist() // before the daemon learns of the exit and may release this shim
	s.mu.Lock()
	s.session.send(&shim.Message{Kind: shim.KindExit, Exit: &exit})
	if s.expired {
		s.conclude()
	}
	s.settleOrphan()
	s.mu.Unlock()
	s.log.Info("the runner has ended", "code", exit.Code, "signal", exit.Signal, "detail", exit.Detail, "error", exit.StartError)
}

// converse keeps a connection to a runner that the shim does not manage, until a stop is
// requested.
func (s *life) converse(ctx context.Context) shim.Exit {
	link := s.connector.open()
	request := s.awaitStop(ctx)
	link.close(0)
	return shim.Exit{Code: -1, Stopped: !request.lost && !request.fault, Lost: request.lost, Detail: request.why}
}

// supervise starts a bare runner, keeps a connection to it, and returns when no process
// of it is left.
func (s *life) supervise(ctx context.Context, group cgroup.Group, state shim.State) shim.Exit {
	defer func() {
		if err := group.Remove(); err != nil {
			s.log.Warn("cannot remove the control group of the runner that ended", "error", err)
		}
	}()
	if err := s.dialer().portFree(); err != nil {
		return shim.Exit{Code: -1, StartError: err.Error(), Retry: true}
	}
	super := newSupervisor(group, s.log)
	defer super.close()
	out, err := openOutput(s.spec, s.log)
	if err != nil {
		return shim.Exit{Code: -1, StartError: err.Error(), Retry: isScarcity(err)}
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
		if err := shim.WriteState(s.folder, state); err != nil {
			s.log.Warn("cannot record the runner's process", "error", err)
		}
	}
	s.started(pid)
	link := s.connector.open()
	exit := s.awaitExit(ctx, super)
	link.close(lastWords)
	exit.LastLog = out.last()
	return exit
}

// process is a runner's process with its descendants.
type process interface {
	ended() <-chan struct{} // closed when the process has ended
	alive() bool
	terminate()               // asks the process to end
	endAll() (problem string) // kills the process and its descendants
	exitStatus() shim.Exit
	oomKills() (own, shared int) // see cgroup.Group
}

// awaitStop waits for a request to stop the runner.
func (s *life) awaitStop(ctx context.Context) stopRequest {
	select {
	case r := <-s.stops:
		return r
	case <-ctx.Done():
		return stopRequest{grace: s.spec.Grace, why: "its shim was told to end", lost: true}
	}
}

// awaitExit waits until the runner has ended, by itself or on request, and kills the
// processes that it left behind.
func (s *life) awaitExit(ctx context.Context, runner process) shim.Exit {
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
			s.checkOOMKillsNow()
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
			exit.Signal = "" // the shim sent it; the detail has the cause
		}
	}
	if oom = max(oom, s.killedForMemory()); oom > oomNone && !killed {
		unknown := exit.Code == -1 && exit.Signal == ""
		exit.OutOfMemory = exit.Signal == "SIGKILL" || unknown && oom == oomOwn
		exit.OOMNearby = unknown && oom == oomShared
		if !exit.OutOfMemory && oom == oomOwn && exit.Code != 0 && exit.Detail == "" {
			exit.Detail = "the kernel killed one of its processes for lack of memory"
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

// watch waits until a container's process has begun, and then until all processes of the
// container have ended.
func (s *life) watch(ctx context.Context, out *output, state shim.State) shim.Exit {
	var request stopRequest
	select {
	case w := <-s.begun:
		return s.watchBegun(ctx, w, out, state)
	case request = <-s.stops:
	case <-ctx.Done():
		request = stopRequest{why: "its shim was told to end", lost: true}
	}
	s.mu.Lock()
	w := s.watched
	s.exit = &shim.Exit{Code: -1} // begin and take refuse from now on
	s.mu.Unlock()
	exit := shim.Exit{Code: -1, Stopped: !request.lost, Lost: request.lost, Detail: request.why}
	if w != nil {
		w.waiting.Go(w.wait)
		defer w.close()
		exit.Detail = joinDetail(exit.Detail, w.endAll())
	}
	return exit
}

func (s *life) watchBegun(ctx context.Context, w *watched, out *output, state shim.State) shim.Exit {
	w.waiting.Go(w.wait)
	defer w.close()
	out.started() // containerd's shim has opened the FIFOs
	state.Runner, state.Groups = &w.process, w.group.Dirs()
	if err := shim.WriteState(s.folder, state); err != nil {
		s.log.Warn("cannot record the runner's process", "error", err)
	}
	s.mu.Lock()
	s.session.send(&shim.Message{Kind: shim.KindStarted, PID: w.process.PID})
	s.mu.Unlock()
	link := s.connector.open()
	exit := s.awaitExit(ctx, w)
	link.close(lastWords)
	exit.LastLog = out.last()
	return exit
}

// isScarcity reports whether a process could not be started, or its log not be opened, for
// lack of a resource that may be available later.
func isScarcity(err error) bool {
	return slices.ContainsFunc([]error{unix.EAGAIN, unix.ENOMEM, unix.EMFILE, unix.ENFILE, unix.ENOSPC, unix.EDQUOT, unix.EROFS, unix.EIO}, func(e error) bool { return errors.Is(err, e) })
}
