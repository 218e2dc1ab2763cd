package shim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
)

var (
	// ErrDetached is what Wait returns after Detach.
	ErrDetached = errors.New("detached from the shim")
	// ErrSuperseded is what Wait returns when another daemon has connected to
	// the shim.
	ErrSuperseded = errors.New("another daemon has taken over the shim; is a second one running on the same state directory?")
)

// Handle is the daemon's connection to a shim. It is a messenger.Conn with events and
// cancel. Answers that arrived before the runner's end are still returned by Recv after
// it, and can still be acknowledged. Its methods may be called from several goroutines.
//
// If the connection breaks, the Handle reconnects as long as the shim is alive, however
// long the shim takes to answer, and sends outstanding requests again.
type Handle struct {
	path  string
	log   *slog.Logger
	child func() error // waits for the shim's process; nil if it is not a child of this process
	line  *line

	// mu guards the fields below. It is not held together with the line's locks.
	mu    sync.Mutex
	hello Hello // the latest
	life  life
	work  work
}

// life is the state of the runner. Callers of its methods hold Handle.mu; the channels
// may be received from without it.
type life struct {
	pid    int
	exit   *Exit
	why    error // ErrDetached or ErrSuperseded, if the Handle ended without an exit
	closed bool  // the line has ended

	started   chan struct{} // closed when the runner's process exists
	connected chan struct{} // closed when the runner's socket has answered
	ended     chan struct{} // closed when exit or why is set, or closed is
}

// begin records that the runner's process exists.
func (l *life) begin(pid int) {
	if l.pid == 0 {
		l.pid = pid
		close(l.started)
	}
}

// end closes ended.
func (l *life) end() {
	select {
	case <-l.ended:
	default:
		close(l.ended)
	}
}

// over reports whether the runner accepts no more jobs from this Handle.
func (l *life) over() bool { return l.closed || l.exit != nil || l.why != nil }

var (
	_ messenger.Conn        = (*Handle)(nil)
	_ messenger.EventSource = (*Handle)(nil)
	_ messenger.Canceller   = (*Handle)(nil)
)

func makeHandle(path string, log *slog.Logger) *Handle {
	h := &Handle{
		path: path, log: log,
		life: life{started: make(chan struct{}), connected: make(chan struct{}), ended: make(chan struct{})},
		work: work{wake: make(chan struct{})},
	}
	h.line = newLine(path, log, h)
	return h
}

// newHandle exchanges hellos with the shim on conn and starts reading from it.
func newHandle(ctx context.Context, path string, conn net.Conn, log *slog.Logger) (*Handle, error) {
	hello, err := greet(ctx, conn)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("greet the shim in %s: %w", path, err)
	}
	h := makeHandle(path, log)
	h.line.welcome(conn, *hello)
	h.work.job.JobID = hello.Job
	go h.line.run(conn)
	if hello.Version != Version {
		return h, &VersionError{Shim: hello.Version, Daemon: Version}
	}
	return h, nil
}

// welcome records the hello of a new connection. See lineUser.
func (h *Handle) welcome(hello Hello) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hello = hello
	h.work.coming = hello.Answers
	if hello.RunnerPID > 0 {
		h.life.begin(hello.RunnerPID)
	}
	if hello.Connected {
		h.connect()
	}
}

// resend adds to the requests the job that the shim has not received. It tells a shim
// of another protocol version to stop its runner. See lineUser.
func (h *Handle) resend(requests []*Message) []*Message {
	h.mu.Lock()
	defer h.mu.Unlock()
	again := requests
	if h.hello.Version != Version {
		h.log.Warn("The shim of a runner has another protocol version; stopping the runner", "dir", h.path, "error", &VersionError{Shim: h.hello.Version, Daemon: Version})
		again = append([]*Message{{Kind: KindStop, Grace: greetTime}}, requests...)
	}
	if h.work.coming == 0 {
		again = append(again, h.work.unsent(h.hello)...)
	}
	return again
}

