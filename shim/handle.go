package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
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

// Handle is the daemon's end of a living shim. It is a messenger.Conn; an
// answer that arrived before the end is still handed out after it, and can still
// be acknowledged. Its methods may be called from several goroutines.
type Handle struct {
	path  string
	conn  net.Conn
	log   *slog.Logger
	hello Hello
	child func() error // waits for the shim's process where it is our child

	writing sync.Mutex // one message at a time on conn

	mu       sync.Mutex
	number   uint64
	replies  map[uint64]chan *Message
	pid      int
	job      job.ID   // given and not answered
	kept     []Answer // not acknowledged, oldest first
	unread   int      // the last so many of kept were not handed out
	arrived  int      // answers since the hello
	wake     chan struct{}
	exit     *Exit
	detached bool
	closed   bool

	started   chan struct{} // closed when the runner's process exists
	connected chan struct{} // closed when the runner's socket has answered
	ended     chan struct{} // closed when exit is set or the connection has ended
	read      chan struct{} // closed when the reading goroutine has ended
}

var _ messenger.Conn = (*Handle)(nil)

// newHandle greets the shim behind conn and begins to read from it.
func newHandle(ctx context.Context, path string, conn net.Conn, log *slog.Logger) (*Handle, error) {
	h := &Handle{
		path: path, conn: conn, log: log,
		replies:   make(map[uint64]chan *Message),
		wake:      make(chan struct{}),
		started:   make(chan struct{}),
		connected: make(chan struct{}),
		ended:     make(chan struct{}),
		read:      make(chan struct{}),
	}
	unwatch := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err := WriteMessage(conn, &Message{Kind: KindHello, Hello: &Hello{Version: Version}})
	var m *Message
	if err == nil {
		m, err = ReadMessage(conn)
	}
	if !unwatch() {
		err = ctx.Err()
	}
	switch {
	case err != nil:
		conn.Close()
		return nil, fmt.Errorf("greet the shim in %s: %w", path, err)
	case m.Kind != KindHello || m.Hello == nil:
		conn.Close()
		return nil, fmt.Errorf("greet the shim in %s: %w: %q instead of a hello", path, ErrProtocol, m.Kind)
	}
	h.hello = *m.Hello
	if h.hello.RunnerPID > 0 {
		h.pid = h.hello.RunnerPID
		close(h.started)
	}
	if h.hello.Connected {
		close(h.connected)
	}
	h.job = h.hello.Job
	go h.receive()
	if h.hello.Version != Version {
		return h, &VersionError{Shim: h.hello.Version, Daemon: Version}
	}
	return h, nil
}

// Hello is what the shim said when it was connected to.
func (h *Handle) Hello() Hello { return h.hello }

// Started is closed when the runner's process exists; PID is its id then.
func (h *Handle) Started() <-chan struct{} { return h.started }

// Connected is closed when the runner's socket has answered.
func (h *Handle) Connected() <-chan struct{} { return h.connected }

// Ended is closed when the runner has ended, or the shim, or Detach was called;
// Wait says which.
func (h *Handle) Ended() <-chan struct{} { return h.ended }

// PID is the runner's process id, 0 while there is none.
func (h *Handle) PID() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.pid
}

// receive reads what the shim sends until the connection ends.
func (h *Handle) receive() {
	defer close(h.read)
	var err error
	for {
		var m *Message
		if m, err = ReadMessage(h.conn); err != nil {
			break
		}
		h.handle(m)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.detached && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
		h.log.Warn("connection to a shim failed", "dir", h.path, "error", err)
	}
	h.closed = true
	h.conn.Close()
	for n, reply := range h.replies {
		close(reply)
		delete(h.replies, n)
	}
	if h.exit == nil {
		close(h.ended)
	}
}

