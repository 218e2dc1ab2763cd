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

// Handle is the daemon's end of a living shim. It is a messenger.Conn, with
// events and cancel; an answer that arrived before the end is still handed out
// after it, and can still be acknowledged. Its methods may be called from several
// goroutines.
//
// A connection that breaks is made again as long as the shim lives, however long
// the shim takes to answer: what was asked for meanwhile is asked for then.
type Handle struct {
	path  string
	log   *slog.Logger
	child func() error // waits for the shim's process where it is our child
	line  *line

	// mu guards what follows. The line's locks are not taken with it, nor it with them.
	mu    sync.Mutex
	hello Hello // the latest
	life  life
	work  work
}

// life is what is known of the runner. The Handle's lock is held by the callers of its
// methods; the channels may be received from without.
type life struct {
	pid    int
	exit   *Exit
	why    error // the end, where it is no exit: ErrDetached, ErrSuperseded
	closed bool  // nothing is received any more

	started   chan struct{} // closed when the runner's process exists
	connected chan struct{} // closed when the runner's socket has answered
	ended     chan struct{} // closed when exit or why is set, or closed is
}

// begin notes that the runner's process exists.
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

// over reports whether the runner takes no more jobs from here.
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

// newHandle greets the shim behind conn and begins to read from it.
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

// welcome notes what the hello of a new connection says.
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

// resend adds to the requests the job that the shim did not get. A shim of another
// version, which can be no earlier one's, is told to stop.
func (h *Handle) resend(requests []*Message) []*Message {
	h.mu.Lock()
	defer h.mu.Unlock()
	again := requests
	if h.hello.Version != Version {
		h.log.Warn("A runner of another version of shepherd cannot be talked to; stopping it", "dir", h.path, "error", &VersionError{Shim: h.hello.Version, Daemon: Version})
		again = append([]*Message{{Kind: KindStop, Grace: greetTime}}, requests...)
	}
	if h.work.coming == 0 {
		again = append(again, h.work.unsent(h.hello)...)
	}
	return again
}

// handle notes what the shim tells.
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

// over reports whether the runner's end is known, Detach was called, or the shim is one
// that takes an end of the connection for the daemon's.
func (h *Handle) over() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.life.exit != nil || h.life.why != nil || !h.hello.Has(FeatureSuperseded)
}

// gone reports whether the connection ends because of Detach or another daemon.
func (h *Handle) gone() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.life.why != nil
}

// close notes that the shim tells nothing any more.
func (h *Handle) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.life.closed = true
	h.life.end()
}

// connect notes that the runner's socket has answered. The caller holds h.mu.
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

// Hello is what the shim said when it was connected to last.
func (h *Handle) Hello() Hello {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.hello
}

// Started is closed when the runner's process exists; PID is its id then.
func (h *Handle) Started() <-chan struct{} { return h.life.started }

// Connected is closed when the runner's socket has answered.
func (h *Handle) Connected() <-chan struct{} { return h.life.connected }

// Ended is closed when the runner has ended, or the shim, or Detach was called;
// Wait says which.
func (h *Handle) Ended() <-chan struct{} { return h.life.ended }

// PID is the runner's process id, 0 while there is none.
func (h *Handle) PID() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.life.pid
}

// Send gives a job to the runner. It does not wait for the shim to take it: that
// it will is known here. See messenger.Conn.
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

// Cancel asks the runner to give the job up. See messenger.Canceller.
func (h *Handle) Cancel(ctx context.Context, id job.ID) error {
	h.mu.Lock()
	under := h.work.job.JobID == id
	can := h.hello.Has(FeatureCancel) && slices.Contains(h.work.features, messenger.FeatureCancel)
	closed := h.life.over()
	h.mu.Unlock()
	switch {
	case closed:
		return messenger.ErrClosed
	case !under:
		return fmt.Errorf("cancel job %s: it is not under way: %w", id, errdefs.ErrNotFound)
	case !can:
		return fmt.Errorf("cancel job %s: the runner did not announce that it can: %w", id, errdefs.ErrNotImplemented)
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
			over = true // once more: an answer may have come just before
		case <-ctx.Done():
			return messenger.Answer{}, ctx.Err()
		}
	}
}

// Ack says that the answer to the job is safe. After the shim's end it returns
// messenger.ErrClosed; the answer is then kept in the folder.
func (h *Handle) Ack(ctx context.Context, id job.ID) error {
	if err := h.line.request(ctx, &Message{Kind: KindAck, Job: id}); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.work.forget(id)
	return nil
}

// Kept waits for the answers that the shim kept when it was connected to, and
// returns them; those of its files where it does not answer. It is to be called
// before the first Ack. They are handed out by Recv all the same.
func (h *Handle) Kept(ctx context.Context) ([]Answer, error) {
	for {
		h.mu.Lock()
		enough := h.work.coming == 0
		kept, wake := slices.Clone(h.work.kept[:min(len(h.work.kept), h.hello.Answers)]), h.work.wake
		h.mu.Unlock()
		if enough {
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

// Stop tells the shim to stop the runner: TERM, grace, KILL. It does not wait
// for the end; Wait does. A later call with a shorter grace takes effect.
func (h *Handle) Stop(ctx context.Context, grace time.Duration) error {
	return h.line.request(ctx, &Message{Kind: KindStop, Grace: grace})
}

// Wait waits until the runner has ended and nothing is left of it and says how
// it ended. ErrDetached and ErrSuperseded say that it goes on without us. When
// the shim itself ended, Wait ends what it left behind; Lost is set then.
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

// settle finds out why the connection has ended without an exit. Of a shim that
// does not say superseded, living on is the sign of it.
func (h *Handle) settle(ctx context.Context) (Exit, error) {
	// The kernel ends a process's connection some moments before its lock.
	ending, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if AwaitEnd(ending, h.path) != nil && ctx.Err() == nil {
		return Exit{}, ErrSuperseded
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

// Watch names the process of a container, which must not have begun yet: it may
// not end before the shim has seen it.
func (h *Handle) Watch(ctx context.Context, pid int) error {
	return h.line.request(ctx, &Message{Kind: KindWatch, PID: pid})
}

// Begun says that the process that is watched has begun to run the runner.
// Until then Started and Hello's RunnerPID do not tell of it.
func (h *Handle) Begun(ctx context.Context) error {
	return h.line.request(ctx, &Message{Kind: KindBegun})
}

// Release ends the shim after Wait has returned an exit and waits for its end.
// The folder stays, for Remove.
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
		_ = h.child() // it has ended
	}
	return nil
}

// Detach closes the connection, once the shim has what was sent by it, and
// leaves the shim and its runner up. It may be called twice, and after the end.
func (h *Handle) Detach() {
	if h.Hello().Version == Version {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_ = h.line.request(ctx, &Message{Kind: KindAck}) // of nothing: its reply says that all before it was read
		cancel()
	}
	h.mu.Lock()
	if h.life.exit == nil && h.life.why == nil {
		h.life.why = ErrDetached
	}
	h.mu.Unlock()
	h.line.hangUp()
}

// Resume returns a Handle of a shim that lives in the folder and does not answer:
// it is told by its files how things stand, and connects when the shim does. The
// error is of class errdefs.ErrNotFound where nothing is known of a runner.
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
