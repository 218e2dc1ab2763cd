// Package heldconn holds HTTP requests that wait long, at a fraction of the memory that
// net/http needs for them.
//
// net/http keeps two goroutines and three buffers for a request until its handler returns,
// about 15 KiB besides what the handler itself needs. A request that is held gives these
// back: its connection is taken from the http.Server, one goroutine with a shallow stack
// waits until there is an answer or the client closes the connection, and after the answer
// the connection returns to the server with the client's next request. Clients see one
// difference: the answer to a request that was sent together with the next one closes the
// connection.
package heldconn

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	// answerTime is how long a client may take to receive an answer.
	answerTime = time.Minute
	// lingerTime is how long a client may take to close a connection after the last answer.
	lingerTime = 500 * time.Millisecond
)

// Holder holds requests of one http.Server. It is a net.Listener of the connections that
// return, which the server serves beside its own listener.
type Holder struct {
	addr      net.Addr
	idleTime  time.Duration
	returned  chan net.Conn
	closed    chan struct{}
	following sync.WaitGroup // the goroutines of the connections

	mu      sync.Mutex
	closing bool                  // no connection returns to the server
	ending  error                 // the cause given to End; nil before
	hurried bool                  // clients get no more time to receive answers
	held    map[*Request]struct{} // not answered
	idle    map[net.Conn]struct{} // answered, without a next request
}

// New returns a Holder for a server with the given address and IdleTimeout.
func New(addr net.Addr, idleTimeout time.Duration) *Holder {
	return &Holder{
		addr: addr, idleTime: idleTimeout,
		returned: make(chan net.Conn), closed: make(chan struct{}),
		held: make(map[*Request]struct{}), idle: make(map[net.Conn]struct{}),
	}
}

type contextKey struct{}

// ConnContext returns ctx for the ConnContext of the http.Server: requests of connections
// with it can be held. Connections without a file descriptor, such as those of TLS, cannot.
func (h *Holder) ConnContext(ctx context.Context, conn net.Conn) context.Context {
	if plain, ok := conn.(syscall.Conn); !ok {
		return ctx
	} else if _, err := plain.SyscallConn(); err != nil {
		return ctx
	}
	return context.WithValue(ctx, contextKey{}, h)
}

// Accept returns the next connection that has a request after one that was held.
func (h *Holder) Accept() (net.Conn, error) {
	select {
	case conn := <-h.returned:
		return conn, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

// Addr returns the address of the server.
func (h *Holder) Addr() net.Addr { return h.addr }

// Close closes the connections that have no request, and lets those of requests that are
// held be closed after the answer. It may be called more than once.
func (h *Holder) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closing {
		return nil
	}
	h.closing = true
	close(h.closed)
	for conn := range h.idle {
		_ = conn.SetReadDeadline(past) // its goroutine closes it
	}
	return nil
}

// End ends the waits and the contexts of the requests that are held, with the given cause,
// and holds no further ones.
func (h *Holder) End(cause error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ending = cause
	for r := range h.held {
		r.cancel(cause)
		r.Wake()
	}
}

// Held returns the number of requests that are held.
func (h *Holder) Held() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.held)
}

// Wait returns when no connection is held. Close and End come first. When ctx ends, answers
// that clients have not received are aborted.
func (h *Holder) Wait(ctx context.Context) {
	stop := context.AfterFunc(ctx, h.hurry)
	defer stop()
	h.following.Wait()
}

func (h *Holder) hurry() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hurried = true
	for r := range h.held {
		r.mu.Lock()
		if r.conn != nil {
			_ = r.conn.SetWriteDeadline(past)
		}
		r.mu.Unlock()
	}
}

// allowAnswer begins the time that a client may take to receive an answer.
func (h *Holder) allowAnswer(conn net.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.hurried {
		_ = conn.SetWriteDeadline(past)
		return
	}
	_ = conn.SetWriteDeadline(time.Now().Add(answerTime))
}

// Request is a request that is held. Its context does not end with the client's connection.
type Request struct {
	*http.Request
	holder *Holder
	header http.Header // of the answer
	cancel context.CancelCauseFunc

	last bool // of its connection
	gone bool // the client has left

	mu    sync.Mutex
	conn  net.Conn // nil before it was taken from the server
	woken bool
	wake  chan struct{} // closed by Wake; nil while the connection's deadline does that
}

// Hold takes the connection of r from its http.Server, and calls handler on a goroutine of
// its own. The caller then returns without an answer; what is set in w's headers becomes
// part of the one that handler writes. It is sent when handler has returned, unless the
// client has left; a panic with http.ErrAbortHandler closes the connection instead.
//
// Hold returns false, with nothing done, for a request that it cannot hold: one whose
// connection has no Holder or whose Holder is ending, that did not come by HTTP/1.1, or
// that has a body.
func Hold(w http.ResponseWriter, r *http.Request, handler func(http.ResponseWriter, *Request)) bool {
	h, ok := r.Context().Value(contextKey{}).(*Holder)
	if !ok || r.ProtoMajor != 1 || r.ProtoMinor != 1 || r.Body != http.NoBody {
		return false
	}
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(r.Context()))
	held := &Request{Request: r.WithContext(ctx), holder: h, header: w.Header(), cancel: cancel}
	if !h.add(held) {
		cancel(nil)
		return false
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil { // the writer is not the server's
		h.remove(held)
		h.following.Done()
		return false
	}
	_ = conn.SetDeadline(time.Time{}) // the server's
	// What the server has read of a next request cannot be given back: the answer closes
	// the connection, and the client sends that request again.
	held.last = r.Close || buffered.Reader.Buffered() > 0
	held.mu.Lock()
	held.conn = conn
	held.mu.Unlock()
	go func() {
		defer h.following.Done()
		switch sent := h.serve(held, handler); {
		case !sent:
			_ = conn.Close() // nobody is left to be told of an error
		case held.last:
			linger(conn)
		default:
			h.next(conn)
		}
	}()
	return true
}

