package zmq_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"
)

// What a well-behaved ROUTER says, in bytes.

func greeting(mechanism string) []byte {
	b := make([]byte, 64)
	b[0], b[8], b[9], b[10], b[11] = 0xFF, 1, 0x7F, 3, 1
	copy(b[12:32], mechanism)
	return b
}

func command(name string, data []byte) []byte {
	body := append([]byte{byte(len(name))}, name...)
	return frame(0x04, append(body, data...))
}

func property(name, value string) []byte {
	b := append([]byte{byte(len(name))}, name...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(value)))
	return append(b, value...)
}

func readyAs(typ string) []byte {
	return command("READY", append(property("Socket-Type", typ), property("Identity", "runner")...))
}

func frame(flags byte, body []byte) []byte {
	if len(body) > 255 {
		return append(header(flags, uint64(len(body))), body...)
	}
	return append([]byte{flags, byte(len(body))}, body...)
}

func header(flags byte, size uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{flags | 0x02}, size)
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func hello() []byte { return join(greeting("NULL"), readyAs("ROUTER")) }

// peer serves one connection after the other with talk, on a loopback port,
// until the test ends.
func peer(t testing.TB, talk func(net.Conn)) (endpoint string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			talk(conn)
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		listener.Close()
		<-done
	})
	return "tcp://" + listener.Addr().String()
}

// says is a peer that writes and then waits for the other side to hang up.
func says(data []byte) func(net.Conn) {
	return func(conn net.Conn) {
		if _, err := conn.Write(data); err == nil {
			_, _ = io.Copy(io.Discard, conn)
		}
	}
}

// stub is a connection that yields data in chunks and then ends.
type stub struct {
	net.Conn
	data  []byte
	chunk int
}

func (s *stub) Read(p []byte) (int, error) {
	if len(s.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), s.chunk)], s.data)
	s.data = s.data[n:]
	return n, nil
}

func (s *stub) Write(p []byte) (int, error)      { return len(p), nil }
func (s *stub) Close() error                     { return nil }
func (s *stub) SetDeadline(time.Time) error      { return nil }
func (s *stub) SetReadDeadline(time.Time) error  { return nil }
func (s *stub) SetWriteDeadline(time.Time) error { return nil }

func readFrame(r io.Reader) (flags byte, body []byte, err error) {
	var head [9]byte
	if _, err := io.ReadFull(r, head[:2]); err != nil {
		return 0, nil, err
	}
	size := uint64(head[1])
	if head[0]&2 != 0 {
		if _, err := io.ReadFull(r, head[2:]); err != nil {
			return 0, nil, err
		}
		size = binary.BigEndian.Uint64(head[1:])
	}
	body = make([]byte, size)
	_, err = io.ReadFull(r, body)
	return head[0], body, err
}
