package zmq

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"time"

	"github.com/go-zeromq/zmq4"
	"github.com/go-zeromq/zmq4/security/null"

	"github.com/iterait/shepherd/messenger"
)

// link is one connection after its handshake.
type link struct {
	guard *guard
	zmtp  *zmq4.Conn
	ended chan struct{} // closed by the owner when the link has ended
}

// role is a side of the protocol.
type role struct {
	typ      zmq4.SocketType
	identity zmq4.SocketIdentity
	server   bool
	peers    []string // allowed socket types of the peer
}

// open performs the handshake on conn, within the handshake timeout and ctx. On
// an error conn is closed.
func open(ctx context.Context, conn net.Conn, as role, limits Limits) (*link, error) {
	g := newGuard(conn, limits, as.peers...)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	l, err := handshake(g, as)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("ZeroMQ handshake: %w", err)
	}
	return l, nil
}

func handshake(g *guard, as role) (*link, error) {
	if err := g.SetDeadline(time.Now().Add(g.limits.HandshakeTimeout)); err != nil {
		return nil, err
	}
	zmtp, err := zmq4.Open(g, null.Security(), as.typ, as.identity, as.server, nil)
	if err != nil {
		return nil, cmp.Or(g.fault, err)
	}
	if err := g.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	return &link{guard: g, zmtp: zmtp, ended: make(chan struct{})}, nil
}

// recv waits for the next message. It returns errDropped for one that is not one frame.
func (l *link) recv() ([]byte, error) {
	msg, err := l.zmtp.RecvMsg()
	if err != nil {
		return nil, cmp.Or(l.guard.fault, err)
	}
	if len(msg.Frames) != 1 {
		return nil, fmt.Errorf("%w: it has %d frames; expected 1", errDropped, len(msg.Frames))
	}
	return msg.Frames[0], nil
}

// send writes a complete message to the connection. If ctx ends before the first byte,
// nothing is sent and the link stays usable; if it ends later, the link is closed.
func (l *link) send(ctx context.Context, frame []byte) error {
	if len(frame) > l.guard.limits.MaxMessage {
		return fmt.Errorf("a message of %d bytes; at most %d are allowed", len(frame), l.guard.limits.MaxMessage)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case l.guard.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	case <-l.ended:
		return messenger.ErrClosed
	}
	err := l.write(ctx, frame)
	<-l.guard.turn
	if err == nil {
		_ = l.guard.answerPing() // the reader notices an error
	}
	return err
}

// drainTime is how long the reader may continue with what the peer has sent, after writing
// to it has failed.
const drainTime = time.Second

func (l *link) write(ctx context.Context, frame []byte) error {
	expired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(expired)
		_ = l.guard.SetWriteDeadline(time.Unix(1, 0)) // the write that is under way fails at once
	})
	err := l.zmtp.SendMsg(zmq4.NewMsg(frame))
	if err == nil {
		err = l.guard.flush()
	}
	if !stop() {
		<-expired
		if err == nil {
			return l.guard.SetWriteDeadline(time.Time{})
		}
		// Part of the message may have been sent, so nothing else can follow.
		l.close()
		return fmt.Errorf("%w in the middle of a message, so the connection was closed: %w", ctx.Err(), messenger.ErrClosed)
	}
	if err != nil {
		_ = l.guard.SetReadDeadline(time.Now().Add(drainTime))
		return fmt.Errorf("%w: %w", messenger.ErrClosed, err)
	}
	return nil
}

func (l *link) close() { _ = l.guard.Close() }
