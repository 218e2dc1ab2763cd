package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
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

	writing sync.Mutex // one message at a time

	mu     sync.Mutex
	conn   net.Conn // nil while there is none
	hello  Hello    // the latest
	pid    int
	exit   *Exit
	why    error // the end, where it is no exit: ErrDetached, ErrSuperseded
	closed bool  // nothing is received any more
	calls  calls
	work   work

	leave     chan struct{} // closed by Detach
	started   chan struct{} // closed when the runner's process exists
	connected chan struct{} // closed when the runner's socket has answered
	ended     chan struct{} // closed when exit or why is set, or closed is
	read      chan struct{} // closed when the reading goroutine has ended
}

// calls are the requests that are not answered, by their numbers.
type calls struct {
	number  uint64
	pending map[uint64]*call
}

type call struct {
	message *Message
	reply   chan *Message
}

// work is the jobs of a Handle and what is told of them.
type work struct {
	job      messenger.Input // given and not answered
	features []string        // what the runner announced for it
	kept     []Answer        // not acknowledged, oldest first
	unread   int             // the last so many of kept were not handed out
	arrived  int             // answers since the first hello
	coming   int             // answers that follow a hello and have not arrived
	events   []messenger.Event
	lost     int           // events that were dropped
	wake     chan struct{} // closed and made again when something arrives
}

// maxEvents is how many events are kept for RecvEvent.
const maxEvents = 256

var (
	_ messenger.Conn        = (*Handle)(nil)
	_ messenger.EventSource = (*Handle)(nil)
	_ messenger.Canceller   = (*Handle)(nil)
)

func makeHandle(path string, log *slog.Logger) *Handle {
	return &Handle{
		path: path, log: log,
		calls:     calls{pending: make(map[uint64]*call)},
		work:      work{wake: make(chan struct{})},
		leave:     make(chan struct{}),
		started:   make(chan struct{}),
		connected: make(chan struct{}),
		ended:     make(chan struct{}),
		read:      make(chan struct{}),
	}
}

// newHandle greets the shim behind conn and begins to read from it.
func newHandle(ctx context.Context, path string, conn net.Conn, log *slog.Logger) (*Handle, error) {
	hello, err := greet(ctx, conn)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("greet the shim in %s: %w", path, err)
	}
	h := makeHandle(path, log)
	h.welcome(conn, *hello)
	h.work.job.JobID = hello.Job
	go h.run(conn)
	if hello.Version != Version {
		return h, &VersionError{Shim: hello.Version, Daemon: Version}
	}
	return h, nil
}

// greet exchanges hellos.
func greet(ctx context.Context, conn net.Conn) (*Hello, error) {
	unwatch := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err := WriteMessage(conn, &Message{Kind: KindHello, Hello: &Hello{Version: Version, Features: Features()}})
	var m *Message
	if err == nil {
		m, err = ReadMessage(conn)
	}
	if !unwatch() {
		err = ctx.Err()
	}
	switch {
	case err != nil:
		return nil, err
	case m.Kind != KindHello || m.Hello == nil:
		return nil, fmt.Errorf("%w: %q instead of a hello", ErrProtocol, m.Kind)
	}
	return m.Hello, nil
}

// welcome accepts a connection whose shim has said hello.
func (h *Handle) welcome(conn net.Conn, hello Hello) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conn, h.hello = conn, hello
	h.work.coming = hello.Answers
	if hello.RunnerPID > 0 {
		h.begin(hello.RunnerPID)
	}
	if hello.Connected {
		h.connect()
	}
}

// begin notes that the runner's process exists. The caller holds h.mu.
func (h *Handle) begin(pid int) {
	if h.pid == 0 {
		h.pid = pid
		close(h.started)
	}
}

// connect notes that the runner's socket has answered. The caller holds h.mu.
func (h *Handle) connect() {
	select {
	case <-h.connected:
		return
	default:
		close(h.connected)
	}
	if !h.hello.Has(FeatureEvents) {
		h.note(messenger.Event{Kind: messenger.EventReady, Time: time.Now()})
	}
}

// Hello is what the shim said when it was connected to last.
func (h *Handle) Hello() Hello {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.hello
}

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