// handle handles a message of the shim. See lineUser.
func (h *Handle) handle(m *Message) (again []*Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch m.Kind {
	case KindStarted:
		h.life.begin(m.PID)
	case KindConnected:
		h.connect()
	case KindAnswer:
		if m.Answer != nil {
			h.work.add(*m.Answer)
		}
		if h.work.coming > 0 {
			if h.work.coming--; h.work.coming == 0 {
				again = h.work.unsent(h.hello)
			}
		}
	case KindEvent:
		if m.Event != nil {
			h.work.event(*m.Event)
		}
	case KindExit:
		if m.Exit != nil && h.life.exit == nil {
			h.life.exit = m.Exit
			h.life.end()
		}
	case KindSuperseded:
		if h.life.why == nil && h.life.exit == nil {
			h.life.why = ErrSuperseded
			h.life.end()
		}
	}
	return again
}

// over reports whether the line must not reconnect: the runner has ended, Detach was
// called, another daemon has connected, or the shim does not support reconnecting.
func (h *Handle) over() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.life.exit != nil || h.life.why != nil || !h.hello.Has(FeatureSuperseded)
}

// gone reports whether the connection has ended because of Detach or another daemon.
func (h *Handle) gone() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.life.why != nil
}

// close records that the line has ended.
func (h *Handle) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.life.closed = true
	h.life.end()
}

// connect records that the runner's socket has answered. The caller holds h.mu.
func (h *Handle) connect() {
	select {
	case <-h.life.connected:
		return
	default:
		close(h.life.connected)
	}
	if !h.hello.Has(FeatureEvents) {
		h.work.note(messenger.Event{Kind: messenger.EventReady, Time: time.Now()})
	}
}

// Hello returns the shim's hello of the latest connection.
func (h *Handle) Hello() Hello {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.hello
}

// Started is closed when the runner's process exists; PID returns its id then.
func (h *Handle) Started() <-chan struct{} { return h.life.started }

// Connected is closed when the runner's socket has answered.
func (h *Handle) Connected() <-chan struct{} { return h.life.connected }

// Ended is closed when the runner or the shim has ended, Detach was called, or another
// daemon has connected. Wait says which.
func (h *Handle) Ended() <-chan struct{} { return h.life.ended }

// PID returns the runner's process id, 0 while there is none.
func (h *Handle) PID() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.life.pid
}

// Send gives a job to the runner. It does not wait for the shim's reply, because it
// checks here what the shim would. See messenger.Conn.
func (h *Handle) Send(ctx context.Context, in messenger.Input) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	h.mu.Lock()
	w := &h.work
	switch {
	case h.life.over():
		h.mu.Unlock()
		return messenger.ErrClosed
	case h.hello.Version != Version:
		h.mu.Unlock()
		return &VersionError{Shim: h.hello.Version, Daemon: Version}
	case w.job.JobID == in.JobID, slices.ContainsFunc(w.kept, func(a Answer) bool { return a.Job == in.JobID }):
		h.mu.Unlock()
		return nil
	case w.job.JobID != "":
		defer h.mu.Unlock()
		return fmt.Errorf("send job %s: job %s is under way: %w", in.JobID, w.job.JobID, errdefs.ErrFailedPrecondition)
	case len(w.kept) >= messenger.MaxKept:
		defer h.mu.Unlock()
		return fmt.Errorf("send job %s: %d answers are not acknowledged: %w", in.JobID, len(w.kept), errdefs.ErrFailedPrecondition)
	}
	w.job, w.features = in, nil
	m := h.work.sending(h.hello)
	h.mu.Unlock()
	h.line.write(m)
	return nil
}

