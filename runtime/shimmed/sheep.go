// Package shimmed implements runtime.Sheep for sheep types whose runners have shims, so
// that they outlive the daemon. A Type implements what differs between them.
//
// A sheep's state is in one directory: lives/LIFE is the directory of one runner and its
// shim (see package shim), log has their logs.
package shimmed

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/internal/errtext"
	"github.com/iterait/shepherd/internal/logtext"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
	"github.com/iterait/shepherd/shim"
)

// How long a shim may take before it is considered broken.
const (
	shimTimeout = 10 * time.Second // to start, or to answer a request
	killTimeout = 45 * time.Second // to stop its runner, in addition to the grace: longer than it waits after KILL
)

// The defaults of Config.
const (
	DefaultGrace         = 10 * time.Second
	DefaultOrphanTimeout = 10 * time.Minute
)

// The size in bytes at which the runner's log is rotated, and how many rotated ones are
// kept.
const (
	logSize = 10 << 20
	logKeep = 3
)

// Type implements what differs between sheep types.
type Type interface {
	// Load makes the model ready to start. See runtime.Sheep.
	Load(ctx context.Context, m job.Model, observe runtime.Observer) error

	// Prepare fills in the fields of spec that describe the runner: Runner or
	// Container, and Port. The error is a *runtime.LoadError if the model or the
	// machine is its cause.
	Prepare(spec *shim.Spec) error

	// Launch starts the runner if the shim does not, and tells the shim of its process
	// by Watch and Begun. folder is the life's directory; up waits until the shim is
	// ready and returns its handle. If Launch fails, Clean removes what it has made.
	Launch(ctx context.Context, up func() (*shim.Handle, error), folder string, spec shim.Spec) error

	// Clean removes what a life has left whose runner and shim have ended, except its
	// directory, and adds to exit what the shim does not know of it. It may be called
	// again for the same life.
	Clean(ctx context.Context, spec shim.Spec, exit *shim.Exit) error
}

// Config configures a sheep.
type Config struct {
	Name string
	Type Type
	// DataRoot is the runner's io_data_root for jobs that do not set another.
	DataRoot string
	// Dir is the directory of the sheep's state.
	Dir string
	// Stdout and Stderr are the files to which Type has the runner's output written; if
	// empty, it goes to the log in Dir.
	Stdout, Stderr string
	// Shim is the path of the shepherd-shim program; see FindShim.
	Shim string
	// Grace is the time between TERM and KILL when a runner is stopped, OrphanTimeout
	// how long an idle runner stays up while no daemon is connected to its shim. 0 means
	// the default.
	Grace, OrphanTimeout time.Duration
	Log                  *slog.Logger
}

// Sheep is a sheep whose runner has a shim.
type Sheep struct {
	cfg   Config
	log   *slog.Logger
	lives *lives
	*output

	mu     sync.Mutex
	model  *job.Model    // loaded last
	found  *found        // by Recover, until the next Run
	conn   *conn         // of the present or last Run
	taken  string        // the directory of a life that another daemon has taken over
	detach chan struct{} // closed by Detach; nil without a Run
}

var (
	_ runtime.Sheep     = (*Sheep)(nil)
	_ runtime.Recoverer = (*Sheep)(nil)
	_ runtime.Logger    = (*Sheep)(nil)
	_ runtime.JobLogger = (*Sheep)(nil)
	_ runtime.Owner     = (*Sheep)(nil)

	_ runtime.ModelChecker = (*Sheep)(nil)
	_ runtime.ModelFinder  = (*Sheep)(nil)
	_ runtime.ModelAdviser = (*Sheep)(nil)
	_ runtime.Prefetcher   = (*Sheep)(nil)
)

// New makes a sheep. It changes nothing on the machine.
func New(cfg Config) *Sheep {
	cfg.Grace = cmp.Or(cfg.Grace, DefaultGrace)
	cfg.OrphanTimeout = cmp.Or(cfg.OrphanTimeout, DefaultOrphanTimeout)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	log := cfg.Log.With("sheep", cfg.Name)
	return &Sheep{
		cfg: cfg, log: log,
		lives:  &lives{dir: filepath.Join(cfg.Dir, "lives"), typ: cfg.Type, grace: cfg.Grace, log: log},
		output: &output{dir: cfg.Dir, stdout: cfg.Stdout, stderr: cfg.Stderr},
	}
}

// found is a runner that outlived an earlier daemon.
type found struct {
	handle *shim.Handle
	folder string
	model  job.Model
	port   int // on which its runner listens; 0 if an earlier daemon started it
}

// waitingFor describes for people what the start of the runner waits for.
func (f *found) waitingFor() string {
	if f.port == 0 {
		return "waiting for the runner to take jobs"
	}
	return fmt.Sprintf("waiting for port %d", f.port)
}

