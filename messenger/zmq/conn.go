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

// Config configures a connection to a runner.
type Config struct {
	// Endpoint is tcp://HOST:PORT or ipc://PATH.
	Endpoint string
	// Dial makes the network connection, possibly in the runner's network namespace.
	// The default is net.Dialer's.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Limits are the limits of the runner's messages.
	Limits Limits
	// Log receives dropped messages and Dial's retries; nil discards them.
	Log *slog.Logger
}

// Conn is a DEALER's connection to one runner. It does not reconnect; Dial makes another
// one. Its methods may be called from several goroutines.
type Conn struct {
	link *link
	in   *inbox[[]byte]
	log  *slog.Logger

	closing context.Context // ended by Close; bounds the reader
	cancel  context.CancelFunc
	once    sync.Once
	err     error // why the connection ended; set before link.ended is closed
	reader  sync.WaitGroup
}

// The first retries are fast, because the time until a runner is connected is part of every
// change of model.
const (
	firstRetry = 2 * time.Millisecond
	lastRetry  = 100 * time.Millisecond
)

// The DEALER has no identity: a ROUTER silently ignores a peer whose identity it has seen
// before, and assigns one to a peer without.
var dealer = role{typ: zmq4.Dealer, peers: []string{string(zmq4.Router)}}

// Dial connects to a runner, which may bind long after the call: it retries until the
// handshake is done or ctx ends. If the peer does not speak the protocol, it returns at once
// with an error that wraps ErrProtocol.
func Dial(ctx context.Context, cfg Config) (*Conn, error) {
	network, address, err := splitEndpoint(cfg.Endpoint)
	if err != nil {
		return nil, err
	}
	if cfg.Dial == nil {
		cfg.Dial = new(net.Dialer).DialContext
	}
	log := orDiscard(cfg.Log)
	limits := cfg.Limits.withDefaults()
	var last error // of the attempts that did not fail because ctx ended
	for wait := firstRetry; ; wait = min(wait*5/4+time.Millisecond, lastRetry) {
		l, err := connect(ctx, cfg.Dial, network, address, limits)
		if err == nil {
			return newConn(l, limits, log), nil
		}
		if last == nil || !over(ctx) {
			last = err
		}
		if errors.Is(err, ErrProtocol) {
			return nil, fmt.Errorf("connect to the runner at %s: %w; is another program listening there?", cfg.Endpoint, err)
		}
		if isTimeout(err) && ctx.Err() == nil {
			log.Warn("the runner does not respond; trying again", "endpoint", cfg.Endpoint, "error", err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("connect to the runner at %s: %w (last attempt: %w)", cfg.Endpoint, context.Cause(ctx), last)
		case <-time.After(wait):
		}
	}
}

func connect(ctx context.Context, dial func(context.Context, string, string) (net.Conn, error), network, address string, limits Limits) (*link, error) {
	conn, err := dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	// A connection to a loopback port that is not bound can become a TCP self-connect.
	// It is reset, because after an orderly close the runner could not bind the port for
	// a minute.
	if network == "tcp" && conn.LocalAddr().String() == conn.RemoteAddr().String() {
		if c, ok := conn.(*net.TCPConn); ok {
			_ = c.SetLinger(0)
		}
		conn.Close()
		return nil, errors.New("nothing listens there")
	}
	return open(ctx, conn, dealer, limits)
}

// over reports whether ctx has ended or its deadline has passed: a dialer that observes the
// deadline may fail before ctx has ended.
func over(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && !time.Now().Before(deadline)
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

func newConn(l *link, limits Limits, log *slog.Logger) *Conn {
	c := &Conn{link: l, in: newInbox(limits, func(frame []byte) int { return len(frame) }), log: log}
	c.closing, c.cancel = context.WithCancel(context.Background())
	c.reader.Go(c.read)
	return c
}

// read reads messages as long as the connection is open, even if Recv is not called, so that
// heartbeats are answered and the end is noticed.
func (c *Conn) read() {
	for {
		frame, err := c.link.recv()
		if errors.Is(err, errDropped) {
			c.log.Warn("dropped a message from the runner", "error", err)
			continue
		}
		if err != nil {
			c.end(err)
			return
		}
		if !c.in.put(c.closing, frame) {
			return // Close was called
		}
	}
}

// end records why the connection ended; later calls have no effect.
func (c *Conn) end(err error) {
	c.once.Do(func() {
		if errors.Is(err, io.EOF) {
			err = errors.New("the runner closed it")
		}
		c.err = fmt.Errorf("%w: %w", messenger.ErrClosed, err)
		c.link.close()
		close(c.link.ended)
	})
}

// Send sends a message to the runner. Nil means that it was written to the connection, not
// that it arrived; only an answer shows that. After the end of the connection the error
// wraps messenger.ErrClosed.
func (c *Conn) Send(ctx context.Context, frame []byte) error {
	select {
	case <-c.link.ended:
		return c.err
	default:
	}
	if err := c.link.send(ctx, frame); err != nil {
		return fmt.Errorf("send to the runner: %w", err)
	}
	return nil
}

// Recv waits for the runner's next message. Messages that arrived before the end of the
// connection are still received after it; then the error wraps messenger.ErrClosed.
func (c *Conn) Recv(ctx context.Context) ([]byte, error) {
	frame, ok := c.in.take(ctx, c.link.ended)
	if ok {
		return frame, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return nil, c.err
}

// Done is closed when the connection has ended.
func (c *Conn) Done() <-chan struct{} { return c.link.ended }

// Err returns why the connection ended; it wraps messenger.ErrClosed. It is nil before Done
// is closed.
func (c *Conn) Err() error {
	select {
	case <-c.link.ended:
		return c.err
	default:
		return nil
	}
}

// Close ends the connection and waits for its goroutine. It may be called more than once.
func (c *Conn) Close() error {
	c.end(errors.New("closed"))
	c.cancel()
	c.reader.Wait()
	return nil
}