// Cancel asks the runner to cancel the job. See messenger.Canceller.
func (h *Handle) Cancel(ctx context.Context, id job.ID) error {
	h.mu.Lock()
	underWay := h.work.job.JobID == id
	can := h.hello.Has(FeatureCancel) && slices.Contains(h.work.features, messenger.FeatureCancel)
	closed := h.life.over()
	h.mu.Unlock()
	switch {
	case closed:
		return messenger.ErrClosed
	case !underWay:
		return fmt.Errorf("cancel job %s: it is not under way: %w", id, errdefs.ErrNotFound)
	case !can:
		return fmt.Errorf("cancel job %s: the runner did not announce that it can cancel jobs: %w", id, errdefs.ErrNotImplemented)
	}
	return h.line.request(ctx, &Message{Kind: KindCancel, Job: id})
}

// RecvEvent waits for the next event. See messenger.EventSource.
func (h *Handle) RecvEvent(ctx context.Context) (messenger.Event, error) {
	for over := false; ; {
		h.mu.Lock()
		e, ok := h.work.nextEvent()
		wake := h.work.wake
		h.mu.Unlock()
		if ok {
			return e, nil
		}
		if over {
			return messenger.Event{}, messenger.ErrClosed
		}
		select {
		case <-wake:
		case <-h.life.ended:
			over = true
		case <-ctx.Done():
			return messenger.Event{}, ctx.Err()
		}
	}
}

// Recv waits for the next answer. See messenger.Conn.
func (h *Handle) Recv(ctx context.Context) (messenger.Answer, error) {
	for over := false; ; {
		h.mu.Lock()
		a, ok := h.work.nextAnswer()
		wake := h.work.wake
		h.mu.Unlock()
		if ok {
			return a.Message(), nil
		}
		if over {
			return messenger.Answer{}, messenger.ErrClosed
		}
		select {
		case <-wake:
		case <-h.life.ended:
			over = true // check once more for an answer that came just before
		case <-ctx.Done():
			return messenger.Answer{}, ctx.Err()
		}
	}
}

// Ack tells the shim that the answer to the job is stored. After the shim's end it
// returns messenger.ErrClosed; the answer then stays in the life's directory.
func (h *Handle) Ack(ctx context.Context, id job.ID) error {
	if err := h.line.request(ctx, &Message{Kind: KindAck, Job: id}); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.work.forget(id)
	return nil
}

