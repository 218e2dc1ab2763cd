package bare

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/shim"
)

// How long a shim may take for what is done at once when all is well.
const (
	patience   = 10 * time.Second
	lastResort = 45 * time.Second // beyond the grace: processes that do not die of KILL are waited for
)

// sheep is one bare sheep.
type sheep struct {
	name     string
	cfg      Config
	options  Options
	log      *slog.Logger
	dataRoot string
	lives    string // folder of the folders of lives
	logs     string

	mu     sync.Mutex
	model  *job.Model    // loaded last
	found  *found        // by Recover, until the next Run
	past   []*remains    // lives that have ended and are not settled
	conn   *conn         // of the present or last Run
	detach chan struct{} // closed by Detach; nil without a Run
}

// found is a runner that outlived an earlier daemon.
type found struct {
	handle *shim.Handle
	folder string
	model  job.Model
}

var (
	_ runtime.Sheep     = (*sheep)(nil)
	_ runtime.Recoverer = (*sheep)(nil)
)

// Load checks that the model and a program to run it are there.
func (s *sheep) Load(ctx context.Context, m job.Model, _ runtime.Observer) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := m.Validate(); err != nil {
		return &runtime.LoadError{Message: fmt.Sprintf("Cannot load model `%s:%s`, %v", m.Name, m.Version, err), Class: errdefs.ErrInvalidArgument}
	}
	path := filepath.Join(s.options.WorkingDirectory, configPath(m))
	if info, err := os.Stat(path); err != nil || info.IsDir() {
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return &runtime.LoadError{Message: fmt.Sprintf("Cannot load model `%s:%s`, %v", m.Name, m.Version, err), Class: errdefs.ErrPermissionDenied}
		}
		return &runtime.LoadError{
			Message: fmt.Sprintf("Cannot load model `%s:%s`, file `%s` does not exist.", m.Name, m.Version, path),
			Class:   errdefs.ErrNotFound,
		}
	}
	if _, err := s.program(m, 0); err != nil {
		return err
	}
	if _, err := s.cfg.shim(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.model = &m
	return nil
}

// program is the runner's command, environment and files.
func (s *sheep) program(m job.Model, port int) (*shim.Process, error) {
	words := s.options.command(m, port)
	env := s.options.environment(os.Environ())
	path, err := findProgram(words[0], s.options.WorkingDirectory, env)
	if err != nil {
		return nil, &runtime.LoadError{Message: err.Error(), Class: errdefs.ErrFailedPrecondition}
	}
	return &shim.Process{
		Path: path, Args: words[1:], Dir: s.options.WorkingDirectory, Env: env,
		Stdout: s.options.StdoutFile, Stderr: s.options.StderrFile,
	}, nil
}

// Run starts or attaches to a runner and sees it through. See runtime.Sheep.
func (s *sheep) Run(ctx context.Context, observe runtime.Observer) error {
	detach := make(chan struct{})
	s.mu.Lock()
	s.detach = detach
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.detach = nil
		s.mu.Unlock()
	}()
	life, earlier, err := s.begin(ctx)
	if err != nil {
		return err
	}
	c := newConn(life.handle, s.dataRoot, earlier)
	defer c.settle(nil)
	s.mu.Lock()
	s.conn = c
	s.mu.Unlock()
	return s.watch(ctx, life, c, observe, detach)
}

// begin returns the runner that Recover found, or a new one, and what Recover
// found of earlier ones.
func (s *sheep) begin(ctx context.Context) (*found, []*remains, error) {
	s.mu.Lock()
	life, model := s.found, s.model
	s.found = nil
	var earlier []*remains
	if life != nil {
		earlier = slices.Clone(s.past)
	}
	s.mu.Unlock()
	if life != nil && (model == nil || *model == life.model) {
		return life, earlier, nil
	}
	if life != nil {
		s.log.Info("Stopping the runner that was found: another model is wanted", "model", model.String())
		if _, err := s.stop(life.handle, life.folder); err != nil {
			return nil, nil, err
		}
	}
	if model == nil {
		return nil, nil, &runtime.LoadError{Message: "no model is loaded", Class: errdefs.ErrFailedPrecondition}
	}
	s.tidy()
	life, err := s.start(ctx, *model)
	return life, earlier, err
}

