// Package fake is a sheep type without processes: its runners are goroutines that fail on
// demand. It fulfills the contract of package runtime, so that the core can be tested
// with crashes, restarts and slow runners without waiting for real ones.
package fake

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/gpu"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
)

// Handler is the model: it processes one job. An error of type *runtime.Exit
// ends the runner; any other error is the runner's answer to the job.
type Handler func(ctx context.Context, m job.Model, in messenger.Input) error

// Last is the error of a Handler whose runner answers that the job is done, and then
// ends.
type Last struct{ Exit runtime.Exit }

func (l *Last) Error() string { return "the runner ended after its answer: " + l.Exit.Error() }

// Runners are the fake runners of a machine. They outlive drivers and their sheep, as
// processes outlive a daemon.
type Runners struct {
	mu    sync.Mutex
	lives map[string]*life     // by sheep
	logs  map[string]*sheepLog // by sheep
	loads map[string]int       // runner starts by sheep
	born  int                  // number of runners that were ever started
}

// noProcess is larger than any process id of Linux.
const noProcess = 1 << 22

// NewRunners makes a machine without runners.
func NewRunners() *Runners {
	return &Runners{lives: make(map[string]*life), logs: make(map[string]*sheepLog), loads: make(map[string]int)}
}

// Kill ends the sheep's runner like a signal would. It reports whether there was one.
func (p *Runners) Kill(sheep string, exit runtime.Exit) bool {
	p.mu.Lock()
	l := p.lives[sheep]
	p.mu.Unlock()
	if l == nil {
		return false
	}
	l.end(&exit)
	return true
}

// Gone reports whether the runner with this process id has ended.
func (p *Runners) Gone(pid int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.lives {
		if l.pid == pid && l.alive() {
			return false
		}
	}
	return true
}

// Starts returns how many runners were started for the sheep.
func (p *Runners) Starts(sheep string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.loads[sheep]
}

// Alive returns how many runners are up.
func (p *Runners) Alive() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, l := range p.lives {
		if l.alive() {
			n++
		}
	}
	return n
}

// Config configures a Driver. Functions may be nil.
type Config struct {
	Runners *Runners
	Handle  Handler
	// Load is called by the sheep's Load and returns its error.
	Load func(ctx context.Context, m job.Model) error
	// Observe lists the events that the sheep's Load reports before it calls Load.
	Observe []runtime.Event
	// Check implements runtime.ModelChecker.
	Check func(m job.Model) error
	// Find implements runtime.ModelFinder.
	Find func(m job.Model) error
	// Start is called when a runner starts, with a context for Print. If it returns a
	// *runtime.Exit, the runner ends at once.
	Start func(ctx context.Context, m job.Model) error
	// Deaf reports whether a model's runners never connect and never answer a job.
	Deaf func(m job.Model) bool
	// Cancels makes runners support cancel, which ends the context of the Handler.
	Cancels bool
	// Log is the beginning of every sheep's log, to which Print appends. If it is empty,
	// sheep keep no log.
	Log string
	// Stubborn reports whether a model's runners ignore TERM and have to be killed.
	Stubborn func(m job.Model) bool
}

// Driver makes fake sheep.
type Driver struct{ cfg Config }

// New makes a Driver.
func New(cfg Config) *Driver { return &Driver{cfg} }

// NewSheep makes a sheep. It accepts the keys type, port and devices.
func (d *Driver) NewSheep(name string, decode func(any) error) (runtime.Sheep, error) {
	var options struct {
		Type    string      `yaml:"type"`
		Port    int         `yaml:"port"`
		Devices gpu.Devices `yaml:"devices"`
	}
	if err := decode(&options); err != nil {
		return nil, err
	}
	s := &sheep{name: name, cfg: d.cfg}
	if d.cfg.Log != "" {
		return &loggingSheep{s}, nil
	}
	return s, nil
}

type sheep struct {
	name string
	cfg  Config

	mu     sync.Mutex
	loaded *job.Model
	life   *life // that Run attaches to, or is attached to
	conn   *conn
	detach chan struct{} // closed by Detach; nil without a Run
}

