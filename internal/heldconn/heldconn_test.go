package heldconn

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hang is the time limit of operations that take far less.
const hang = time.Minute

var errStopping = errors.New("stopping")

// world is a server whose requests for /hold are held until they are released.
type world struct {
	*testing.T
	server  *http.Server
	holder  *Holder
	addr    net.Addr
	release chan struct{}
	held    chan struct{}  // receives when a request waits
	left    chan error     // why the context of a request ended
	states  sync.WaitGroup // connections that net/http has
}

func newWorld(t *testing.T, network string, idle time.Duration) *world {
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "s")
	}
	listener, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{T: t, addr: listener.Addr(), holder: New(listener.Addr(), idle), release: make(chan struct{}), held: make(chan struct{}, 1000), left: make(chan error, 1000)}
	w.server = &http.Server{
		Handler: http.HandlerFunc(w.handle), ReadTimeout: hang, WriteTimeout: hang,
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			if conn, ok := conn.(*net.TCPConn); ok {
				_ = conn.SetWriteBuffer(large)
			}
			return w.holder.ConnContext(ctx, conn)
		},
		ConnState: func(_ net.Conn, s http.ConnState) {
			switch s {
			case http.StateNew:
				w.states.Add(1)
			case http.StateHijacked, http.StateClosed:
				w.states.Done()
			}
		},
	}
	var serving sync.WaitGroup
	for _, l := range []net.Listener{listener, w.holder} {
		serving.Go(func() {
			if err := w.server.Serve(l); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() {
		w.server.Close()
		w.holder.Close()
		w.holder.End(errStopping)
		w.holder.Wait(context.Background())
		serving.Wait()
	})
	return w
}

func (w *world) handle(out http.ResponseWriter, r *http.Request) {
	out.Header().Set("Before", "set before")
	if strings.HasPrefix(r.URL.Path, "/hold") && Hold(out, r, w.answer) {
		return
	}
	fmt.Fprintf(out, "not held: %s", r.URL.Path)
}

func (w *world) answer(out http.ResponseWriter, r *Request) {
	over := make(chan struct{})
	var releasing sync.WaitGroup
	releasing.Go(func() {
		select {
		case <-w.release:
			r.Wake()
			r.Wake()
		case <-over:
		}
	})
	defer releasing.Wait()
	w.held <- struct{}{}
	until := hang
	if r.URL.Path == "/hold/short" {
		until = time.Millisecond
	}
	r.Wait(time.Now().Add(until))
	close(over)
	switch r.URL.Path {
	case "/hold/abort":
		panic(http.ErrAbortHandler)
	case "/hold/empty":
		return
	case "/hold/no-content":
		out.WriteHeader(http.StatusNoContent)
		return
	case "/hold/large":
		_, _ = out.Write(make([]byte, large))
		return
	case "/hold/huge":
		_, _ = out.Write(make([]byte, huge))
		return
	}
	if err := context.Cause(r.Context()); err != nil {
		w.left <- err
		out.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprint(out, err)
		return
	}
	out.Header().Set("After", "set after")
	out.WriteHeader(http.StatusAccepted)
	fmt.Fprintf(out, "held: %s", r.URL.Path)
}

// A large answer fits into the send buffer of a connection, a huge one does not.
const (
	large = 128 << 10
	huge  = 16 << 20
)

// client is one connection.
type client struct {
	*world
	net.Conn
	in *bufio.Reader
}

func (w *world) dial() *client {
	w.Helper()
	conn, err := net.Dial(w.addr.Network(), w.addr.String())
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(hang))
	return &client{w, conn, bufio.NewReader(conn)}
}

func (c *client) send(text string) {
	c.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		c.Fatal(err)
	}
}

func (c *client) get(path string) { c.send("GET " + path + " HTTP/1.1\r\nHost: h\r\n\r\n") }

