package messengertest_test

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/messenger/messengertest"
	"github.com/iterait/shepherd/messenger/zmq"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// keeper is the smallest thing that keeps the contract: it stands between a
// runner and its connections and remembers what is not acknowledged.
type keeper struct {
	out chan []byte // to the runner

	mu      sync.Mutex
	changed chan struct{} // closed and made again at each change
	sent    job.ID        // under way, or empty
	kept    []messenger.Answer
	closed  bool
}

func (k *keeper) change(f func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f()
	close(k.changed)
	k.changed = make(chan struct{})
}

// conn is one connection to a keeper.
type conn struct {
	k        *keeper
	received map[job.ID]bool
}

func (k *keeper) connect() messenger.Conn { return &conn{k: k, received: make(map[job.ID]bool)} }

func (c *conn) Send(ctx context.Context, in messenger.Input) error {
	frame, err := messenger.EncodeInput(in)
	if err != nil {
		return err
	}
	c.k.mu.Lock()
	defer c.k.mu.Unlock()
	switch {
	case c.k.closed:
		return messenger.ErrClosed
	case c.k.sent == in.JobID || slices.ContainsFunc(c.k.kept, func(a messenger.Answer) bool { return a.JobID == in.JobID }):
		return nil
	case c.k.sent != "":
		return errors.New("another job is under way")
	case len(c.k.kept) >= messenger.MaxKept:
		return errors.New("too many answers are kept")
	}
	c.k.sent = in.JobID
	c.k.out <- frame
	return nil
}

func (c *conn) Recv(ctx context.Context) (messenger.Answer, error) {
	for {
		if err := ctx.Err(); err != nil {
			return messenger.Answer{}, err
		}
		c.k.mu.Lock()
		changed, closed := c.k.changed, c.k.closed
		for _, a := range c.k.kept {
			if !c.received[a.JobID] {
				c.received[a.JobID] = true
				c.k.mu.Unlock()
				return a, nil
			}
		}
		c.k.mu.Unlock()
		if closed {
			return messenger.Answer{}, messenger.ErrClosed
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

func (c *conn) Ack(ctx context.Context, id job.ID) error {
	c.k.change(func() {
		c.k.kept = slices.DeleteFunc(c.k.kept, func(a messenger.Answer) bool { return a.JobID == id })
	})
	delete(c.received, id)
	return nil
}

// serve carries messages between the keeper and the runner at endpoint.
func (k *keeper) serve(ctx context.Context, endpoint string) {
	defer k.change(func() { k.closed = true })
	wire, err := zmq.Dial(ctx, zmq.Config{Endpoint: endpoint})
	if err != nil {
		return
	}
	defer wire.Close()
	var writing sync.WaitGroup
	writing.Go(func() {
		for {
			select {
			case frame := <-k.out:
				_ = wire.Send(ctx, frame)
			case <-wire.Done():
				return
			case <-ctx.Done():
				return
			}
		}
	})
	for {
		frame, err := wire.Recv(ctx)
		if err != nil {
			break
		}
		if a, err := messenger.DecodeAnswer(frame); err == nil {
			k.change(func() {
				if a.JobID == k.sent {
					k.sent, k.kept = "", append(k.kept, a)
				}
			})
		}
	}
	wire.Close()
	writing.Wait()
}

// act is a runner in this process.
func act(ctx context.Context, endpoint string, bind <-chan struct{}) error {
	select {
	case <-bind:
	case <-ctx.Done():
		return nil
	}
	router, err := zmq.Listen(ctx, zmq.RouterConfig{Endpoint: endpoint, Identity: "runner"})
	if err != nil {
		return err
	}
	defer router.Close()
	var actor messengertest.Actor
	for {
		m, err := router.Recv(ctx)
		if err != nil {
			return nil // the test has ended
		}
		answers, end, err := actor.Act(ctx, m.Frame)
		if err != nil {
			return err
		}
		for _, answer := range answers {
			if err := router.Send(ctx, m.From, answer); err != nil {
				return err
			}
		}
		if end {
			return nil
		}
	}
}

// The suite passes with a connection that keeps the contract, over the wire.
func TestSuite(t *testing.T) {
	messengertest.Run(t, func(t *testing.T, bind <-chan struct{}) messengertest.Bench {
		endpoint := "tcp://127.0.0.1:" + strconv.Itoa(testenv.FreePort(t))
		k := &keeper{out: make(chan []byte, 1), changed: make(chan struct{})}
		ctx, cancel := context.WithCancel(context.Background())
		var running sync.WaitGroup
		running.Go(func() { k.serve(ctx, endpoint) })
		running.Go(func() {
			if err := act(ctx, endpoint, bind); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		})
		t.Cleanup(func() {
			cancel()
			running.Wait()
		})
		return messengertest.Bench{Conn: k.connect(), Reconnect: func(*testing.T) messenger.Conn { return k.connect() }}
	})
}