func (s *sheep) Load(ctx context.Context, m job.Model, observe runtime.Observer) error {
	if err := m.Validate(); err != nil {
		return &runtime.LoadError{Message: err.Error(), Class: errdefs.ErrInvalidArgument}
	}
	for _, e := range s.cfg.Observe {
		observe(e)
	}
	if s.cfg.Load != nil {
		if err := s.cfg.Load(ctx, m); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.loaded = &m
	unwanted := s.life
	if unwanted != nil && unwanted.model == m {
		unwanted = nil
	}
	if unwanted != nil {
		s.life = nil
	}
	s.mu.Unlock()
	if unwanted != nil { // a runner with another model that Recover has found
		unwanted.end(&runtime.Exit{Code: -1, Signal: "SIGTERM", Stopped: true})
		unwanted.work.Wait()
		s.forget(unwanted)
	}
	return ctx.Err()
}

// CheckModel calls Config.Check.
func (s *sheep) CheckModel(m job.Model) error {
	if s.cfg.Check == nil {
		return nil
	}
	return s.cfg.Check(m)
}

// FindModel calls Config.Find.
func (s *sheep) FindModel(m job.Model) error {
	if s.cfg.Find == nil {
		return nil
	}
	return s.cfg.Find(m)
}

func (s *sheep) Run(ctx context.Context, observe runtime.Observer) error {
	s.mu.Lock()
	l := s.life
	fresh := l == nil
	if fresh {
		if s.loaded == nil {
			s.mu.Unlock()
			return &runtime.LoadError{Message: "no model is loaded", Class: errdefs.ErrFailedPrecondition}
		}
		l = newLife(*s.loaded)
		if s.cfg.Log != "" {
			l.log = s.cfg.Runners.log(s.name)
		}
		s.cfg.Runners.mu.Lock()
		s.cfg.Runners.lives[s.name] = l
		s.cfg.Runners.loads[s.name]++
		s.cfg.Runners.born++
		l.pid = noProcess + s.cfg.Runners.born
		s.cfg.Runners.mu.Unlock()
	}
	s.life = l
	detach := make(chan struct{})
	s.detach = detach
	deaf := s.cfg.Deaf != nil && s.cfg.Deaf(l.model)
	handle := s.cfg.Handle
	if deaf {
		handle = func(ctx context.Context, _ job.Model, _ messenger.Input) error {
			<-ctx.Done()
			return ctx.Err()
		}
	}
	c := &conn{life: l, handle: handle, cancels: s.cfg.Cancels, closed: make(chan struct{})}
	s.conn = c
	s.mu.Unlock()

	observe(runtime.Event{Stage: runtime.Starting, PID: l.pid, Text: "waiting for port 9999"})
	if fresh && s.cfg.Start != nil {
		if err := s.cfg.Start(context.WithValue(ctx, runKey{}, &run{life: l}), l.model); err != nil {
			if exit, ok := err.(*runtime.Exit); ok {
				l.end(exit)
			}
		}
	}
	if fresh {
		close(l.started)
	}
	if l.alive() && !deaf {
		observe(runtime.Event{Stage: runtime.Connected})
	}
	var err error
	select {
	case <-ctx.Done():
		exit := &runtime.Exit{Code: -1, Signal: "SIGTERM", Stopped: true}
		if s.cfg.Stubborn != nil && s.cfg.Stubborn(l.model) {
			exit.Signal = "SIGKILL"
		}
		l.end(exit)
		<-l.ended
		err = l.exit
	case <-l.ended:
		err = l.exit
	case <-detach:
		err = runtime.ErrDetached
	}
	close(c.closed)
	if err != runtime.ErrDetached {
		l.work.Wait() // without the lock, because a Handler may take long
		s.forget(l)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.life, s.detach, s.conn = nil, nil, nil
	return err
}

func (s *sheep) forget(l *life) {
	s.cfg.Runners.mu.Lock()
	defer s.cfg.Runners.mu.Unlock()
	if s.cfg.Runners.lives[s.name] == l {
		delete(s.cfg.Runners.lives, s.name)
	}
}

func (s *sheep) Conn() messenger.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil {
		closed := make(chan struct{})
		close(closed)
		return &conn{life: newLife(job.Model{}), closed: closed}
	}
	return s.conn
}

func (s *sheep) Detach() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.detach != nil {
		close(s.detach)
		s.detach = nil
	}
}

func (s *sheep) Close(context.Context) error { return nil }

// Recover adopts the runner of this sheep's name.
func (s *sheep) Recover(context.Context) (*runtime.Recovered, error) {
	s.cfg.Runners.mu.Lock()
	l := s.cfg.Runners.lives[s.name]
	s.cfg.Runners.mu.Unlock()
	if l == nil {
		return nil, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	found := &runtime.Recovered{Model: l.model, Running: l.exit == nil, Job: l.current, Answers: slices.Clone(l.kept), Exit: l.exit}
	if found.Running {
		s.mu.Lock()
		s.life = l
		s.mu.Unlock()
		return found, nil
	}
	found.Forget = func() error { s.forget(l); return nil }
	return found, nil
}

// life is one runner, from its start to its end.
type life struct {
	model job.Model
	pid   int
	ctx   context.Context // ends with the runner
	stop  context.CancelFunc
	work  sync.WaitGroup

	started chan struct{} // closed when Config.Start has returned

	mu      sync.Mutex
	current job.ID             // under way
	drop    context.CancelFunc // ends that job's context
	kept    []messenger.Answer // not acknowledged
	changed chan struct{}      // closed and replaced when an answer is added
	exit    *runtime.Exit
	ended   chan struct{}
	log     *sheepLog // nil if no log is kept

	events   []messenger.Event // of the latest job
	warnings []string          // of the latest job
	taken    int               // number of jobs so far
}

func newLife(m job.Model) *life {
	l := &life{model: m, started: make(chan struct{}), changed: make(chan struct{}), ended: make(chan struct{})}
	l.ctx, l.stop = context.WithCancel(context.Background())
	return l
}

func (l *life) alive() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.exit == nil
}

func (l *life) end(exit *runtime.Exit) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.exit == nil {
		l.exit = exit
		l.stop()
		close(l.ended)
	}
}

