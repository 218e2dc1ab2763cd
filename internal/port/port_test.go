package port

import (
	"net"
	"strconv"
	"testing"
)

// TestFree: the returned ports are not used by connections of clients.
func TestFree(t *testing.T) {
	const host = "127.0.0.1"
	low := ephemeral()
	for range 200 {
		p, err := Free(host)
		if err != nil {
			t.Fatal(err)
		}
		if low >= end && (p < first || p >= end) {
			t.Errorf("port %d is not in [%d, %d)", p, first, end)
		}
		l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(p)))
		if err != nil {
			t.Fatalf("the port cannot be bound: %v", err)
		}
		if _, err := try(host, p); err == nil {
			t.Errorf("port %d is chosen while something listens on it", p)
		}
		l.Close()
	}
	if _, err := Free("192.0.2.1"); err == nil {
		t.Error("a port of an address that this machine does not have is chosen")
	}
}
