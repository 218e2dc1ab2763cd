package zmq_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/iterait/shepherd/internal/claims"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/messenger/zmq"
)

// small keeps hostile messages short.
var small = zmq.Limits{MaxMessage: 1000, MaxParts: 3, HandshakeTimeout: 200 * time.Millisecond}

// A peer that is something else, or pretends, is found out in the handshake.
func TestHostileHandshake(t *testing.T) {
	claims.Hold(t, "M3")
	old := greeting("NULL")
	old[10] = 2
	noSignature := greeting("NULL")
	noSignature[9] = 0
	asServer := greeting("NULL")
	asServer[32] = 7
	for name, c := range map[string]struct {
		said []byte
		want string
	}{
		"HTTP":                     {[]byte("HTTP/1.1 400 Bad Request\r\n\r\n"), `begins with "HTTP/1.1`},
		"one byte of text":         {[]byte("x"), `begins with "x"`},
		"no signature":             {noSignature[:10], "no ZMTP signature"},
		"an old version":           {old[:11], "ZMTP 2"},
		"another mechanism":        {greeting("CURVE"), `"CURVE"`},
		"a name after the NUL":     {greeting("NULL\x00X"), "mechanism"},
		"as-server":                {asServer, "as-server is 7"},
		"a message before READY":   {join(greeting("NULL"), frame(0, []byte("hi"))), "before READY"},
		"PING before READY":        {join(greeting("NULL"), command("PING", []byte{0, 0})), `"PING" before READY`},
		"ERROR":                    {join(greeting("NULL"), command("ERROR", []byte("\x06go off"))), `"go off"`},
		"unknown flags":            {join(greeting("NULL"), []byte{0xF4, 0}), "unknown flags"},
		"an empty command":         {join(greeting("NULL"), []byte{4, 0}), "without a name"},
		"a command's name too far": {join(greeting("NULL"), []byte{4, 2, 9, 'R'}), "without a name"},
		"a huge READY":             {join(greeting("NULL"), header(4, 1<<62)), "a command of 4611686018427387904 bytes"},
		"READY in parts":           {join(greeting("NULL"), []byte{5, 1, 0}), "several frames"},
		"no socket type":           {join(greeting("NULL"), command("READY", nil)), `a "" socket`},
		"an unknown socket type":   {join(greeting("NULL"), readyAs("TEAPOT")), `"TEAPOT"`},
		"an unfit socket type":     {join(greeting("NULL"), readyAs("DEALER")), "expected ROUTER"},
		"two socket types":         {join(greeting("NULL"), command("READY", append(property("Socket-Type", "ROUTER"), property("socket-type", "TEAPOT")...))), "two socket types"},
		"a property's name too far": {
			join(greeting("NULL"), command("READY", []byte{200, 'S'})), "cut short"},
		"a property without a value": {
			join(greeting("NULL"), command("READY", append([]byte{4}, "Name"...))), "cut short"},
		"a property's value too far": {
			join(greeting("NULL"), command("READY", append([]byte{1, 'N'}, 0xFF, 0xFF, 0xFF, 0xFF))), "cut short"},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := zmq.Dial(within(t), zmq.Config{Endpoint: peer(t, says(c.said)), Limits: small})
			if err == nil {
				conn.Close()
				t.Fatal("the handshake succeeded")
			}
			if !errors.Is(err, zmq.ErrProtocol) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v; expected ErrProtocol with %q", err, c.want)
			}
		})
	}
}

// A peer that is there and silent, or slow without end, holds Dial no longer
// than its context.
func TestSilentHandshake(t *testing.T) {
	for name, talk := range map[string]func(net.Conn){
		"silent":          says(nil),
		"half a greeting": says(greeting("NULL")[:30]),
		"closes at once":  func(net.Conn) {},
		"slow loris": func(conn net.Conn) {
			for _, b := range hello() {
				if _, err := conn.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			_, err := zmq.Dial(ctx, zmq.Config{Endpoint: peer(t, talk), Limits: small})
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("got %v", err)
			}
		})
	}
}

