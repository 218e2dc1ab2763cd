package testenv

import (
	"fmt"
	"net"
	"testing"
)

// A port is free, is given out once, and is released at the end of the test.
func TestFreePort(t *testing.T) {
	seen := make(map[int]bool)
	t.Run("taken", func(t *testing.T) {
		for range 200 {
			port := FreePort(t)
			if seen[port] {
				t.Errorf("port %d is given out again", port)
			}
			seen[port] = true
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				t.Fatal(err)
			}
			l.Close()
			if other, err := net.Listen("unix", fmt.Sprintf("@shepherd-test-port-%d", port)); err == nil {
				other.Close()
				t.Errorf("port %d is not reserved", port)
			}
		}
	})
	for port := range seen {
		reserved, err := net.Listen("unix", fmt.Sprintf("@shepherd-test-port-%d", port))
		if err != nil {
			t.Fatalf("port %d is still reserved: %v", port, err)
		}
		reserved.Close()
	}
}