// Load makes the model ready to start. See runtime.Sheep.
func (s *Sheep) Load(ctx context.Context, m job.Model, observe runtime.Observer) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := m.Validate(); err != nil {
		return &runtime.LoadError{Message: fmt.Sprintf("Cannot load model `%s:%s`, %v", m.Name, m.Version, err), Class: errdefs.ErrInvalidArgument}
	}
	if _, err := FindShim(s.cfg.Shim); err != nil {
		return err
	}
	if err := s.cfg.Type.Load(ctx, m, observe); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.model = &m
	return nil
}

// CheckModel calls the Type's CheckModel, if it has one. See runtime.ModelChecker.
func (s *Sheep) CheckModel(m job.Model) error {
	if c, ok := s.cfg.Type.(runtime.ModelChecker); ok {
		return c.CheckModel(m)
	}
	return nil
}

// FindModel calls the Type's FindModel, if it has one. See runtime.ModelFinder.
func (s *Sheep) FindModel(m job.Model) error {
	if f, ok := s.cfg.Type.(runtime.ModelFinder); ok {
		return f.FindModel(m)
	}
	return nil
}

// ModelAdvice calls the Type's ModelAdvice, if it has one. See runtime.ModelAdviser.
func (s *Sheep) ModelAdvice(m job.Model) string {
	if a, ok := s.cfg.Type.(runtime.ModelAdviser); ok {
		return a.ModelAdvice(m)
	}
	return ""
}

// Prefetch calls the Type's Prefetch, if it has one. See runtime.Prefetcher.
func (s *Sheep) Prefetch(ctx context.Context, m job.Model, observe runtime.Observer) error {
	if p, ok := s.cfg.Type.(runtime.Prefetcher); ok {
		return p.Prefetch(ctx, m, observe)
	}
	return nil
}

// ChecksDigests calls the Type's ChecksDigests, if it has one. See runtime.DigestChecker.
func (s *Sheep) ChecksDigests() bool {
	c, ok := s.cfg.Type.(runtime.DigestChecker)
	return ok && c.ChecksDigests()
}

// Owner calls the Type's Owner, if it has one; otherwise runners are processes of this
// daemon's user. See runtime.Owner.
func (s *Sheep) Owner(ctx context.Context, m job.Model) (uid, gid int, err error) {
	if o, ok := s.cfg.Type.(runtime.Owner); ok {
		return o.Owner(ctx, m)
	}
	return os.Geteuid(), os.Getegid(), nil
}

// Run starts or attaches to a runner and waits for its end. See runtime.Sheep.
func (s *Sheep) Run(ctx context.Context, observe runtime.Observer) error {
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
	c := newConn(life.handle, s.cfg.DataRoot, earlier)
	defer c.settle(nil)
	s.mu.Lock()
	s.conn = c
	s.mu.Unlock()
	return s.watch(ctx, life, c, observe, detach)
}

// begin returns the runner that Recover found, or a new one, and the ended lives that
// Recover found.
func (s *Sheep) begin(ctx context.Context) (*found, []*endedLife, error) {
	s.mu.Lock()
	life, model := s.found, s.model
	s.found = nil
	s.mu.Unlock()
	var earlier []*endedLife
	if life != nil {
		earlier = s.lives.all()
	}
	if err := s.checkTakenOver(); err != nil {
		return nil, nil, err
	}
	if life != nil && (model == nil || *model == life.model) {
		return life, earlier, nil
	}
	if life != nil {
		s.log.Info("Stopping the recovered runner, because another model is loaded", "model", model.String())
		if _, _, err := s.lives.stop(life.handle, life.folder); err != nil {
			return nil, nil, err
		}
	}
	if model == nil {
		return nil, nil, &runtime.LoadError{Message: "no model is loaded", Class: errdefs.ErrFailedPrecondition}
	}
	s.lives.removeSettled()
	life, err := s.start(ctx, *model)
	return life, earlier, err
}