// expect reads an answer.
func (c *client) expect(method string, status int, body string) *http.Response {
	c.Helper()
	r, err := http.ReadResponse(c.in, &http.Request{Method: method})
	if err != nil {
		c.Fatal(err)
	}
	text, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != status || string(text) != body {
		c.Errorf("%d %.100q, %v; want %d %.100q", r.StatusCode, text, err, status, body)
	}
	return r
}

// expectEnd reads the end of the connection.
func (c *client) expectEnd() {
	c.Helper()
	if b, err := c.in.ReadByte(); !errors.Is(err, io.EOF) {
		c.Errorf("%q, %v after the last answer", b, err)
	}
}

// TestHold sends held and other requests on one connection, which stays open.
func TestHold(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			w := newWorld(t, network, hang)
			c := w.dial()
			for i := range 3 {
				c.get("/hold/" + fmt.Sprint(i))
				<-w.held
				w.states.Wait() // net/http has nothing
				if n := w.holder.Held(); n != 1 {
					t.Errorf("%d are held", n)
				}
				w.release <- struct{}{}
				r := c.expect("GET", http.StatusAccepted, "held: /hold/"+fmt.Sprint(i))
				if r.Header.Get("Before") == "" || r.Header.Get("After") == "" || r.Header.Get("Date") == "" || r.Close || r.Proto != "HTTP/1.1" {
					t.Errorf("%+v", r)
				}
				c.get("/other")
				c.expect("GET", http.StatusOK, "not held: /other")
			}
			c.send("HEAD /hold/head HTTP/1.1\r\nHost: h\r\n\r\n")
			<-w.held
			w.release <- struct{}{}
			if r := c.expect("HEAD", http.StatusAccepted, ""); r.ContentLength != int64(len("held: /hold/head")) {
				t.Errorf("Content-Length %d", r.ContentLength)
			}
			for path, status := range map[string]int{"/hold/empty": http.StatusOK, "/hold/no-content": http.StatusNoContent} {
				c.get(path)
				<-w.held
				w.release <- struct{}{}
				c.expect("GET", status, "")
			}
			c.get("/hold/short")
			<-w.held
			c.expect("GET", http.StatusAccepted, "held: /hold/short")
			c.send("GET /hold/last HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
			<-w.held
			w.release <- struct{}{}
			if r := c.expect("GET", http.StatusAccepted, "held: /hold/last"); !r.Close {
				t.Error("the connection is said to stay open")
			}
			c.expectEnd()
		})
	}
}

// TestNextRequestComesEarly sends the next request while one is held.
func TestNextRequestComesEarly(t *testing.T) {
	t.Run("after", func(t *testing.T) {
		w := newWorld(t, "tcp", hang)
		c := w.dial()
		c.get("/hold")
		<-w.held
		c.get("/other")
		w.release <- struct{}{}
		c.expect("GET", http.StatusAccepted, "held: /hold")
		c.expect("GET", http.StatusOK, "not held: /other")
		c.get("/hold/short")
		<-w.held
		c.get("/other")
		c.expect("GET", http.StatusAccepted, "held: /hold/short")
		c.expect("GET", http.StatusOK, "not held: /other")
	})
	t.Run("together", func(t *testing.T) {
		w := newWorld(t, "tcp", hang)
		c := w.dial()
		c.send("GET /hold HTTP/1.1\r\nHost: h\r\n\r\nGET /other HTTP/1.1\r\nHost: h\r\n\r\n")
		<-w.held
		w.release <- struct{}{}
		if r := c.expect("GET", http.StatusAccepted, "held: /hold"); !r.Close {
			t.Error("a request that was read is lost, and the connection stays open")
		}
		c.expectEnd()
	})
}

// TestLastAnswerArrives: clients read the last answer after the server has closed the
// connection, although it has not read all that they sent.
func TestLastAnswerArrives(t *testing.T) {
	for name, end := range map[string]string{"of the client": "Connection: close\r\n", "of the server": ""} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "tcp", hang)
			c := w.dial()
			if err := c.Conn.(*net.TCPConn).SetReadBuffer(16 << 10); err != nil { // less than the answer
				t.Fatal(err)
			}
			c.send("GET /hold/large HTTP/1.1\r\nHost: h\r\n" + end + "\r\n")
			<-w.held
			c.get("/other")
			if end == "" {
				w.holder.Close()
			}
			w.release <- struct{}{}
			w.holder.Wait(t.Context())
			c.expect("GET", http.StatusOK, strings.Repeat("\x00", large))
			c.expectEnd()
		})
	}
}