// start starts a shim and its runner.
func (s *sheep) start(ctx context.Context, m job.Model) (*found, error) {
	port := s.options.Port
	if port == 0 {
		var err error
		if port, err = freePort(); err != nil {
			return nil, &runtime.LoadError{Message: fmt.Sprintf("no free port for the runner: %v", err), Class: errdefs.ErrUnavailable}
		}
	}
	program, err := s.program(m, port)
	if err != nil {
		return nil, err
	}
	binary, err := s.cfg.shim()
	if err != nil {
		return nil, err
	}
	id := shim.NewLife()
	folder := filepath.Join(s.lives, id)
	starting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	h, err := shim.Start(starting, binary, folder, shim.Spec{
		Life: id, Sheep: s.name, Model: m, Runner: program, Port: port,
		LogDir: s.logs, LogSize: logSize, LogKeep: logKeep,
		Grace:         s.grace(),
		OrphanTimeout: cmp.Or(s.options.OrphanTimeout, s.cfg.OrphanTimeout),
	}, s.log)
	switch {
	case ctx.Err() != nil && err != nil:
		return nil, &runtime.Exit{Code: -1, Stopped: true, Detail: "stopped while it was started"}
	case err != nil:
		return nil, &runtime.LoadError{Message: err.Error(), Class: errdefs.ErrUnavailable}
	}
	return &found{handle: h, folder: folder, model: m}, nil
}

func (s *sheep) grace() time.Duration { return cmp.Or(s.options.Grace, s.cfg.Grace) }

// freePort returns a loopback port that nothing listens on now.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// watch reports what the runner does until it has ended.
func (s *sheep) watch(ctx context.Context, life *found, c *conn, observe runtime.Observer, detach <-chan struct{}) error {
	h := life.handle
	started, wanted := h.Started(), ctx.Done()
	var connected <-chan struct{}
	var overdue <-chan time.Time
	begun := func() {
		started, connected = nil, h.Connected()
		observe(runtime.Event{Stage: runtime.Starting, PID: h.PID(), Text: "started with model " + life.model.String()})
	}
	for {
		select {
		case <-started:
			begun()
		case <-connected:
			connected = nil
			observe(runtime.Event{Stage: runtime.Connected, PID: h.PID(), Text: "takes jobs"})
		case <-detach:
			h.Detach()
			return runtime.ErrDetached
		case <-wanted:
			wanted = nil
			overdue = time.After(s.grace() + lastResort)
			if err := s.askToStop(h); err != nil {
				overdue = time.After(0)
			}
		case <-overdue:
			overdue = nil
			s.log.Error("The shim does not stop its runner; killing both", "pid", h.Hello().PID)
			if err := shim.Kill(life.folder); err != nil {
				s.log.Error("Cannot kill the shim", "error", err)
			}
		case <-h.Ended():
			if started != nil && h.PID() != 0 {
				begun()
			}
			return s.conclude(life, c)
		}
	}
}

// askToStop tells the shim to stop its runner; an error says that it does not
// listen.
func (s *sheep) askToStop(h *shim.Handle) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := h.Stop(ctx, s.grace()); err != nil && !errors.Is(err, messenger.ErrClosed) {
		return err
	}
	return nil
}

// conclude ends what is left of a life whose runner or shim has ended, and says
// why.
func (s *sheep) conclude(life *found, c *conn) error {
	exit, r, err := s.bury(life.handle, life.folder)
	if errors.Is(err, shim.ErrSuperseded) {
		life.handle.Detach()
		return fmt.Errorf("%w: %w", runtime.ErrDetached, err)
	}
	if err != nil {
		life.handle.Detach()
		return &runtime.Exit{Code: -1, Lost: true, Detail: err.Error()}
	}
	c.settle(r)
	if exit.StartError != "" {
		var class error = errdefs.ErrFailedPrecondition
		if exit.Retry {
			class = errdefs.ErrUnavailable
		}
		return &runtime.LoadError{Message: exit.StartError, Class: class}
	}
	return exitOf(exit)
}

