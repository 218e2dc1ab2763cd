// Package zmq speaks ZeroMQ between a runner and the process that hands it
// jobs: a DEALER that connects (Dial) and a ROUTER that is connected to
// (Listen), both with messages of one application frame.
//
// The protocol is ZMTP 3 with the NULL mechanism, as any libzmq speaks it; its
// handshake and framing are github.com/go-zeromq/zmq4's. That library trusts
// its peer: a frame length is allocated as announced, a socket type or metadata
// it does not know makes it panic, heartbeats are handed up as messages. So it
// never meets the peer: a guard stands between it and the network, reads every
// header first and lets through only what is well-formed and within Limits,
// answers heartbeats itself, and puts each message on the wire whole.
//
// The library's Conn is used, not its Socket: one value is one connection's
// life. There is no automatic reconnect, no queue that outlives a connection,
// no goroutine that nobody waits for and no entry in the library's table of
// transports, which is the process's and has no way to remove one.
package zmq

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/iterait/shepherd/messenger"
)

// ErrProtocol is wrapped by the error that ends a connection whose peer sends
// what is not ZMTP 3, or is not allowed here.
var ErrProtocol = errors.New("the peer breaks the ZeroMQ protocol")

// errDropped says that a message was read whole and thrown away; the
// connection is well.
var errDropped = errors.New("message dropped")

// Limits bound what a peer may send and how long it may take to say who it is.
// A zero field means its default.
type Limits struct {
	// MaxMessage is the largest message, all of its frames together, in bytes.
	// It holds in both directions. The default is messenger.MaxMessage.
	MaxMessage int
	// MaxParts is the largest number of frames in one message. A message of
	// more than one frame is dropped, one of more than MaxParts ends the
	// connection. The default is 16.
	MaxParts int
	// HandshakeTimeout bounds the time from the connection to the end of the
	// ZMTP handshake. The default is 5 seconds.
	HandshakeTimeout time.Duration
}

func (l Limits) withDefaults() Limits {
	if l.MaxMessage <= 0 {
		l.MaxMessage = messenger.MaxMessage
	}
	if l.MaxParts <= 0 {
		l.MaxParts = 16
	}
	if l.HandshakeTimeout <= 0 {
		l.HandshakeTimeout = 5 * time.Second
	}
	return l
}

// splitEndpoint takes a ZeroMQ endpoint apart: tcp://HOST:PORT or ipc://PATH.
func splitEndpoint(endpoint string) (network, address string, err error) {
	scheme, address, _ := strings.Cut(endpoint, "://")
	switch {
	case scheme == "tcp":
		if _, _, err := net.SplitHostPort(address); err != nil {
			return "", "", fmt.Errorf("ZeroMQ endpoint %q: %w; expected tcp://HOST:PORT", endpoint, err)
		}
		return "tcp", address, nil
	case scheme == "ipc" && address != "":
		return "unix", address, nil
	}
	return "", "", fmt.Errorf("ZeroMQ endpoint %q: expected tcp://HOST:PORT or ipc://PATH", endpoint)
}

func orDiscard(log *slog.Logger) *slog.Logger {
	if log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return log
}
