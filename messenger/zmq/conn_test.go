package zmq_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/messenger/zmq"
)

// Whatever way Config.Dial takes, the endpoint tells it where to, and its
// failures are tried again.
func TestDialByItsOwnWay(t *testing.T) {
	router := echo(t, zmq.RouterConfig{Endpoint: "tcp://127.0.0.1:0"})
	var asked []string
	conn, err := zmq.Dial(within(t), zmq.Config{
		Endpoint: "tcp://runner.invalid:9999",
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			asked = append(asked, network+" "+address)
			if len(asked) < 3 {
				return nil, errors.New("the namespace is not there yet")
			}
			return new(net.Dialer).DialContext(ctx, network, router.Addr().String())
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	roundTrip(t, conn, []byte("hello"))
	if len(asked) != 3 || asked[2] != "tcp runner.invalid:9999" {
		t.Fatalf("asked for %q", asked)
	}
}

// On a loopback port that nobody has bound yet, a dialer may meet itself. That
// is no runner, nor may it keep the port from the runner.
func TestDialDoesNotTalkToItself(t *testing.T) {
	port := testenv.FreePort(t)
	address := fmt.Sprintf("127.0.0.1:%d", port)
	self := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}}
	attempts := 0
	conn, err := zmq.Dial(within(t), zmq.Config{
		Endpoint: "tcp://" + address,
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if attempts++; attempts == 1 {
				conn, err := self.DialContext(ctx, network, address)
				if err != nil || conn.LocalAddr().String() != conn.RemoteAddr().String() {
					t.Fatalf("did not meet itself: %v", err)
				}
				return conn, nil
			}
			if attempts == 2 {
				echo(t, zmq.RouterConfig{Endpoint: "tcp://" + address})
			}
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	roundTrip(t, conn, []byte("hello"))
}

func TestManySenders(t *testing.T) {
	port := testenv.FreePort(t)
	pyRunner(t, port)
	conn := dial(t, tcp(port))
	const senders, each = 8, 50
	ctx := within(t)
	var sending sync.WaitGroup
	for i := range senders {
		sending.Go(func() {
			for n := range each {
				body := fmt.Sprintf("%d/%d %s", i, n, strings.Repeat("x", 997*i))
				if err := conn.Send(ctx, []byte(body)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	next := make([]int, senders)
	for range senders * each {
		frame, err := conn.Recv(ctx)
		if err != nil {
			t.Fatal(err)
		}
		var i, n int
		if _, err := fmt.Sscanf(string(frame), "%d/%d", &i, &n); err != nil || next[i] != n || strings.Count(string(frame), "x") != 997*i {
			t.Fatalf("got %.20q of %d bytes", frame, len(frame))
		}
		next[i]++
	}
	sending.Wait()
}

func TestBadEndpoints(t *testing.T) {
	for _, endpoint := range []string{"", "tcp", "tcp://", "tcp://localhost", "udp://127.0.0.1:1", "ipc://", "127.0.0.1:9999"} {
		if _, err := zmq.Dial(within(t), zmq.Config{Endpoint: endpoint}); err == nil || !strings.Contains(err.Error(), "tcp://HOST:PORT") {
			t.Errorf("%q: %v", endpoint, err)
		}
	}
}
