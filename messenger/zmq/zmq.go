// Package zmq implements ZeroMQ between a runner and the process that sends it jobs: a
// DEALER that connects (Dial) and a ROUTER that listens (Listen), both with messages of one
// application frame.
//
// The protocol is ZMTP 3 with the NULL mechanism, compatible with libzmq; the handshake and
// framing are those of github.com/go-zeromq/zmq4. That library trusts its peer: it allocates
// frames by their announced length, panics at unknown socket types or metadata, and returns
// heartbeats as messages. So a guard is between it and the network: it reads every header
// first, passes only what is well-formed and within Limits, answers heartbeats itself, and
// writes each message completely.
//
// The library's Conn is used, not its Socket. So there is no automatic reconnect, no queue
// that outlives a connection, no goroutine without an owner, and no entry in the library's
// global table of transports, from which entries cannot be removed.
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

// ErrProtocol is wrapped by the error of a connection whose peer violates ZMTP 3 or the
// limits.
var ErrProtocol = errors.New("the peer breaks the ZeroMQ protocol")

// errDropped is the error for a message that was read completely and dropped; the connection
// stays usable.
var errDropped = errors.New("message dropped")

// Limits are the limits of a peer's messages and handshake. A zero field means its default.
type Limits struct {
	// MaxMessage is the largest message, all of its frames together, in bytes.
	// It holds in both directions. The default is messenger.MaxMessage.
	MaxMessage int
	// MaxParts is the largest number of frames in one message. A message of
	// more than one frame is dropped, one of more than MaxParts ends the
	// connection. The default is 16.
	MaxParts int
	// HandshakeTimeout is the longest time from the connection to the end of the ZMTP
	// handshake. The default is 5 seconds.
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

// splitEndpoint splits a ZeroMQ endpoint: tcp://HOST:PORT or ipc://PATH.
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
