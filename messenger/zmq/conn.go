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

// Config says where a runner listens and how it is reached.
type Config struct {
	// Endpoint is tcp://HOST:PORT or ipc://PATH.
	Endpoint string
	// Dial connects to the runner; it may enter the runner's network namespace
	// to do so. The default dials from here.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Limits bound what the runner may send.
	Limits Limits
	// Log is told what is dropped and what Dial waits for; nil discards it.
	Log *slog.Logger
}

// Conn is a DEALER's connection to one runner, from the runner's bind to the
// end of either. It is not made again: whoever wants another calls Dial. Its
// methods may be called from several goroutines.
type Conn struct {
	link *link
	in   *inbox[[]byte]
	log  *slog.Logger

	closing context.Context // ended by Close; bounds the reader
	cancel  context.CancelFunc
	once    sync.Once
	err     error // why it ended; set before link.ended is closed
	reader  sync.WaitGroup
}

// The first retries follow each other fast, because how soon a runner is
// noticed counts for every change of model.
const (
	firstRetry = 2 * time.Millisecond
	lastRetry  = 100 * time.Millisecond
)

// A DEALER has no identity of its own: a ROUTER silently ignores one that it
// has seen before, and names a peer without one itself.
var dealer = role{typ: zmq4.Dealer, peers: []string{string(zmq4.Router)}}

// Dial connects to a runner, which may bind long after the call: it tries again
// until the handshake is done or ctx ends. A peer that is there but does not
// speak the protocol is an error at once, which wraps ErrProtocol.
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
	var last error // of the attempts that ctx did not cut short
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
	// A loopback port that nobody has bound can, by chance, be connected to
	// itself. It is reset, for an orderly close would keep the runner from
	// binding it for a minute.
	if network == "tcp" && conn.LocalAddr().String() == conn.RemoteAddr().String() {
		if c, ok := conn.(*net.TCPConn); ok {
			_ = c.SetLinger(0)
		}
		conn.Close()
		return nil, errors.New("nothing listens there")
	}
	return open(ctx, conn, dealer, limits)
}

// over reports whether ctx has ended, or is about to: a dialer that heeds its
// deadline may fail before ctx says so.
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

// read takes messages off the wire for as long as the connection lives, asked
// for or not, so that heartbeats are answered and the end is noticed.
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
			return // closed, and so ended
		}
	}
}

// end records why the connection ended; the first reason stands.
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

// Send puts a message on its way to the runner. Nil says that it left this
// process, not that it arrived: only an answer says that. After the end of the
// connection the error wraps messenger.ErrClosed.
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

// Recv waits for the runner's next message. Messages that came before the end
// of the connection are received after it, too; then the error wraps
// messenger.ErrClosed.
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

// Err says why the connection ended; it wraps messenger.ErrClosed. It is nil
// before Done is closed.
func (c *Conn) Err() error {
	select {
	case <-c.link.ended:
		return c.err
	default:
		return nil
	}
}

// Close ends the connection and returns when nothing of it is left. It may be
// called more than once.
func (c *Conn) Close() error {
	c.end(errors.New("closed"))
	c.cancel()
	c.reader.Wait()
	return nil
}