// Kept waits for the answers that the shim had kept when this Handle connected, and
// returns them; for a shim that does not answer, those of its files. It is to be called
// before the first Ack. Recv returns the same answers.
func (h *Handle) Kept(ctx context.Context) ([]Answer, error) {
	for {
		h.mu.Lock()
		complete := h.work.coming == 0
		kept, wake := slices.Clone(h.work.kept[:min(len(h.work.kept), h.hello.Answers)]), h.work.wake
		h.mu.Unlock()
		if complete {
			return kept, nil
		}
		select {
		case <-wake:
		case <-h.line.read:
			return kept, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Stop tells the shim to stop the runner: TERM, then KILL after grace. It does not wait
// for the runner's end; Wait does. A later call can shorten the grace.
func (h *Handle) Stop(ctx context.Context, grace time.Duration) error {
	return h.line.request(ctx, &Message{Kind: KindStop, Grace: grace})
}

// Wait waits until the runner and all of its processes have ended, and returns how it
// ended. The error is ErrDetached or ErrSuperseded if the runner stays up without this
// Handle. If the shim itself has ended, Wait kills the processes that it left behind,
// and the exit has Lost set.
func (h *Handle) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-h.life.ended:
	case <-ctx.Done():
		return Exit{}, ctx.Err()
	}
	h.mu.Lock()
	exit, why := h.life.exit, h.life.why
	h.mu.Unlock()
	switch {
	case exit != nil:
		return *exit, nil
	case why != nil:
		return Exit{}, why
	}
	settled, err := h.settle(ctx)
	if err != nil {
		return Exit{}, err
	}
	return settled, nil
}

// settle determines why the connection has ended without an exit. A shim that does not
// support FeatureSuperseded and is still alive has closed it for another daemon.
func (h *Handle) settle(ctx context.Context) (Exit, error) {
	// When a process ends, the kernel closes its connections before it releases its
	// lock.
	ending, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	switch err := AwaitEnd(ending, h.path); {
	case err == nil || ctx.Err() != nil:
	case ending.Err() != nil:
		return Exit{}, ErrSuperseded
	default: // nobody has taken over; for example, this process has no descriptor left
		return Exit{}, err
	}
	settled, err := Settle(ctx, h.path, h.log)
	switch {
	case errors.Is(err, ErrAlive):
		return Exit{}, ErrSuperseded
	case err != nil:
		return Exit{}, err
	}
	if h.child != nil {
		_ = h.child()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, a := range settled.Answers {
		h.work.add(a)
	}
	h.life.exit = settled.Exit
	return *settled.Exit, nil
}

// Watch tells the shim the pid of a container's first process. The process must not
// have begun yet, so that it cannot end before the shim watches it.
func (h *Handle) Watch(ctx context.Context, pid int) error {
	return h.line.request(ctx, &Message{Kind: KindWatch, PID: pid})
}

// Begun tells the shim that the process it watches has begun to run the runner. Until
// then Started is not closed, and Hello has no RunnerPID.
func (h *Handle) Begun(ctx context.Context) error {
	return h.line.request(ctx, &Message{Kind: KindBegun})
}

// Release makes the shim end after Wait has returned an exit, and waits until it has.
// The life's directory stays; Remove removes it.
func (h *Handle) Release(ctx context.Context) error {
	err := h.line.request(ctx, &Message{Kind: KindRelease})
	if err != nil && !errors.Is(err, messenger.ErrClosed) {
		return fmt.Errorf("end the shim in %s: %w", h.path, err)
	}
	select {
	case <-h.line.read:
	case <-ctx.Done():
		return fmt.Errorf("end the shim in %s: %w", h.path, ctx.Err())
	}
	if err := AwaitEnd(ctx, h.path); err != nil {
		return fmt.Errorf("end the shim in %s: %w", h.path, err)
	}
	if h.child != nil {
		_ = h.child() // reap the process, which has ended
	}
	return nil
}

// Detach closes the connection, after the shim has received what was sent on it, and
// leaves the shim and its runner up. It may be called twice, and after the end.
func (h *Handle) Detach() {
	if h.Hello().Version == Version {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_ = h.line.request(ctx, &Message{Kind: KindAck}) // acknowledges nothing; its reply shows that earlier messages were read
		cancel()
	}
	h.mu.Lock()
	if h.life.exit == nil && h.life.why == nil {
		h.life.why = ErrDetached
	}
	h.mu.Unlock()
	h.line.hangUp()
}

// Resume returns a Handle of a shim that is alive but does not answer. The Handle's
// state comes from the shim's files, and it connects when the shim answers again. The
// error is of class errdefs.ErrNotFound if the files name no runner.
func Resume(folder string, log *slog.Logger) (*Handle, error) {
	var state State
	if err := readJSON(filepath.Join(folder, stateFile), &state); err != nil {
		return nil, fmt.Errorf("adopt a shim that does not answer: %w: %w", err, errdefs.ErrNotFound)
	}
	outcome, err := ReadOutcome(folder)
	if err != nil {
		return nil, err
	}
	if state.Runner == nil {
		return nil, fmt.Errorf("adopt a shim that does not answer: it has started no runner: %w", errdefs.ErrNotFound)
	}
	h := makeHandle(folder, log)
	h.hello = Hello{
		Version: Version, Features: []Feature{FeatureSuperseded}, Life: filepath.Base(folder),
		PID: state.Shim.PID, RunnerPID: state.Runner.PID, Job: outcome.Job, Answers: len(outcome.Answers),
	}
	h.life.begin(state.Runner.PID)
	h.work.job.JobID = outcome.Job
	for _, a := range outcome.Answers {
		h.work.add(a)
	}
	go h.line.run(nil)
	return h, nil
}