// bury waits for the exit of a life, ends its shim, and keeps what is not
// settled of it.
func (s *sheep) bury(h *shim.Handle, folder string) (shim.Exit, *remains, error) {
	ctx, cancel := context.WithTimeout(context.Background(), lastResort)
	defer cancel()
	exit, err := h.Wait(ctx)
	if err != nil {
		return shim.Exit{}, nil, err
	}
	if err := h.Release(ctx); err != nil {
		s.log.Warn("The shim of an ended runner does not end; killing it", "error", err)
		if err := shim.Kill(folder); err != nil {
			s.log.Error("Cannot kill the shim", "error", err)
		}
		h.Detach()
	}
	outcome, err := shim.ReadOutcome(folder)
	if err != nil {
		s.log.Warn("What the shim kept cannot be read; it counts as lost", "error", err)
	}
	return exit, s.keep(folder, outcome), nil
}

// keep remembers a life that has ended; one with nothing to settle is removed.
func (s *sheep) keep(folder string, o shim.Outcome) *remains {
	r := &remains{folder: folder, outcome: o}
	s.mu.Lock()
	s.past = append(s.past, r)
	s.mu.Unlock()
	if r.empty() {
		s.forget(r)
	}
	return r
}

// tidy removes the lives that have no answers left to acknowledge: what became
// of their jobs is known by now.
func (s *sheep) tidy() {
	s.mu.Lock()
	past := slices.Clone(s.past)
	s.mu.Unlock()
	for _, r := range past {
		if len(r.answers()) == 0 {
			s.forget(r)
		}
	}
}

// forget removes a life's folder.
func (s *sheep) forget(r *remains) {
	if err := s.remove(r); err != nil {
		s.log.Warn("Cannot remove the traces of an ended runner", "error", err)
	}
}

func (s *sheep) remove(r *remains) error {
	if err := shim.Remove(r.folder); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.past = slices.DeleteFunc(s.past, func(p *remains) bool { return p == r })
	return nil
}

// stop stops a runner that nobody watches.
func (s *sheep) stop(h *shim.Handle, folder string) (shim.Exit, error) {
	if err := s.askToStop(h); err != nil {
		s.log.Warn("A shim does not answer; killing it", "error", err)
		if err := shim.Kill(folder); err != nil {
			return shim.Exit{}, err
		}
	}
	timer := time.AfterFunc(s.grace()+lastResort, func() { _ = shim.Kill(folder) })
	defer timer.Stop()
	<-h.Ended()
	exit, _, err := s.bury(h, folder)
	return exit, err
}

// Conn is the connection to the runner of the present Run. See runtime.Sheep.
func (s *sheep) Conn() messenger.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil {
		return closedConn{}
	}
	return s.conn
}

// Detach makes Run return and leaves the runner up. See runtime.Sheep.
func (s *sheep) Detach() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.detach == nil {
		return
	}
	select {
	case <-s.detach:
	default:
		close(s.detach)
	}
}

// Close lets go of a runner that Recover found and Run did not take up, which
// goes on, and removes what is left of ended ones; answers that were not
// acknowledged stay for the next daemon. See runtime.Sheep.
func (s *sheep) Close(context.Context) error {
	s.mu.Lock()
	life := s.found
	s.found = nil
	s.mu.Unlock()
	if life != nil {
		life.handle.Detach()
	}
	s.tidy()
	return nil
}

func exitOf(e shim.Exit) *runtime.Exit {
	return &runtime.Exit{
		Code: e.Code, Signal: e.Signal, OutOfMemory: e.OutOfMemory,
		Stopped: e.Stopped, Lost: e.Lost, Detail: e.Detail, LastLog: e.LastLog,
	}
}