// TestClientDoesNotReceive: a client does not read an answer that is larger than the
// connection's buffers.
func TestClientDoesNotReceive(t *testing.T) {
	w := newWorld(t, "tcp", hang)
	c := w.dial()
	c.get("/hold/huge")
	<-w.held
	w.holder.Close()
	w.release <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	begin := time.Now()
	w.holder.Wait(ctx)
	if time.Since(begin) >= answerTime {
		t.Error("the client has stopped the end")
	}
}

func TestClientLeaves(t *testing.T) {
	w := newWorld(t, "tcp", hang)
	c := w.dial()
	c.get("/hold")
	<-w.held
	c.Close()
	if err := <-w.left; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	c = w.dial()
	c.get("/hold/abort")
	<-w.held
	w.release <- struct{}{}
	c.expectEnd()
}

// TestNotHeld: handlers answer the requests that Hold refuses.
func TestNotHeld(t *testing.T) {
	w := newWorld(t, "tcp", hang)
	c := w.dial()
	c.send("POST /hold HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx")
	c.expect("POST", http.StatusOK, "not held: /hold")
	c.send("GET /hold HTTP/1.0\r\n\r\n")
	c.expect("GET", http.StatusOK, "not held: /hold")
	c.expectEnd()
	if Hold(nil, &http.Request{ProtoMajor: 1, ProtoMinor: 1, Body: http.NoBody}, nil) {
		t.Error("a request without a Holder is held")
	}
}

// TestEnd ends the held requests, whose connections are then closed.
func TestEnd(t *testing.T) {
	w := newWorld(t, "tcp", hang)
	idle, open, early := w.dial(), w.dial(), w.dial()
	idle.get("/hold")
	<-w.held
	w.release <- struct{}{}
	idle.expect("GET", http.StatusAccepted, "held: /hold")
	open.get("/hold")
	<-w.held
	early.get("/hold")
	<-w.held
	w.holder.Close()
	w.holder.Close()
	idle.expectEnd()
	w.release <- struct{}{}
	w.holder.End(errStopping)
	for _, c := range []*client{open, early} {
		r, err := http.ReadResponse(c.in, nil)
		if err != nil || !r.Close {
			t.Errorf("%+v, %v", r, err)
		}
	}
	w.holder.Wait(context.Background())
	if err := <-w.left; !errors.Is(err, errStopping) {
		t.Error(err)
	}
	c := w.dial()
	c.get("/hold")
	c.expect("GET", http.StatusOK, "not held: /hold")
}

// TestIdle closes a connection that has no next request.
func TestIdle(t *testing.T) {
	w := newWorld(t, "tcp", time.Millisecond)
	c := w.dial()
	c.get("/hold")
	<-w.held
	w.release <- struct{}{}
	c.expect("GET", http.StatusAccepted, "held: /hold")
	c.expectEnd()
}

// TestMany holds and releases many at once.
func TestMany(t *testing.T) {
	w := newWorld(t, "tcp", hang)
	const many = 200
	var clients sync.WaitGroup
	for i := range many {
		c := w.dial()
		c.get("/hold/" + fmt.Sprint(i))
		clients.Go(func() {
			if i%3 == 0 {
				c.Close()
				return
			}
			c.expect("GET", http.StatusAccepted, "held: /hold/"+fmt.Sprint(i))
			c.get("/other")
			c.expect("GET", http.StatusOK, "not held: /other")
		})
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		clients.Wait()
	}()
	for { // a client that is leaving may take a release, too
		select {
		case w.release <- struct{}{}:
			continue
		case <-done:
		}
		break
	}
}
