package zmq

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/go-zeromq/zmq4"

	"github.com/iterait/shepherd/messenger"
)

// RouterConfig configures a ROUTER.
type RouterConfig struct {
	// Endpoint is tcp://HOST:PORT or ipc://PATH; port 0 picks a free one.
	Endpoint string
	// Identity is sent to peers in the handshake.
	Identity string
	// Limits are the limits of each peer's messages.
	Limits Limits
	// MaxConns is how many peers may be connected at once; further connections are
	// closed. The default is 256.
	MaxConns int
	// Log receives refused connections and dropped messages; nil discards them.
	Log *slog.Logger
}

// Router is a bound ROUTER. Each connection has its own goroutine from the moment it is
// accepted, so one that is silent or sends garbage does not delay others. Its methods may be
// called from several goroutines.
type Router struct {
	cfg      RouterConfig
	log      *slog.Logger
	listener net.Listener
	in       *inbox[Message]

	closing context.Context // ended by Close
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu    sync.Mutex
	peers map[*Peer]struct{}
}

// Peer is one connection to a Router. It is comparable: two messages with the
// same Peer came by the same connection.
type Peer struct {
	conn net.Conn
	link *link // nil during the handshake
}

// Message is a message and the peer that sent it.
type Message struct {
	From  *Peer
	Frame []byte
}

// Listen binds a ROUTER.
func Listen(ctx context.Context, cfg RouterConfig) (*Router, error) {
	network, address, err := splitEndpoint(cfg.Endpoint)
	if err != nil {
		return nil, err
	}
	cfg.Limits = cfg.Limits.withDefaults()
	if cfg.MaxConns <= 0 {
		cfg.MaxConns = 256
	}
	listener, err := new(net.ListenConfig).Listen(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("bind %s: %w", cfg.Endpoint, err)
	}
	r := &Router{
		cfg: cfg, log: orDiscard(cfg.Log), listener: listener,
		in:    newInbox(cfg.Limits, func(m Message) int { return len(m.Frame) }),
		peers: make(map[*Peer]struct{}),
	}
	r.closing, r.cancel = context.WithCancel(context.WithoutCancel(ctx))
	r.running.Go(r.accept)
	return r, nil
}

// Addr returns the address on which the Router listens.
func (r *Router) Addr() net.Addr { return r.listener.Addr() }

func (r *Router) accept() {
	const longest = time.Second
	for wait := time.Duration(0); ; {
		conn, err := r.listener.Accept()
		if err == nil {
			wait = 0
			r.admit(conn)
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
		// Most likely the process is out of file descriptors, which may pass.
		wait = min(max(2*wait, 5*time.Millisecond), longest)
		r.log.Error("cannot accept a connection", "error", err)
		select {
		case <-time.After(wait):
		case <-r.closing.Done():
			return
		}
	}
}

// admit accepts a connection, or closes it if there are too many.
func (r *Router) admit(conn net.Conn) {
	p := &Peer{conn: conn}
	r.mu.Lock()
	refused := len(r.peers) >= r.cfg.MaxConns || r.closing.Err() != nil
	if !refused {
		r.peers[p] = struct{}{}
	}
	r.mu.Unlock()
	if refused {
		r.log.Warn("refused a connection: too many are open", "peer", conn.RemoteAddr())
		conn.Close()
		return
	}
	r.running.Go(func() {
		err := r.serve(p)
		r.mu.Lock()
		delete(r.peers, p)
		r.mu.Unlock()
		if r.closing.Err() == nil && !errors.Is(err, io.EOF) {
			r.log.Warn("a connection ended", "peer", conn.RemoteAddr(), "error", err)
		}
	})
}

// serve reads one connection to its end.
func (r *Router) serve(p *Peer) error {
	router := role{typ: zmq4.Router, identity: zmq4.SocketIdentity(r.cfg.Identity), server: true, peers: []string{string(zmq4.Dealer)}}
	l, err := open(r.closing, p.conn, router, r.cfg.Limits)
	if err != nil {
		return err
	}
	defer close(l.ended)
	defer l.close()
	p.link = l // set before the first message from p is received
	stop := context.AfterFunc(r.closing, l.close)
	defer stop()
	for {
		frame, err := l.recv()
		if errors.Is(err, errDropped) {
			r.log.Warn("dropped a message", "peer", p.conn.RemoteAddr(), "error", err)
			continue
		}
		if err != nil {
			return err
		}
		if !r.in.put(r.closing, Message{From: p, Frame: frame}) {
			return context.Cause(r.closing)
		}
	}
}

// Recv waits for the next message of any peer. After Close the error is
// messenger.ErrClosed.
func (r *Router) Recv(ctx context.Context) (Message, error) {
	if m, ok := r.in.take(ctx, r.closing.Done()); ok {
		return m, nil
	}
	if err := ctx.Err(); err != nil {
		return Message{}, err
	}
	return Message{}, messenger.ErrClosed
}

// Send sends a message to a peer. If its connection has ended the error wraps
// messenger.ErrClosed; the message is not sent on another connection.
func (r *Router) Send(ctx context.Context, to *Peer, frame []byte) error {
	if err := to.link.send(ctx, frame); err != nil {
		return fmt.Errorf("send to %s: %w", to.conn.RemoteAddr(), err)
	}
	return nil
}

// Close stops listening, closes every connection and waits for their goroutines. Messages
// that were sent before are still delivered. It may be called more than once.
func (r *Router) Close() error {
	r.cancel()
	err := r.listener.Close()
	r.running.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