// take starts a job, unless it is under way or answered already.
func (l *life) take(in messenger.Input, handle Handler) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.exit != nil:
		return messenger.ErrClosed
	case l.current == in.JobID || slices.ContainsFunc(l.kept, func(a messenger.Answer) bool { return a.JobID == in.JobID }):
		return nil
	case l.current != "":
		return fmt.Errorf("job %s is under way", l.current)
	case len(l.kept) >= messenger.MaxKept:
		return fmt.Errorf("%d answers are not acknowledged", len(l.kept))
	}
	l.current = in.JobID
	l.events, l.warnings, l.taken = nil, nil, l.taken+1
	given := messenger.Event{Kind: messenger.EventGiven, JobID: in.JobID}
	if l.log != nil {
		given.Log = l.log.begin()
	}
	l.addEvent(given)
	ctx, drop := context.WithCancel(l.ctx)
	l.drop = drop
	l.work.Go(func() {
		defer drop()
		select {
		case <-l.started:
		case <-l.ended:
		}
		err := handle(context.WithValue(ctx, runKey{}, &run{life: l, job: in.JobID}), l.model, in)
		exit, exits := err.(*runtime.Exit)
		var last *Last
		if errors.As(err, &last) {
			err = nil
		}
		l.mu.Lock()
		if l.exit == nil && !exits {
			a := messenger.Answer{JobID: in.JobID, Warnings: l.warnings}
			if l.log != nil {
				a.Log = l.log.end(given.Log)
			}
			if err != nil {
				a.Failure = &job.Failure{Message: err.Error(), Type: fmt.Sprintf("%T", err)}
				errors.As(err, &a.Failure) // the handler may return a job.Failure itself
			}
			l.current = ""
			l.kept = append(l.kept, a)
			close(l.changed)
			l.changed = make(chan struct{})
		}
		l.mu.Unlock()
		switch {
		case exits:
			l.end(exit)
		case last != nil:
			l.end(&last.Exit)
		}
	})
	return nil
}

// conn is one connection to a life.
type conn struct {
	life    *life
	handle  Handler
	cancels bool
	closed  chan struct{}

	mu    sync.Mutex
	seen  []job.ID // jobs whose answers were received by this connection and not acknowledged
	told  int      // how many events of the job with the number taken were received
	taken int
	ready bool // EventReady was received
}

func (c *conn) Send(ctx context.Context, in messenger.Input) error {
	select {
	case <-c.closed:
		return messenger.ErrClosed
	default:
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return c.life.take(in, c.handle)
}

// Cancel cancels the job. See messenger.Canceller.
func (c *conn) Cancel(_ context.Context, id job.ID) error {
	if !c.cancels {
		return fmt.Errorf("cancel job %s: %w", id, errdefs.ErrNotImplemented)
	}
	c.life.mu.Lock()
	defer c.life.mu.Unlock()
	if c.life.current == id {
		c.life.drop()
	}
	return nil
}

func (c *conn) Recv(ctx context.Context) (messenger.Answer, error) {
	for {
		if a, ok := c.unseen(); ok {
			return a, nil
		}
		c.life.mu.Lock()
		changed, exited := c.life.changed, c.life.exit != nil
		c.life.mu.Unlock()
		if a, ok := c.unseen(); ok {
			return a, nil
		}
		if exited {
			return messenger.Answer{}, messenger.ErrClosed
		}
		select {
		case <-ctx.Done():
			return messenger.Answer{}, ctx.Err()
		case <-c.closed:
			return messenger.Answer{}, messenger.ErrClosed
		case <-c.life.ended:
		case <-changed:
		}
	}
}

// unseen returns the oldest answer that this connection has not received.
func (c *conn) unseen() (messenger.Answer, bool) {
	c.life.mu.Lock()
	defer c.life.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range c.life.kept {
		if !slices.Contains(c.seen, a.JobID) {
			c.seen = append(c.seen, a.JobID)
			return a, true
		}
	}
	return messenger.Answer{}, false
}

func (c *conn) Ack(_ context.Context, id job.ID) error {
	c.life.mu.Lock()
	defer c.life.mu.Unlock()
	select {
	case <-c.closed:
		if !slices.ContainsFunc(c.life.kept, func(a messenger.Answer) bool { return a.JobID == id }) {
			return messenger.ErrClosed
		}
	default:
	}
	c.life.kept = slices.DeleteFunc(c.life.kept, func(a messenger.Answer) bool { return a.JobID == id })
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = slices.DeleteFunc(c.seen, func(seen job.ID) bool { return seen == id })
	return nil
}

// WriteOutput writes outputs/NAME of a job.
func WriteOutput(in messenger.Input, name string, data []byte) error {
	return os.WriteFile(filepath.Join(in.IODataRoot, string(in.JobID), job.OutputDir, name), data, 0o644)
}

// ReadInput reads inputs/NAME of a job.
func ReadInput(in messenger.Input, name string) ([]byte, error) {
	return os.ReadFile(filepath.Join(in.IODataRoot, string(in.JobID), job.InputDir, name))
}
