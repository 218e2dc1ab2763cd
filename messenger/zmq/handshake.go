package zmq

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strings"
)

// A greeting is 64 bytes: a signature of 10 that begins with 0xFF and ends with
// 0x7F, the version's two, the mechanism's name in 20, as-server, 31 of filler
// (https://rfc.zeromq.org/spec/37/).
const (
	greetingSize  = 64
	signatureSize = 10
	majorAt       = 10
	mechanismAt   = 12
	asServerAt    = 32
)

// readGreeting reads the peer's greeting. It checks each part as soon as it has arrived,
// because a peer with another protocol may never send 64 bytes.
func readGreeting(r *bufio.Reader) ([]byte, error) {
	first, err := r.Peek(1)
	if err != nil {
		return nil, err
	}
	if first[0] != 0xFF {
		text, _ := r.Peek(min(r.Buffered(), 24))
		return nil, fmt.Errorf("%w: it begins with %q, which is not a ZMTP greeting", ErrProtocol, text)
	}
	signature, err := r.Peek(signatureSize)
	if err != nil {
		return nil, midway(err)
	}
	if signature[signatureSize-1] != 0x7F {
		return nil, fmt.Errorf("%w: its greeting has no ZMTP signature", ErrProtocol)
	}
	version, err := r.Peek(majorAt + 1)
	if err != nil {
		return nil, midway(err)
	}
	if major := version[majorAt]; major < 3 {
		return nil, fmt.Errorf("%w: it speaks ZMTP %d; version 3 (libzmq 4.0 or later) is needed", ErrProtocol, major)
	}
	all := make([]byte, greetingSize)
	if _, err := io.ReadFull(r, all); err != nil {
		return nil, midway(err)
	}
	if mechanism := string(bytes.TrimRight(all[mechanismAt:asServerAt], "\x00")); mechanism != "NULL" {
		return nil, fmt.Errorf("%w: it wants the security mechanism %q; only NULL is spoken here", ErrProtocol, mechanism)
	}
	if all[asServerAt] > 1 {
		return nil, fmt.Errorf("%w: as-server is %d", ErrProtocol, all[asServerAt])
	}
	return all, nil
}

// readReady reads the peer's READY, and returns the frame of a READY with only the peer's
// socket type.
func (g *guard) readReady() ([]byte, error) {
	h, err := g.readHeader()
	if err != nil {
		return nil, midway(err)
	}
	if h.flags&flagCommand == 0 {
		return nil, fmt.Errorf("%w: a message before READY", ErrProtocol)
	}
	body, err := g.readCommand(h)
	if err != nil {
		return nil, err
	}
	name, data, err := splitCommand(body)
	if err != nil {
		return nil, err
	}
	switch name {
	case "READY":
	case "ERROR":
		if len(data) > 0 {
			data = data[1:] // the reason's length
		}
		return nil, fmt.Errorf("%w: it refuses the connection: %q", ErrProtocol, data)
	default:
		return nil, fmt.Errorf("%w: command %q before READY", ErrProtocol, name)
	}
	typ, err := socketType(data)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(g.peers, typ) {
		return nil, fmt.Errorf("%w: it is a %q socket; expected %s", ErrProtocol, typ, strings.Join(g.peers, " or "))
	}
	return appendCommand(nil, "READY", appendProperty(nil, "Socket-Type", typ)), nil
}

// socketType checks the properties of a READY and returns the socket type.
func socketType(data []byte) (string, error) {
	typ, seen := "", false
	for len(data) > 0 {
		name, rest, ok := cut(data[1:], uint64(data[0]))
		if !ok || len(name) == 0 || len(rest) < 4 {
			return "", fmt.Errorf("%w: a property of READY is cut short", ErrProtocol)
		}
		value, rest, ok := cut(rest[4:], uint64(binary.BigEndian.Uint32(rest)))
		if !ok {
			return "", fmt.Errorf("%w: a property of READY is cut short", ErrProtocol)
		}
		if strings.EqualFold(string(name), "Socket-Type") {
			if seen {
				return "", fmt.Errorf("%w: READY names two socket types", ErrProtocol)
			}
			typ, seen = string(value), true
		}
		data = rest
	}
	return typ, nil
}

func cut(data []byte, n uint64) (head, rest []byte, ok bool) {
	if n > uint64(len(data)) {
		return nil, nil, false
	}
	return data[:n], data[n:], true
}

func splitCommand(body []byte) (name string, data []byte, err error) {
	if len(body) > 0 {
		if name, data, ok := cut(body[1:], uint64(body[0])); ok && len(name) > 0 {
			return string(name), data, nil
		}
	}
	return "", nil, fmt.Errorf("%w: a command without a name", ErrProtocol)
}

// appendCommand appends a command's frame. The body must be shorter than 256 bytes.
func appendCommand(to []byte, name string, data []byte) []byte {
	to = append(to, flagCommand, byte(1+len(name)+len(data)), byte(len(name)))
	to = append(to, name...)
	return append(to, data...)
}

func appendProperty(to []byte, name, value string) []byte {
	to = append(to, byte(len(name)))
	to = append(to, name...)
	to = binary.BigEndian.AppendUint32(to, uint32(len(value)))
	return append(to, value...)
}