// run reads what the shim sends, from one connection after the other, until the
// shim has ended or this Handle.
func (h *Handle) run(conn net.Conn) {
	defer close(h.read)
	for {
		if conn != nil {
			h.receive(conn)
		}
		if conn = h.reconnect(); conn == nil {
			break
		}
		h.resume()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for _, c := range h.calls.pending {
		close(c.reply)
	}
	clear(h.calls.pending)
	h.end()
}

// end closes ended. The caller holds h.mu.
func (h *Handle) end() {
	select {
	case <-h.ended:
	default:
		close(h.ended)
	}
}

// receive reads from a connection until it ends.
func (h *Handle) receive(conn net.Conn) {
	defer conn.Close()
	for {
		m, err := ReadMessage(conn)
		if err == nil {
			h.handle(m)
			continue
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		h.conn = nil
		if h.why == nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
			h.log.Warn("connection to a shim failed", "dir", h.path, "error", err)
		}
		return
	}
}

// How a connection that broke is made again: a shim that lives and does not answer
// is frozen, or the machine is very busy.
const (
	greetTime   = 10 * time.Second
	longestWait = time.Second
	warnEvery   = time.Minute
)

// reconnect makes a connection to the shim, for as long as it lives. It returns
// nil when the shim has ended, or this Handle.
func (h *Handle) reconnect() net.Conn {
	h.mu.Lock()
	over := h.exit != nil || h.why != nil || !h.hello.Has(FeatureSuperseded)
	h.mu.Unlock()
	if over {
		return nil
	}
	folder, err := OpenFolder(h.path)
	if err != nil {
		return nil // it was removed
	}
	defer folder.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { // ends with ctx
		select {
		case <-h.leave:
			cancel()
		case <-ctx.Done():
		}
	}()
	var warned time.Time
	for wait := time.Millisecond; ctx.Err() == nil; wait = min(2*wait, longestWait) {
		if free, err := folder.TryLock(); free || err != nil {
			return nil
		}
		conn, err := h.redial(ctx, folder)
		if err == nil {
			return conn
		}
		if time.Since(warned) > warnEvery && wait > 100*time.Millisecond && ctx.Err() == nil {
			warned = time.Now()
			h.log.Warn("a shim does not answer; its runner goes on, and it is waited for", "dir", h.path, "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	return nil
}

func (h *Handle) redial(ctx context.Context, folder *Folder) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, greetTime)
	defer cancel()
	conn, err := folder.dial(ctx)
	if err != nil {
		return nil, err
	}
	hello, err := greet(ctx, conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	h.welcome(conn, *hello)
	return conn, nil
}

// resume sends again what may not have arrived. A shim of another version, which
// can be no earlier one's, is told to stop.
func (h *Handle) resume() {
	h.mu.Lock()
	again := []*Message{}
	if h.hello.Version != Version {
		h.log.Warn("A runner of another version of shepherd cannot be talked to; stopping it", "dir", h.path, "error", &VersionError{Shim: h.hello.Version, Daemon: Version})
		again = append(again, &Message{Kind: KindStop, Grace: greetTime})
	}
	for _, n := range slices.Sorted(maps.Keys(h.calls.pending)) {
		again = append(again, h.calls.pending[n].message)
	}
	if h.work.coming == 0 {
		again = append(again, h.unsent()...)
	}
	h.mu.Unlock()
	for _, m := range again {
		h.write(m)
	}
}

// unsent is the job that the shim did not get, if there is one. All answers that
// the shim keeps must have arrived. The caller holds h.mu.
func (h *Handle) unsent() []*Message {
	if id := h.work.job.JobID; id == "" || h.hello.Job == id || h.work.job.IODataRoot == "" {
		return nil
	}
	return []*Message{h.sending()}
}

// sending is the message that gives the job. The caller holds h.mu.
func (h *Handle) sending() *Message {
	m := &Message{Kind: KindSend, Job: h.work.job.JobID, DataRoot: h.work.job.IODataRoot}
	if h.hello.Has(FeatureDeadline) {
		m.Deadline = h.work.job.Deadline
	}
	return m
}

// write sends a message by the present connection. One that does not arrive is
// sent again when there is another connection.
func (h *Handle) write(m *Message) {
	h.writing.Lock()
	defer h.writing.Unlock()
	h.mu.Lock()
	conn := h.conn
	h.mu.Unlock()
	if conn == nil {
		return
	}
	_ = conn.SetWriteDeadline(time.Now().Add(greetTime))
	if err := WriteMessage(conn, m); err != nil {
		conn.Close() // part of it may be on its way; the reader makes another
	}
}

func (h *Handle) handle(m *Message) {
	h.mu.Lock()
	var again []*Message
	switch m.Kind {
	case KindStarted:
		h.begin(m.PID)
	case KindConnected:
		h.connect()
	case KindAnswer:
		if m.Answer != nil {
			h.add(*m.Answer)
		}
		if h.work.coming > 0 {
			if h.work.coming--; h.work.coming == 0 {
				again = h.unsent()
			}
		}
	case KindEvent:
		if m.Event != nil {
			h.handleEvent(*m.Event)
		}
	case KindExit:
		if m.Exit != nil && h.exit == nil {
			h.exit = m.Exit
			h.end()
		}
	case KindSuperseded:
		if h.why == nil && h.exit == nil {
			h.why = ErrSuperseded
			h.end()
		}
	case KindReply:
		if c := h.calls.pending[m.Number]; c != nil {
			delete(h.calls.pending, m.Number)
			c.reply <- m
		}
	}
	h.mu.Unlock()
	for _, m := range again {
		h.write(m)
	}
}

// add notes an answer, unless it came before. The caller holds h.mu.
func (h *Handle) add(a Answer) {
	w := &h.work
	if slices.ContainsFunc(w.kept, func(k Answer) bool { return k.Job == a.Job }) {
		return
	}
	w.kept = append(w.kept, a)
	w.unread++
	w.arrived++
	if w.job.JobID == a.Job {
		w.job, w.features = messenger.Input{}, nil
	}
	h.arrive()
}

// arrive wakes those who wait for something. The caller holds h.mu.
func (h *Handle) arrive() {
	close(h.work.wake)
	h.work.wake = make(chan struct{})
}

// handleEvent notes an event. The caller holds h.mu.
func (h *Handle) handleEvent(e Event) {
	if e.Kind == messenger.EventAccepted && e.Job == h.work.job.JobID {
		h.work.features = e.Features
	}
	h.note(messenger.Event{Kind: e.Kind, JobID: e.Job, Time: e.Time, Progress: e.Progress, Text: e.Text, Features: e.Features, Log: e.Log, Lost: e.Lost})
}

// note keeps an event for RecvEvent. The caller holds h.mu.
func (h *Handle) note(e messenger.Event) {
	w := &h.work
	if e.Kind == messenger.EventProgress {
		w.events = slices.DeleteFunc(w.events, func(old messenger.Event) bool { return old.Kind == e.Kind && old.JobID == e.JobID })
	}
	if len(w.events) == maxEvents {
		w.events = slices.Delete(w.events, 0, 1)
		w.lost++
	}
	w.events = append(w.events, e)
	h.arrive()
}

// request sends a message and waits for its reply. messenger.ErrClosed says that
// the shim has ended, or this Handle.
func (h *Handle) request(ctx context.Context, m *Message) error {
	c := &call{message: m, reply: make(chan *Message, 1)}
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return messenger.ErrClosed
	}
	h.calls.number++
	m.Number = h.calls.number
	h.calls.pending[m.Number] = c
	h.mu.Unlock()
	h.write(m)
	select {
	case r, ok := <-c.reply:
		switch {
		case !ok:
			return messenger.ErrClosed
		case r.Error != "":
			return fmt.Errorf("the shim refused to %s: %s", m.Kind, r.Error)
		}
		return nil
	case <-ctx.Done():
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.calls.pending, m.Number)
		return ctx.Err()
	}
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
	case h.closed || h.exit != nil || h.why != nil:
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
	m := h.sending()
	h.mu.Unlock()
	h.write(m)
	return nil
}

// Cancel asks the runner to give the job up. See messenger.Canceller.
func (h *Handle) Cancel(ctx context.Context, id job.ID) error {
	h.mu.Lock()
	under := h.work.job.JobID == id
	can := h.hello.Has(FeatureCancel) && slices.Contains(h.work.features, messenger.FeatureCancel)
	closed := h.closed || h.exit != nil || h.why != nil
	h.mu.Unlock()
	switch {
	case closed:
		return messenger.ErrClosed
	case !under:
		return fmt.Errorf("cancel job %s: it is not under way: %w", id, errdefs.ErrNotFound)
	case !can:
		return fmt.Errorf("cancel job %s: the runner did not announce that it can: %w", id, errdefs.ErrNotImplemented)
	}
	return h.request(ctx, &Message{Kind: KindCancel, Job: id})
}

// RecvEvent waits for the next event. See messenger.EventSource.
func (h *Handle) RecvEvent(ctx context.Context) (messenger.Event, error) {
	for over := false; ; {
		h.mu.Lock()
		if w := &h.work; len(w.events) > 0 {
			e := w.events[0]
			w.events = slices.Delete(w.events, 0, 1)
			e.Lost += w.lost
			w.lost = 0
			h.mu.Unlock()
			return e, nil
		}
		wake := h.work.wake
		h.mu.Unlock()
		if over {
			return messenger.Event{}, messenger.ErrClosed
		}
		select {
		case <-wake:
		case <-h.ended:
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
		if h.work.unread > 0 {
			a := h.work.kept[len(h.work.kept)-h.work.unread]
			h.work.unread--
			h.mu.Unlock()
			return a.Message(), nil
		}
		wake := h.work.wake
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
	h.work.kept = slices.DeleteFunc(h.work.kept, func(a Answer) bool { return a.Job == id })
	h.work.unread = min(h.work.unread, len(h.work.kept))
	return nil
}

// Kept waits for the answers that the shim kept when it was connected to, and
// returns them; those of its files where it does not answer. It is to be called before the first Ack. They are handed out by
// Recv all the same.
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
	exit, why := h.exit, h.why
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
		h.add(a)
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
	if h.Hello().Version == Version {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_ = h.request(ctx, &Message{Kind: KindAck}) // of nothing: its reply says that all before it was read
		cancel()
	}
	h.mu.Lock()
	if h.exit == nil && h.why == nil {
		h.why = ErrDetached
	}
	select {
	case <-h.leave:
	default:
		close(h.leave)
	}
	if h.conn != nil {
		h.conn.Close()
	}
	h.mu.Unlock()
	<-h.read
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
	h.begin(state.Runner.PID)
	h.work.job.JobID = outcome.Job
	for _, a := range outcome.Answers {
		h.add(a)
	}
	go h.run(nil)
	return h, nil
}
