package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/messenger"
)

// line is a connection to a shim that reconnects as long as the shim is alive, and then
// sends requests again that have no reply.
type line struct {
	path string
	log  *slog.Logger
	user lineUser

	writing sync.Mutex // held while a message is written; taken before mu

	mu     sync.Mutex // no other lock is taken while it is held
	conn   net.Conn   // nil while not connected
	left   bool       // hangUp was called
	closed bool       // run has ended
	calls  calls

	leave chan struct{} // closed by hangUp
	read  chan struct{} // closed when run has ended
}

// lineUser handles a line's messages. Its methods are called by the line's reading
// goroutine, without locks of the line.
type lineUser interface {
	// welcome is called first on a new connection, with its hello.
	welcome(Hello)
	// resend returns the messages to send on a new connection: the requests without a
	// reply, and others that may not have arrived.
	resend(requests []*Message) []*Message
	// handle handles a message that is not a reply, and returns messages to send.
	handle(*Message) []*Message
	// over reports whether the line must not reconnect.
	over() bool
	// gone reports whether the end of the present connection is expected.
	gone() bool
	// close is called when the line has ended.
	close()
}

// calls are the requests without a reply, by their numbers.
type calls struct {
	number  uint64
	pending map[uint64]*call
}

type call struct {
	message *Message
	reply   chan *Message
}

func newLine(path string, log *slog.Logger, user lineUser) *line {
	return &line{
		path: path, log: log, user: user,
		calls: calls{pending: make(map[uint64]*call)},
		leave: make(chan struct{}),
		read:  make(chan struct{}),
	}
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

// welcome makes conn, whose shim has sent hello, the line's connection. If hangUp was
// called meanwhile it closes conn and returns false.
func (l *line) welcome(conn net.Conn, hello Hello) bool {
	l.user.welcome(hello)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.left {
		conn.Close()
		return false
	}
	l.conn = conn
	return true
}

// run receives from conn, which may be nil, and from each connection after it, until the
// shim has ended or hangUp is called.
func (l *line) run(conn net.Conn) {
	defer close(l.read)
	for {
		if conn != nil {
			l.receive(conn)
		}
		if conn = l.reconnect(); conn == nil {
			break
		}
		l.resume()
	}
	l.mu.Lock()
	l.closed = true
	for _, c := range l.calls.pending {
		close(c.reply)
	}
	clear(l.calls.pending)
	l.mu.Unlock()
	l.user.close()
}

// receive reads from a connection until it ends.
func (l *line) receive(conn net.Conn) {
	defer conn.Close()
	for {
		m, err := ReadMessage(conn)
		if err == nil {
			l.handle(m)
			continue
		}
		l.mu.Lock()
		l.conn = nil
		l.mu.Unlock()
		if !l.user.gone() && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
			l.log.Warn("connection to a shim failed", "dir", l.path, "error", err)
		}
		return
	}
}

func (l *line) handle(m *Message) {
	if m.Kind == KindReply {
		l.mu.Lock()
		defer l.mu.Unlock()
		if c := l.calls.pending[m.Number]; c != nil {
			delete(l.calls.pending, m.Number)
			c.reply <- m
		}
		return
	}
	for _, m := range l.user.handle(m) {
		l.write(m)
	}
}

// The times of reconnecting. A shim that is alive and does not answer is frozen, or the
// machine is overloaded.
const (
	greetTime        = 10 * time.Second // for connecting and exchanging hellos, and for a write
	maxReconnectWait = time.Second      // between two attempts
	warnInterval     = time.Minute
)

// reconnect tries to connect to the shim as long as it is alive. It returns nil if the
// shim has ended, or hangUp was called.
func (l *line) reconnect() net.Conn {
	if l.user.over() {
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { // ends with ctx
		select {
		case <-l.leave:
			cancel()
		case <-ctx.Done():
		}
	}()
	folder := l.open(ctx)
	if folder == nil {
		return nil
	}
	defer folder.Close()
	var warned time.Time
	for wait := time.Millisecond; ctx.Err() == nil; wait = min(2*wait, maxReconnectWait) {
		if free, err := folder.TryLock(); free || err != nil {
			return nil
		}
		conn, err := l.redial(ctx, folder)
		if err == nil {
			return conn
		}
		if time.Since(warned) > warnInterval && wait > 100*time.Millisecond && ctx.Err() == nil {
			warned = time.Now()
			l.log.Warn("a shim does not answer; its runner stays up, and connecting is tried again", "dir", l.path, "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	return nil
}

// open opens the life's directory. While this process has no descriptor left it waits. It
// returns nil if the directory was removed, or ctx ends.
func (l *line) open(ctx context.Context) *Folder {
	for {
		folder, err := OpenFolder(l.path)
		if !errors.Is(err, unix.EMFILE) && !errors.Is(err, unix.ENFILE) {
			return folder // nil with an error
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(maxReconnectWait):
		}
	}
}

// redial tries to connect once. It returns nil without an error if hangUp was called
// meanwhile.
func (l *line) redial(ctx context.Context, folder *Folder) (net.Conn, error) {
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
	if !l.welcome(conn, *hello) {
		return nil, nil
	}
	return conn, nil
}

// resume sends messages again that may not have arrived.
func (l *line) resume() {
	var again []*Message
	l.mu.Lock()
	for _, n := range slices.Sorted(maps.Keys(l.calls.pending)) {
		again = append(again, l.calls.pending[n].message)
	}
	l.mu.Unlock()
	for _, m := range l.user.resend(again) {
		l.write(m)
	}
}

// write sends a message on the present connection. If it fails, resume sends the message
// on the next one.
func (l *line) write(m *Message) {
	l.writing.Lock()
	defer l.writing.Unlock()
	l.mu.Lock()
	conn := l.conn
	l.mu.Unlock()
	if conn == nil {
		return
	}
	_ = conn.SetWriteDeadline(time.Now().Add(greetTime))
	if err := WriteMessage(conn, m); err != nil {
		conn.Close() // part of the message may have been sent; run reconnects
	}
}

// request sends a message and waits for its reply. The error is messenger.ErrClosed if
// the shim has ended or hangUp was called.
func (l *line) request(ctx context.Context, m *Message) error {
	c := &call{message: m, reply: make(chan *Message, 1)}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return messenger.ErrClosed
	}
	l.calls.number++
	m.Number = l.calls.number
	l.calls.pending[m.Number] = c
	l.mu.Unlock()
	l.write(m)
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
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.calls.pending, m.Number)
		return ctx.Err()
	}
}

// hangUp closes the connection, and waits until run has ended. It may be called twice.
func (l *line) hangUp() {
	l.mu.Lock()
	if !l.left {
		l.left = true
		close(l.leave)
	}
	if l.conn != nil {
		l.conn.Close()
	}
	l.mu.Unlock()
	<-l.read
}
