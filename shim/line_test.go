package shim

import (
	"io"
	"log/slog"
	"net"
	"testing"
)

// hungUp is a lineUser that wants no other connection.
type hungUp struct{}

func (hungUp) welcome(Hello)                  {}
func (hungUp) resend(r []*Message) []*Message { return r }
func (hungUp) handle(*Message) []*Message     { return nil }
func (hungUp) over() bool                     { return true }
func (hungUp) gone() bool                     { return true }
func (hungUp) close()                         {}

// TestHangUpWhileGreeting: a connection that is made just when the line is hung up is
// closed, and not read from for ever.
func TestHangUpWhileGreeting(t *testing.T) {
	l := newLine(t.TempDir(), slog.New(slog.DiscardHandler), hungUp{})
	go l.run(nil)
	l.hangUp()
	l.hangUp()
	ours, theirs := net.Pipe()
	defer theirs.Close()
	if l.welcome(ours, Hello{}) {
		t.Error("the connection was taken")
	}
	if _, err := theirs.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read from the other end: %v, want %v", err, io.EOF)
	}
}