func (h *Handle) handle(m *Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch m.Kind {
	case KindStarted:
		if h.pid == 0 {
			h.pid = m.PID
			close(h.started)
		}
	case KindConnected:
		select {
		case <-h.connected:
		default:
			close(h.connected)
		}
	case KindAnswer:
		if m.Answer != nil {
			h.add(*m.Answer)
		}
	case KindExit:
		if m.Exit != nil && h.exit == nil {
			h.exit = m.Exit
			close(h.ended)
		}
	case KindReply:
		if reply := h.replies[m.Number]; reply != nil {
			delete(h.replies, m.Number)
			reply <- m
		}
	}
}

// add notes an answer. The caller holds h.mu.
func (h *Handle) add(a Answer) {
	h.kept = append(h.kept, a)
	h.unread++
	h.arrived++
	if h.job == a.Job {
		h.job = ""
	}
	close(h.wake)
	h.wake = make(chan struct{})
}

// request sends a message and waits for its reply. messenger.ErrClosed says that
// the connection has ended.
func (h *Handle) request(ctx context.Context, m *Message) error {
	reply := make(chan *Message, 1)
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return messenger.ErrClosed
	}
	h.number++
	m.Number = h.number
	h.replies[m.Number] = reply
	h.mu.Unlock()

	h.writing.Lock()
	err := WriteMessage(h.conn, m)
	h.writing.Unlock()
	if err != nil {
		h.forget(m.Number)
		if errors.Is(err, ErrProtocol) {
			return err
		}
		return messenger.ErrClosed
	}
	select {
	case r, ok := <-reply:
		switch {
		case !ok:
			return messenger.ErrClosed
		case r.Error != "":
			return fmt.Errorf("the shim refused to %s: %s", m.Kind, r.Error)
		}
		return nil
	case <-ctx.Done():
		h.forget(m.Number)
		return ctx.Err()
	}
}

func (h *Handle) forget(number uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.replies, number)
}

// Send gives a job to the runner. It does not wait for the shim to take it: that
// it will is known here. See messenger.Conn.
func (h *Handle) Send(ctx context.Context, in messenger.Input) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	h.mu.Lock()
	switch {
	case h.closed || h.exit != nil:
		h.mu.Unlock()
		return messenger.ErrClosed
	case h.hello.Version != Version:
		h.mu.Unlock()
		return &VersionError{Shim: h.hello.Version, Daemon: Version}
	case h.job == in.JobID, slices.ContainsFunc(h.kept, func(a Answer) bool { return a.Job == in.JobID }):
		h.mu.Unlock()
		return nil
	case h.job != "":
		defer h.mu.Unlock()
		return fmt.Errorf("send job %s: job %s is under way: %w", in.JobID, h.job, errdefs.ErrFailedPrecondition)
	case len(h.kept) >= messenger.MaxKept:
		defer h.mu.Unlock()
		return fmt.Errorf("send job %s: %d answers are not acknowledged: %w", in.JobID, len(h.kept), errdefs.ErrFailedPrecondition)
	}
	h.job = in.JobID
	h.mu.Unlock()
	h.writing.Lock()
	defer h.writing.Unlock()
	if err := WriteMessage(h.conn, &Message{Kind: KindSend, Job: in.JobID, DataRoot: in.IODataRoot}); err != nil {
		return messenger.ErrClosed // the reader notices, too
	}
	return nil
}

// Recv waits for the next answer. See messenger.Conn.
func (h *Handle) Recv(ctx context.Context) (messenger.Answer, error) {
	for over := false; ; {
		h.mu.Lock()
		if h.unread > 0 {
			a := h.kept[len(h.kept)-h.unread]
			h.unread--
			h.mu.Unlock()
			return messenger.Answer{JobID: a.Job, Failure: a.Failure}, nil
		}
		wake := h.wake
		h.mu.Unlock()
		if over {
			return messenger.Answer{}, messenger.ErrClosed
		}
		select {
		case <-wake:
		case <-h.ended:
			over = true // once more: an answer may have come just before
		case <-ctx.Done():
			return messenger.Answer{}, ctx.Err()
		}
	}
}

