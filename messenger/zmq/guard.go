package zmq

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"
)

// The flags of a ZMTP 3 frame; the other bits are reserved and zero.
const (
	flagMore    = 1 << 0
	flagLong    = 1 << 1
	flagCommand = 1 << 2
)

// maxCommand is the largest command accepted, in bytes. The largest in use are
// a READY with long properties, below 1 KiB, and a PING, at most 23 bytes.
const maxCommand = 8 << 10

// maxPingContext is the longest context of a PING, which its PONG repeats.
const maxPingContext = 16

// phase is the protocol's state in the peer's direction.
type phase int

const (
	greeting phase = iota // its greeting comes next
	ready                 // its READY comes next
	traffic               // messages and commands come
)

// guard is the connection that zmq4 uses. Its Read returns the peer's bytes after they were
// found to be well-formed and within the limits, without commands once the handshake is
// done. An error of Read ends the connection.
//
// Read is called by one goroutine at a time. Write only buffers; the goroutine that holds
// turn writes the buffer to the network, one complete message at a time, so that a PONG is
// never written inside a message.
type guard struct {
	net.Conn
	limits Limits
	peers  []string // socket types the peer may have

	r     *bufio.Reader
	phase phase
	held  []byte // checked bytes that zmq4 has not read yet
	body  int    // bytes of the present frame that follow held
	parts int    // frames of the present message so far, or 0 between messages
	size  int    // their bytes
	fault error  // the error that ended reading, which zmq4's error hides

	turn chan struct{} // a lock for writing: holds one value while it is taken
	out  []byte        // buffered by Write; used by the holder of turn only
	pong atomic.Pointer[[]byte]
}

func newGuard(conn net.Conn, limits Limits, peers ...string) *guard {
	return &guard{
		Conn: conn, limits: limits, peers: peers,
		r:    bufio.NewReaderSize(conn, 4<<10),
		turn: make(chan struct{}, 1),
	}
}

// Read returns checked bytes of the peer.
func (g *guard) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(g.held) == 0 && g.body == 0 {
		if g.fault = g.next(); g.fault != nil {
			return 0, g.fault
		}
	}
	if len(g.held) > 0 {
		n := copy(p, g.held)
		g.held = g.held[n:]
		return n, nil
	}
	n, err := g.r.Read(p[:min(len(p), g.body)])
	g.body -= n
	if err != nil {
		g.fault = midway(err)
	}
	return n, g.fault
}

// next reads and checks what comes next: all of a greeting or command, or the
// header of a message's frame.
func (g *guard) next() error {
	if g.phase == traffic {
		return g.nextFrame()
	}
	// One goroutine does the handshake, so the bytes that zmq4 wrote must be sent before
	// the peer's answer can be read.
	if err := g.flush(); err != nil {
		return err
	}
	var err error
	if g.phase == greeting {
		g.held, err = readGreeting(g.r)
	} else {
		g.held, err = g.readReady()
	}
	if err == nil {
		g.phase++
	}
	return err
}

// frameHeader is a frame's flags and the length of its body.
type frameHeader struct {
	flags byte
	size  uint64
	raw   []byte
}

func (g *guard) readHeader() (frameHeader, error) {
	var raw [9]byte
	if _, err := io.ReadFull(g.r, raw[:1]); err != nil {
		return frameHeader{}, err
	}
	h := frameHeader{flags: raw[0]}
	if h.flags&^(flagMore|flagLong|flagCommand) != 0 {
		return h, fmt.Errorf("%w: a frame has the unknown flags 0x%02x", ErrProtocol, h.flags)
	}
	if h.flags&flagLong == 0 {
		h.raw = raw[:2]
	} else {
		h.raw = raw[:9]
	}
	if _, err := io.ReadFull(g.r, h.raw[1:]); err != nil {
		return h, midway(err)
	}
	if h.flags&flagLong == 0 {
		h.size = uint64(raw[1])
	} else {
		h.size = binary.BigEndian.Uint64(raw[1:])
	}
	return h, nil
}

func (g *guard) nextFrame() error {
	h, err := g.readHeader()
	if err != nil {
		if g.parts > 0 {
			err = midway(err)
		}
		return err
	}
	if h.flags&flagCommand != 0 {
		body, err := g.readCommand(h)
		if err != nil {
			return err
		}
		return g.command(body)
	}
	if h.size > uint64(g.limits.MaxMessage-g.size) {
		return fmt.Errorf("%w: a message with a frame of %d bytes; at most %d are allowed for all its frames", ErrProtocol, h.size, g.limits.MaxMessage)
	}
	if g.parts == g.limits.MaxParts {
		return fmt.Errorf("%w: a message of more than %d frames", ErrProtocol, g.limits.MaxParts)
	}
	g.held, g.body = h.raw, int(h.size)
	g.parts++
	g.size += g.body
	if h.flags&flagMore == 0 {
		g.parts, g.size = 0, 0
	}
	return nil
}

func (g *guard) readCommand(h frameHeader) ([]byte, error) {
	if h.flags&flagMore != 0 {
		return nil, fmt.Errorf("%w: a command in several frames", ErrProtocol)
	}
	if h.size > maxCommand {
		return nil, fmt.Errorf("%w: a command of %d bytes; at most %d are allowed", ErrProtocol, h.size, maxCommand)
	}
	body := make([]byte, h.size)
	if _, err := io.ReadFull(g.r, body); err != nil {
		return nil, midway(err)
	}
	return body, nil
}

// command handles a command after the handshake. It answers PING and ignores others, as the
// protocol requires.
func (g *guard) command(body []byte) error {
	name, data, err := splitCommand(body)
	if err != nil {
		return err
	}
	if name != "PING" {
		return nil
	}
	if len(data) < 2 || len(data) > 2+maxPingContext {
		return fmt.Errorf("%w: a PING with %d bytes of data", ErrProtocol, len(data))
	}
	pong := appendCommand(nil, "PONG", data[2:]) // without the peer's time to live
	g.pong.Store(&pong)
	return g.answerPing()
}

// answerPing writes the pending PONG, unless another goroutine is writing, which then calls
// answerPing itself. If writing fails it closes the connection, because part of the PONG may
// have been sent.
func (g *guard) answerPing() error {
	for g.pong.Load() != nil {
		select {
		case g.turn <- struct{}{}:
		default:
			return nil
		}
		err := g.writePong()
		<-g.turn
		if err != nil {
			g.Close()
			return err
		}
	}
	return nil
}

func (g *guard) writePong() error {
	pong := g.pong.Swap(nil)
	if pong == nil {
		return nil
	}
	// A peer that sends PINGs but does not read must not block the reader.
	if err := g.SetWriteDeadline(time.Now().Add(g.limits.HandshakeTimeout)); err != nil {
		return err
	}
	if _, err := g.Conn.Write(*pong); err != nil {
		return fmt.Errorf("answer a heartbeat: %w", err)
	}
	return g.SetWriteDeadline(time.Time{})
}

// Write buffers p for flush. The caller holds turn, or is the only user.
func (g *guard) Write(p []byte) (int, error) {
	g.out = append(g.out, p...)
	return len(p), nil
}

// keepOut is the largest write buffer kept between messages, in bytes.
const keepOut = 64 << 10

func (g *guard) flush() error {
	if len(g.out) == 0 {
		return nil
	}
	_, err := g.Conn.Write(g.out)
	g.out = g.out[:0]
	if cap(g.out) > keepOut {
		g.out = nil
	}
	return err
}

// midway turns an EOF inside a message or command into io.ErrUnexpectedEOF.
func midway(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