// After the handshake: what is not allowed ends the connection, with a reason,
// after everything that came before it was handed over.
func TestHostileTraffic(t *testing.T) {
	claims.Hold(t, "M3")
	more := bytes.Repeat(frame(1, []byte("x")), 1000)
	for name, c := range map[string]struct {
		said []byte
		want string
	}{
		"a frame of 2^62 bytes":              {header(0, 1<<62), "a frame of 4611686018427387904 bytes"},
		"a frame of 2^64-1 bytes":            {header(0, 1<<64-1), "a frame of 18446744073709551615 bytes"},
		"a frame of 100 GiB":                 {header(0, 100<<30), "a frame of 107374182400 bytes"},
		"one byte too many":                  {header(0, 1001), "a frame of 1001 bytes"},
		"frames that are too large together": {join(frame(1, make([]byte, 600)), header(0, 401)), "for all its frames"},
		"endless parts":                      {more, "more than 3 frames"},
		"endless empty parts":                {bytes.Repeat([]byte{1, 0}, 1000), "more than 3 frames"},
		"a huge command":                     {header(4, 100<<30), "a command of 107374182400 bytes"},
		"a command in parts":                 {[]byte{5, 1, 0}, "several frames"},
		"a nameless command":                 {[]byte{4, 1, 0}, "without a name"},
		"a PING without a time":              {command("PING", nil), "PING with 0 bytes"},
		"a PING with a long context":         {command("PING", make([]byte, 19)), "PING with 19 bytes"},
		"unknown flags":                      {[]byte{0x08, 0}, "unknown flags 0x08"},
		"an end within a message":            {frame(0, []byte("hello"))[:4], io.ErrUnexpectedEOF.Error()},
		"an end within a header":             {header(0, 5)[:5], io.ErrUnexpectedEOF.Error()},
		"an end between two frames":          {frame(1, []byte("hello")), io.ErrUnexpectedEOF.Error()},
		"an end between messages":            {nil, "the runner closed it"},
	} {
		t.Run(name, func(t *testing.T) {
			said := join(hello(), frame(0, []byte("good")), c.said)
			conn, err := zmq.Dial(within(t), zmq.Config{
				Endpoint: peer(t, func(conn net.Conn) { // ends after its last word, but lets the other side greet
					_, _ = io.ReadFull(conn, make([]byte, 64))
					_, _ = conn.Write(said)
					_ = conn.(*net.TCPConn).CloseWrite()
					_, _ = io.Copy(io.Discard, conn)
				}), Limits: small})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := ended(t, conn); !strings.Contains(err.Error(), c.want) {
				t.Errorf("ended with %v; expected %q", err, c.want)
			}
			if got, err := conn.Recv(within(t)); err != nil || string(got) != "good" {
				t.Errorf("what came before: %q, %v", got, err)
			}
			if _, err := conn.Recv(within(t)); !errors.Is(err, messenger.ErrClosed) {
				t.Errorf("after the end: %v", err)
			}
		})
	}
}

// What is odd but allowed disturbs nothing.
func TestOddTraffic(t *testing.T) {
	said := join(hello(),
		command("PONG", []byte("whatever")), command("SUBSCRIBE", []byte("all")), header(4, 3), []byte("\x02HI"),
		frame(1, []byte("two")), frame(0, []byte("frames")),
		frame(1, []byte("one")), command("PING", []byte{0, 1}), frame(0, []byte("with a PING inside")),
		header(0, 4), []byte("long"), // a short body with a long header
		frame(0, nil),
	)
	for chunk := 1; chunk <= len(said); chunk += 1 + chunk/8 {
		var got []string
		err := zmq.Talk(&stub{data: said, chunk: chunk}, small, func(frame []byte) { got = append(got, string(frame)) })
		if !errors.Is(err, io.EOF) || fmt.Sprint(got) != "[long ]" {
			t.Fatalf("in chunks of %d: got %q, %v", chunk, got, err)
		}
	}
}