// checkTakenOver returns an error while a runner is up that another daemon has taken over,
// so that no second one is started.
func (s *Sheep) checkTakenOver() error {
	s.mu.Lock()
	taken := s.taken
	s.mu.Unlock()
	if taken == "" {
		return nil
	}
	alive, err := shim.Alive(taken)
	if err != nil {
		return err
	}
	if alive {
		return &runtime.LoadError{
			Message: fmt.Sprintf("another daemon has taken over the runner of sheep `%s`; stop that daemon, or give this one a state directory of its own", s.cfg.Name),
			Class:   errdefs.ErrUnavailable,
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken = ""
	return nil
}

// start starts a shim and its runner.
func (s *Sheep) start(ctx context.Context, m job.Model) (*found, error) {
	spec := shim.Spec{
		Life: shim.NewLife(), Sheep: s.cfg.Name, Model: m,
		LogDir: s.logDir(), LogSize: logSize, LogKeep: logKeep,
		Grace: s.cfg.Grace, OrphanTimeout: s.cfg.OrphanTimeout,
	}
	if err := s.cfg.Type.Prepare(&spec); err != nil {
		return nil, err
	}
	if trace := runtime.TraceOf(ctx); spec.Runner != nil && !trace.IsZero() {
		spec.Runner.Env = slices.DeleteFunc(spec.Runner.Env, func(v string) bool {
			return strings.HasPrefix(v, "TRACEPARENT=") || strings.HasPrefix(v, "TRACESTATE=")
		})
		spec.Runner.Env = append(spec.Runner.Env, trace.Environ()...)
	}
	binary, err := FindShim(s.cfg.Shim)
	if err != nil {
		return nil, err
	}
	folder := filepath.Join(s.lives.dir, spec.Life)
	starting, err := shim.Begin(binary, folder, spec, s.log)
	if err != nil {
		return nil, startError(ctx, err)
	}
	up := sync.OnceValues(func() (*shim.Handle, error) {
		ctx, cancel := context.WithTimeout(ctx, shimTimeout)
		defer cancel()
		return starting.Wait(ctx)
	})
	launched := s.cfg.Type.Launch(ctx, up, folder, spec)
	h, err := up()
	switch {
	case err != nil:
		if err := s.cfg.Type.Clean(context.WithoutCancel(ctx), spec, &shim.Exit{Stopped: true}); err != nil {
			s.log.Warn("Cleaning up after a failed start of a runner failed", "error", err)
		}
		return nil, startError(ctx, err)
	case launched != nil:
		if _, _, err := s.lives.stop(h, folder); err != nil {
			s.log.Warn("Cleaning up after a failed start of a runner failed", "error", err)
		}
		return nil, startError(ctx, launched)
	}
	return &found{handle: h, folder: folder, model: m, port: spec.Port}, nil
}

// startError returns Run's error after a failed start.
func startError(ctx context.Context, err error) error {
	var load *runtime.LoadError
	switch {
	case ctx.Err() != nil:
		return &runtime.Exit{Code: -1, Stopped: true, Detail: "stopped while it was started"}
	case errors.As(err, &load):
		return load
	}
	return &runtime.LoadError{Message: errtext.Of(err), Class: errdefs.ErrUnavailable}
}

// watch reports the runner's stages, stops the runner when ctx ends, and returns when it
// has ended or Detach is called.
func (s *Sheep) watch(ctx context.Context, life *found, c *conn, observe runtime.Observer, detach <-chan struct{}) error {
	h := life.handle
	started, wanted := h.Started(), ctx.Done()
	var connected <-chan struct{}
	var overdue <-chan time.Time
	begun := func() {
		started, connected = nil, h.Connected()
		observe(runtime.Event{Stage: runtime.Starting, PID: h.PID(), Text: life.waitingFor()})
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
			overdue = time.After(s.cfg.Grace + killTimeout)
			if err := s.lives.askToStop(h); err != nil {
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

// conclude finishes a life whose runner or shim has ended, and returns Run's error.
func (s *Sheep) conclude(life *found, c *conn) error {
	exit, r, err := s.lives.finish(life.handle, life.folder)
	if errors.Is(err, shim.ErrSuperseded) {
		life.handle.Detach()
		s.mu.Lock()
		s.taken = life.folder
		s.mu.Unlock()
		return fmt.Errorf("%w: %w", runtime.ErrSuperseded, err)
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
	if exit.Code == messenger.ExitLoad && !isClosed(life.handle.Connected()) {
		return &runtime.LoadError{
			Message: fmt.Sprintf("Cannot load model `%s:%s`: %s", life.model.Name, life.model.Version, cmp.Or(logtext.Cause(exit.LastLog), "its runner printed no reason")),
			Class:   errdefs.ErrFailedPrecondition,
		}
	}
	return exitOf(exit)
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Conn is the connection to the runner of the present Run. See runtime.Sheep.
func (s *Sheep) Conn() messenger.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil {
		return closedConn{}
	}
	return s.conn
}

// Detach makes Run return and leaves the runner up. See runtime.Sheep.
func (s *Sheep) Detach() {
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

// Close detaches from a runner that Recover found and no Run has attached to, and removes
// the state of runners that have ended. Unacknowledged answers stay for the next daemon.
// See runtime.Sheep.
func (s *Sheep) Close(context.Context) error {
	s.mu.Lock()
	life := s.found
	s.found = nil
	s.mu.Unlock()
	if life != nil {
		life.handle.Detach()
	}
	s.lives.removeSettled()
	return nil
}

func exitOf(e shim.Exit) *runtime.Exit {
	return &runtime.Exit{
		Code: e.Code, Signal: e.Signal, OutOfMemory: e.OutOfMemory,
		Stopped: e.Stopped, Lost: e.Lost, Detail: e.Detail, LastLog: e.LastLog,
	}
}
