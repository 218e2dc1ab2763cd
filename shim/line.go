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

	"github.com/iterait/shepherd/messenger"
)

// line is the connection to a shim. One that breaks is made again as long as the shim
// lives; requests that are not answered are sent again then.
type line struct {
	path string
	log  *slog.Logger
	user lineUser

	writing sync.Mutex // one message at a time; taken before mu

	mu     sync.Mutex // nothing else is taken with it
	conn   net.Conn   // nil while there is none
	left   bool       // no connection is made any more
	closed bool       // nothing is received any more
	calls  calls

	leave chan struct{} // closed with left
	read  chan struct{} // closed when the reading goroutine has ended
}

// lineUser is who a line is for. It is called without a lock of the line's, by the
// goroutine that reads.
type lineUser interface {
	// welcome is called with the hello of a new connection, before anything else of it.
	welcome(Hello)
	// resend returns what is to be sent by a new connection: the requests that are not
	// answered, and what else may not have arrived.
	resend(requests []*Message) []*Message
	// handle takes a message that is no reply, and returns what is to be sent now.
	handle(*Message) []*Message
	// over reports whether no connection is to be made any more.
	over() bool
	// gone reports whether the end of the present connection is as it should be.
	gone() bool
	// close is called when nothing is received any more.
	close()
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

// welcome accepts a connection whose shim has said hello. It reports false, and closes
// the connection, where the line was hung up meanwhile.
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

// run reads what the shim sends, from one connection after the other, until the
// shim has ended or the line is hung up. The first one may be nil.
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

// How a connection that broke is made again: a shim that lives and does not answer
// is frozen, or the machine is very busy.
const (
	greetTime   = 10 * time.Second
	longestWait = time.Second
	warnEvery   = time.Minute
)

// reconnect makes a connection to the shim, for as long as it lives. It returns
// nil when the shim has ended, or the line is hung up.
func (l *line) reconnect() net.Conn {
	if l.user.over() {
		return nil
	}
	folder, err := OpenFolder(l.path)
	if err != nil {
		return nil // it was removed
	}
	defer folder.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { // ends with ctx
		select {
		case <-l.leave:
			cancel()
		case <-ctx.Done():
		}
	}()
	var warned time.Time
	for wait := time.Millisecond; ctx.Err() == nil; wait = min(2*wait, longestWait) {
		if free, err := folder.TryLock(); free || err != nil {
			return nil
		}
		conn, err := l.redial(ctx, folder)
		if err == nil {
			return conn
		}
		if time.Since(warned) > warnEvery && wait > 100*time.Millisecond && ctx.Err() == nil {
			warned = time.Now()
			l.log.Warn("a shim does not answer; its runner goes on, and it is waited for", "dir", l.path, "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	return nil
}

// redial makes a connection, once. It returns nil without an error where the line was
// hung up meanwhile.
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

// resume sends again what may not have arrived.
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

// write sends a message by the present connection. One that does not arrive is
// sent again when there is another connection.
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
		conn.Close() // part of it may be on its way; the reader makes another
	}
}

// request sends a message and waits for its reply. messenger.ErrClosed says that
// the shim has ended, or the line was hung up.
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

// hangUp ends the line, and waits until nothing is received any more. It may be called
// twice.
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