// Wherever the peer's bytes are cut off, there is an error and no half message.
func TestPeerDiesAtEveryByte(t *testing.T) {
	said := join(hello(), frame(0, []byte("hello")), frame(0, bytes.Repeat([]byte("x"), 300)))
	for n := range len(said) {
		var got int
		err := zmq.Talk(&stub{data: said[:n], chunk: 7}, small, func(frame []byte) {
			if got++; got > 1 || string(frame) != "hello" {
				t.Errorf("cut at %d: message %q", n, frame)
			}
		})
		if err == nil || errors.Is(err, zmq.ErrProtocol) {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
}

// PONGs repeat the PING's context and never land inside a message, however
// many of either there are.
func TestPongsKeepOutOfMessages(t *testing.T) {
	const messages, size, pings = 20, 300 << 10, 2000
	result := make(chan error, 1)
	endpoint := peer(t, func(conn net.Conn) {
		if _, err := conn.Write(hello()); err != nil {
			result <- err
			return
		}
		var pinging sync.WaitGroup
		pinging.Go(func() {
			for i := range pings {
				if _, err := conn.Write(command("PING", fmt.Appendf([]byte{0, 9}, "nr %d", i))); err != nil {
					return
				}
			}
		})
		result <- readTraffic(conn, messages, size, fmt.Sprintf("nr %d", pings-1))
		conn.Close()
		pinging.Wait()
	})
	conn, err := zmq.Dial(within(t), zmq.Config{Endpoint: endpoint})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range messages {
		if err := conn.Send(within(t), bytes.Repeat([]byte("m"), size)); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case err := <-result:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(hang):
		t.Fatal("the messages or the last PONG did not come")
	}
}

// readTraffic reads a DEALER's bytes until it has seen that many messages of
// that size and the PONG with the last context.
func readTraffic(conn net.Conn, messages, size int, lastPong string) error {
	if _, err := io.ReadFull(conn, make([]byte, 64)); err != nil {
		return err
	}
	// A DEALER without an identity; the order of properties is free.
	typ, identity := property("Socket-Type", "DEALER"), property("Identity", "")
	ready := [][]byte{command("READY", join(typ, identity))[2:], command("READY", join(identity, typ))[2:]}
	count, last := 0, false
	for count < messages || !last {
		flags, body, err := readFrame(conn)
		if err != nil {
			return err
		}
		switch {
		case flags&4 == 0 && bytes.Count(body, []byte("m")) == size && len(body) == size:
			count++
		case flags&4 != 0 && bytes.HasPrefix(body, []byte("\x04PONGnr ")):
			last = last || string(body[5:]) == lastPong
		case flags&4 != 0 && (bytes.Equal(body, ready[0]) || bytes.Equal(body, ready[1])):
		default:
			return fmt.Errorf("frame with flags %d and %d bytes: %.60q", flags, len(body), body)
		}
	}
	return nil
}

// Announced but never sent bytes cost no more than the limit.
func TestAnnouncedLengthIsNotAllocated(t *testing.T) {
	claims.Hold(t, "M3")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, size := range []uint64{1 << 62, 100 << 30, messenger.MaxMessage + 1} {
		err := zmq.Talk(&stub{data: join(hello(), header(0, size)), chunk: 100}, zmq.Limits{}, func([]byte) {})
		if !errors.Is(err, zmq.ErrProtocol) {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 1<<20 {
		t.Fatalf("%d bytes allocated for three headers", grown)
	}
}

// Silent, garbage and half-open clients hold up nobody.
func TestRouterAmongBadClients(t *testing.T) {
	router := echo(t, zmq.RouterConfig{Endpoint: "tcp://127.0.0.1:0"})
	endpoint := "tcp://" + router.Addr().String()
	var open []net.Conn
	defer func() {
		for _, conn := range open {
			conn.Close()
		}
	}()
	for i := range 100 {
		conn, err := net.Dial("tcp", router.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, conn)
		said := [][]byte{nil, []byte("GET / HTTP/1.1\r\n\r\n"), greeting("NULL"), join(greeting("NULL"), readyAs("TEAPOT")),
			join(greeting("NULL"), readyAs("DEALER"), header(0, 1<<62)), bytes.Repeat([]byte{0xFF}, 1000)}[i%6]
		if _, err := conn.Write(said); err != nil {
			t.Fatal(err)
		}
	}
	roundTrip(t, dial(t, endpoint), []byte("hello"))
}

func TestRouterTurnsTooManyAway(t *testing.T) {
	router := echo(t, zmq.RouterConfig{Endpoint: "tcp://127.0.0.1:0", MaxConns: 1})
	endpoint := "tcp://" + router.Addr().String()
	first := dial(t, endpoint)
	roundTrip(t, first, []byte("hello"))
	refused, err := net.Dial("tcp", router.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer refused.Close()
	_ = refused.SetDeadline(time.Now().Add(hang))
	if n, err := refused.Read(make([]byte, 1)); n != 0 || err == nil || isTimeout(err) {
		t.Fatalf("the second connection: %d bytes, %v", n, err)
	}
	roundTrip(t, first, []byte("hello again"))
	first.Close()
	roundTrip(t, dial(t, endpoint), []byte("there is room again")) // Dial tries until there is
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

func TestRouterAnswersNobodyWhoHasLeft(t *testing.T) {
	router, err := zmq.Listen(t.Context(), zmq.RouterConfig{Endpoint: "tcp://127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	conn := dial(t, "tcp://"+router.Addr().String())
	if err := conn.Send(within(t), []byte("hello")); err != nil {
		t.Fatal(err)
	}
	m, err := router.Recv(within(t))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	ctx := within(t)
	for err == nil { // the first may still fit into the socket's buffer
		err = router.Send(ctx, m.From, make([]byte, 1<<20))
	}
	if !errors.Is(err, messenger.ErrClosed) {
		t.Fatal(err)
	}
	for range 2 {
		if err := router.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := router.Recv(ctx); !errors.Is(err, messenger.ErrClosed) {
		t.Fatalf("Recv after Close: %v", err)
	}
	if _, err := zmq.Listen(ctx, zmq.RouterConfig{Endpoint: "udp://127.0.0.1:1"}); err == nil {
		t.Fatal("bound an endpoint of an unknown kind")
	}
}
