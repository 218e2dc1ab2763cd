package access

import (
	"io"
	"net"
	"testing"

	"github.com/iterait/shepherd/internal/claims"
)

func TestLimitConnections(t *testing.T) {
	claims.Hold(t, "C14")
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var refused []string
	l := LimitConnections(inner, 2, func(address string) { refused = append(refused, address) })
	accepted := make(chan net.Conn)
	go func() {
		defer close(accepted)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- conn
		}
	}()
	dial := func() net.Conn {
		conn, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	dial()
	first := <-accepted
	dial()
	second := <-accepted
	if _, err := dial().Read(make([]byte, 1)); err == nil {
		t.Error("the third connection was answered")
	}
	// One that is closed, even twice, makes room for one.
	first.Close()
	first.Close()
	dial()
	third := <-accepted
	if _, err := dial().Read(make([]byte, 1)); err == nil || err != io.EOF && !isReset(err) {
		t.Errorf("closing twice made room for two: %v", err)
	}
	inner.Close()
	<-accepted
	second.Close()
	third.Close()
	if len(refused) != 2 || refused[0] != "127.0.0.1" || len(l.(*limitedListener).open) != 0 {
		t.Errorf("refused %q, open %v", refused, l.(*limitedListener).open)
	}
	if LimitConnections(inner, 0, nil) != inner {
		t.Error("0 is a limit")
	}
}

func isReset(err error) bool { _, ok := err.(*net.OpError); return ok }
