package access

import (
	"errors"
	"net"
	"sync"
	"syscall"
)

// LimitConnections returns a listener that keeps at most perCaller connections open from one
// address (an IPv4 address or the /64 network of an IPv6 one). It closes further connections
// at once and calls refused with the address. 0 is no limit.
func LimitConnections(l net.Listener, perCaller int, refused func(address string)) net.Listener {
	if perCaller <= 0 {
		return l
	}
	return &limitedListener{Listener: l, most: perCaller, refused: refused, open: make(map[string]int)}
}

type limitedListener struct {
	net.Listener
	most    int
	refused func(address string)

	mu   sync.Mutex
	open map[string]int
}

// Accept returns the next connection that does not exceed the limit.
func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		who := address(conn.RemoteAddr().String())
		l.mu.Lock()
		full := l.open[who] >= l.most
		if !full {
			l.open[who]++
		}
		l.mu.Unlock()
		if !full {
			return &limitedConn{Conn: conn, closed: sync.OnceFunc(func() { l.release(who) })}, nil
		}
		_ = conn.Close() // nothing was sent on it
		l.refused(who)
	}
}

func (l *limitedListener) release(who string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[who]--; l.open[who] == 0 {
		delete(l.open, who)
	}
}

// limitedConn releases its place in the limit when it is closed.
type limitedConn struct {
	net.Conn
	closed func()
}

// SyscallConn returns the connection's file descriptor.
func (c *limitedConn) SyscallConn() (syscall.RawConn, error) {
	conn, ok := c.Conn.(syscall.Conn)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	return conn.SyscallConn()
}

func (c *limitedConn) Close() error {
	c.closed()
	return c.Conn.Close()
}
