package server

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/shim"
)

// session is the connection of one daemon.
type session struct {
	conn   *net.UnixConn
	hello  shim.Hello
	turn   int // number of the connection, in the order of connecting
	out    chan *shim.Message
	events *eventQueue
	over   chan struct{} // closed by cut
	once   sync.Once
	done   chan struct{} // closed when the writer has ended
}

// outboxSize is how many messages may be queued for a daemon that does not read. There
// is one for each of its requests and each unacknowledged answer, so a daemon that fills
// the queue is broken.
const outboxSize = 64

// send queues a message; a nil session drops it. It never blocks: if the queue is full
// it ends the session, and the daemon gets the state when it connects again.
func (c *session) send(m *shim.Message) {
	if c == nil {
		return
	}
	select {
	case c.out <- m:
	default:
		c.cut()
	}
}

// event queues an event if the daemon wants events; a nil session drops it.
func (c *session) event(e shim.Event) {
	if c != nil && c.hello.Has(shim.FeatureEvents) {
		c.events.put(e)
	}
}

// supersede ends the session because a newer one has begun, and tells the daemon so.
func (c *session) supersede() {
	if !c.hello.Has(shim.FeatureSuperseded) {
		c.cut()
		return
	}
	_ = c.conn.SetWriteDeadline(time.Now().Add(time.Second))
	c.send(&shim.Message{Kind: shim.KindSuperseded})
	c.send(nil) // the writer ends there
}

// cut ends the session.
func (c *session) cut() {
	c.once.Do(func() {
		close(c.over)
		c.conn.Close()
	})
}

// drain ends the session after the queued messages have been written.
func (c *session) drain() {
	_ = c.conn.SetWriteDeadline(time.Now().Add(time.Second))
	c.send(nil)
	<-c.done
	c.cut()
}

// write writes queued messages until the session ends. Events are written only when no
// other message is queued, so that hello is the first message.
func (c *session) write() {
	defer close(c.done)
	defer c.cut()
	for {
		var m *shim.Message
		select {
		case m = <-c.out:
		default:
			select {
			case m = <-c.out:
			case <-c.events.ready:
				if !c.writeEvents() {
					return
				}
				continue
			case <-c.over:
				return
			}
		}
		if m == nil || shim.WriteMessage(c.conn, m) != nil {
			return
		}
	}
}

// writeEvents writes other queued messages first, then all queued events.
func (c *session) writeEvents() bool {
	for len(c.out) > 0 {
		if m := <-c.out; m == nil || shim.WriteMessage(c.conn, m) != nil {
			return false
		}
	}
	for _, e := range c.events.take() {
		if shim.WriteMessage(c.conn, &shim.Message{Kind: shim.KindEvent, Event: &e}) != nil {
			return false
		}
	}
	return true
}

// acceptor accepts daemons' connections and serves their requests.
type acceptor struct {
	*state
	running *sync.WaitGroup // of its goroutines
}

// accept accepts connections until the listener is closed.
func (s *acceptor) accept(l *net.UnixListener) {
	for turn := 1; ; turn++ {
		conn, err := l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			s.limited.warn("cannot accept a daemon's connection", "error", err)
			select {
			case <-time.After(100 * time.Millisecond):
				continue
			case <-s.quit:
				return
			}
		}
		if !trusted(conn) {
			s.limited.warn("refused a connection of another user")
			conn.Close()
			continue
		}
		s.running.Go(func() { s.serve(conn, turn) })
	}
}

// trusted reports whether the peer's user is the shim's own or root.
func trusted(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	var cred *unix.Ucred
	if raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }) != nil || err != nil {
		return false
	}
	return cred.Uid == 0 || int(cred.Uid) == os.Geteuid()
}

// readBuffer is for messages of the usual size, each of which takes one system call then.
const readBuffer = 1 << 10

// serve serves one connection until it ends or a newer one supersedes it.
func (s *acceptor) serve(conn *net.UnixConn, turn int) {
	c := &session{
		conn: conn, turn: turn, out: make(chan *shim.Message, outboxSize), events: newEventQueue(),
		over: make(chan struct{}), done: make(chan struct{}),
	}
	defer c.cut()
	stop := make(chan struct{})
	defer close(stop)
	s.running.Go(func() { // so that the shim can end although the daemon sends nothing
		select {
		case <-s.quit:
			_ = conn.CloseRead()
		case <-stop:
		}
	})
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	from := bufio.NewReaderSize(conn, readBuffer)
	first, err := shim.ReadMessage(from)
	if err != nil || first.Kind != shim.KindHello || first.Hello == nil {
		s.limited.warn("a connection did not begin with hello", "error", err)
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	c.hello = *first.Hello
	s.running.Go(c.write)
	if !s.admit(c) {
		return
	}
	theirs := first.Hello.Version
	if theirs != shim.Version {
		s.log.Warn("a daemon of another version has connected; it can only stop the runner", "version", theirs)
	}
	for {
		m, err := shim.ReadMessage(from)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				s.limited.warn("the daemon's connection ended", "error", err)
			}
			break
		}
		s.request(c, m, theirs)
	}
	s.leave(c)
	select {
	case <-s.quit:
		c.drain() // for example, the reply to release
	default:
	}
}

// request serves one request of the daemon.
func (s *acceptor) request(c *session, m *shim.Message, theirs int) {
	var err error
	switch {
	case m.Kind == shim.KindStop:
		s.stop(stopRequest{grace: max(m.Grace, 0)})
	case m.Kind == shim.KindRelease:
		s.mu.Lock()
		ended := s.exit != nil
		s.mu.Unlock()
		if ended {
			defer s.end() // after the reply is queued
		} else {
			err = errors.New("the runner has not ended")
		}
	case theirs != shim.Version:
		err = &shim.VersionError{Shim: shim.Version, Daemon: theirs}
	case m.Kind == shim.KindSend:
		err = s.give(c, messenger.Input{JobID: m.Job, IODataRoot: m.DataRoot, Deadline: m.Deadline})
	case m.Kind == shim.KindCancel:
		err = s.cancel(m.Job)
	case m.Kind == shim.KindAck:
		s.acknowledge(m.Job)
	case m.Kind == shim.KindWatch:
		err = s.take(m.PID)
	case m.Kind == shim.KindBegun:
		err = s.begin()
	default:
		err = errors.New("unknown request")
	}
	if m.Number == 0 {
		if err != nil {
			s.limited.warn("refused a request", "kind", m.Kind, "job", m.Job, "error", err)
		}
		return
	}
	reply := &shim.Message{Kind: shim.KindReply, Number: m.Number}
	if err != nil {
		reply.Error = err.Error()
	}
	c.send(reply)
}