// serve lets handler answer a request, and reports whether the answer was sent.
func (h *Holder) serve(r *Request, handler func(http.ResponseWriter, *Request)) bool {
	defer h.remove(r)
	defer func() {
		if reason := recover(); reason != nil && reason != http.ErrAbortHandler {
			panic(reason)
		}
	}()
	w := &answer{header: r.header, status: http.StatusOK}
	handler(w, r)
	return !r.gone && r.send(w)
}

func (h *Holder) add(r *Request) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closing || h.ending != nil {
		return false
	}
	h.held[r] = struct{}{}
	h.following.Add(1)
	return true
}

func (h *Holder) remove(r *Request) {
	r.cancel(nil)
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.held, r)
}

func (h *Holder) isClosing() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.closing
}

// next returns a connection to the server once it has another request. It closes it if the
// client has, sends nothing for the server's IdleTimeout, or the Holder closes.
func (h *Holder) next(conn net.Conn) {
	h.mu.Lock()
	if h.closing {
		h.mu.Unlock()
		linger(conn)
		return
	}
	h.idle[conn] = struct{}{}
	_ = conn.SetReadDeadline(time.Now().Add(h.idleTime)) // locked, as in Close
	h.mu.Unlock()
	err := readable(conn)
	h.mu.Lock()
	delete(h.idle, conn)
	h.mu.Unlock()
	if err != nil {
		_ = conn.Close() // nobody is left to be told of an error
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	select {
	case h.returned <- conn:
	case <-h.closed:
		linger(conn)
	}
}

// linger closes a connection after its last answer, when the client has, too, or lingerTime
// has passed. Until then it reads what else the client sends: the kernel would reset a
// connection that has something unread, and the client could lose the answer.
func linger(conn net.Conn) {
	defer conn.Close()
	if raw, err := conn.(syscall.Conn).SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = syscall.Shutdown(int(fd), syscall.SHUT_WR) }) // or the client has left
	}
	_ = conn.SetReadDeadline(time.Now().Add(lingerTime))
	var unread [512]byte
	for {
		if _, err := conn.Read(unread[:]); err != nil {
			return
		}
	}
}

// past is a deadline that ends whatever waits for a connection.
var past = time.Unix(1, 0)

// Wait returns at the given time, or after Wake was called. It returns earlier, and
// r.Context() has ended, when the client has closed the connection or the Holder ends. It is
// called once.
func (r *Request) Wait(until time.Time) {
	if r.set(until) {
		err := readable(r.conn)
		switch {
		case err == nil: // the client's next request came early, and stays in the socket
			r.waitForWake(until)
		case !errors.Is(err, os.ErrDeadlineExceeded):
			r.gone = true
			r.cancel(context.Canceled)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.woken = true // from now on Wake leaves the connection alone
	_ = r.conn.SetReadDeadline(time.Time{})
}

// set ends reading from the connection at the given time. It returns false if Wake was
// called already.
func (r *Request) set(until time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.woken {
		return false
	}
	_ = r.conn.SetReadDeadline(until)
	return true
}

// waitForWake is Wait without a look at the connection.
func (r *Request) waitForWake(until time.Time) {
	wake := make(chan struct{})
	r.mu.Lock()
	if r.woken {
		r.mu.Unlock()
		return
	}
	r.wake = wake
	r.mu.Unlock()
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-wake:
	case <-timer.C:
	}
}

// Wake lets Wait return. It may be called at any time and more than once.
func (r *Request) Wake() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.woken {
		return
	}
	r.woken = true
	if r.conn != nil {
		_ = r.conn.SetReadDeadline(past)
	}
	if r.wake != nil {
		close(r.wake)
	}
}

// send sends an answer, and reports whether it was sent.
func (r *Request) send(w *answer) bool {
	r.last = r.last || r.holder.isClosing()
	var text bytes.Buffer
	_ = w.response(r.Request, r.last).Write(&text) // a buffer takes everything
	r.holder.allowAnswer(r.conn)
	_, err := r.conn.Write(text.Bytes())
	return err == nil && r.conn.SetWriteDeadline(time.Time{}) == nil
}

// answer is an http.ResponseWriter that keeps everything.
type answer struct {
	header http.Header
	wrote  bool
	status int
	body   bytes.Buffer
}

func (w *answer) Header() http.Header { return w.header }

func (w *answer) WriteHeader(status int) {
	if !w.wrote {
		w.wrote, w.status = true, status
	}
}

func (w *answer) Write(p []byte) (int, error) {
	w.wrote = true
	return w.body.Write(p)
}

// response returns the answer to r.
func (w *answer) response(r *http.Request, last bool) *http.Response {
	w.header.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	return &http.Response{
		StatusCode: w.status, ProtoMajor: 1, ProtoMinor: 1, Header: w.header, Request: r, Close: last,
		ContentLength: int64(w.body.Len()), Body: io.NopCloser(&w.body),
	}
}

// readable returns when there is something to read from a connection, which it leaves there,
// or with an error: io.EOF when the other side has closed it, or os.ErrDeadlineExceeded.
func readable(conn net.Conn) error {
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	var n int
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		var first [1]byte
		n, _, failed = syscall.Recvfrom(int(fd), first[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		return failed != syscall.EAGAIN
	})
	switch {
	case err != nil:
		return err
	case failed != nil:
		return failed
	case n == 0:
		return io.EOF
	}
	return nil
}
