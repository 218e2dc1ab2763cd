package webhook

import (
	"bufio"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"
)

// A receiver that switches protocols and says nothing more keeps no try: such a connection
// is the caller's, and the end of the request's context does not close it.
func TestSwitchedProtocol(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	closed := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			closed <- err
			return
		}
		defer conn.Close()
		in := bufio.NewReader(conn)
		if _, err := http.ReadRequest(in); err != nil {
			closed <- err
			return
		}
		if _, err := conn.Write([]byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: wool\r\n\r\n")); err != nil {
			closed <- err
			return
		}
		_, _ = in.WriteTo(nopWriter{}) // to the end of the connection
		closed <- nil
	}()
	d := New(Config{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, Receivers: []Receiver{{Name: "r", URL: "http://" + listener.Addr().String(), Secrets: secrets}}})
	defer d.Stop()
	ended := make(chan int, 1)
	go func() { ended <- d.try(t.Context(), sampleDelivery()).Status }()
	select {
	case status := <-ended:
		if status != http.StatusSwitchingProtocols {
			t.Errorf("status %d", status)
		}
	case <-time.After(time.Minute):
		t.Fatal("the try does not end")
	}
	select {
	case err := <-closed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the connection stays open")
	}
}

type nopWriter struct{}

func (nopWriter) Write(p []byte) (int, error) { return len(p), nil }