// Ack says that the answer to the job is safe. After the shim's end it returns
// messenger.ErrClosed; the answer is then kept in the folder.
func (h *Handle) Ack(ctx context.Context, id job.ID) error {
	if err := h.request(ctx, &Message{Kind: KindAck, Job: id}); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.kept = slices.DeleteFunc(h.kept, func(a Answer) bool { return a.Job == id })
	h.unread = min(h.unread, len(h.kept))
	return nil
}

// Kept waits for the answers that the shim kept when it was connected to, and
// returns them. It is to be called before the first Ack. They are handed out by
// Recv all the same.
func (h *Handle) Kept(ctx context.Context) ([]Answer, error) {
	for {
		h.mu.Lock()
		enough := h.arrived >= h.hello.Answers
		kept, wake := slices.Clone(h.kept[:min(len(h.kept), h.hello.Answers)]), h.wake
		h.mu.Unlock()
		if enough {
			return kept, nil
		}
		select {
		case <-wake:
		case <-h.read:
			return kept, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Stop tells the shim to stop the runner: TERM, grace, KILL. It does not wait
// for the end; Wait does. A later call with a shorter grace takes effect.
func (h *Handle) Stop(ctx context.Context, grace time.Duration) error {
	return h.request(ctx, &Message{Kind: KindStop, Grace: grace})
}

// Wait waits until the runner has ended and nothing is left of it and says how
// it ended. ErrDetached and ErrSuperseded say that it goes on without us. When
// the shim itself ended, Wait ends what it left behind; Lost is set then.
func (h *Handle) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-h.ended:
	case <-ctx.Done():
		return Exit{}, ctx.Err()
	}
	h.mu.Lock()
	exit, detached := h.exit, h.detached
	h.mu.Unlock()
	switch {
	case exit != nil:
		return *exit, nil
	case detached:
		return Exit{}, ErrDetached
	}
	settled, err := h.settle(ctx)
	if err != nil {
		return Exit{}, err
	}
	return settled, nil
}

// settle finds out why the connection has ended without an exit.
func (h *Handle) settle(ctx context.Context) (Exit, error) {
	// The kernel ends a process's connection some moments before its lock.
	ending, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if AwaitEnd(ending, h.path) != nil && ctx.Err() == nil {
		return Exit{}, ErrSuperseded
	}
	settled, err := Settle(ctx, h.path, h.log)
	switch {
	case errors.Is(err, errAlive):
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
		if !slices.ContainsFunc(h.kept, func(k Answer) bool { return k.Job == a.Job }) {
			h.add(a)
		}
	}
	h.exit = settled.Exit
	return *settled.Exit, nil
}

// Watch names the process of a container, which must not have begun yet: it may
// not end before the shim has seen it.
func (h *Handle) Watch(ctx context.Context, pid int) error {
	return h.request(ctx, &Message{Kind: KindWatch, PID: pid})
}

// Begun says that the process that is watched has begun to run the runner.
// Until then Started and Hello's RunnerPID do not tell of it.
func (h *Handle) Begun(ctx context.Context) error {
	return h.request(ctx, &Message{Kind: KindBegun})
}

// Release ends the shim after Wait has returned an exit and waits for its end.
// The folder stays, for Remove.
func (h *Handle) Release(ctx context.Context) error {
	err := h.request(ctx, &Message{Kind: KindRelease})
	if err != nil && !errors.Is(err, messenger.ErrClosed) {
		return fmt.Errorf("end the shim in %s: %w", h.path, err)
	}
	select {
	case <-h.read:
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
	h.mu.Lock()
	h.detached = true
	h.mu.Unlock()
	if h.hello.Version == Version {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_ = h.request(ctx, &Message{Kind: KindAck}) // of nothing: its reply says that all before it was read
		cancel()
	}
	h.conn.Close()
	<-h.read
}
