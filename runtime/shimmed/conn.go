package shimmed

import (
	"cmp"
	"context"
	"errors"
	"sync"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/shim"
)

// conn is the connection of one Run: the answers of earlier runners that Recover found,
// then the connection of the Run's own runner.
type conn struct {
	handle   *shim.Handle
	dataRoot string
	settled  chan struct{} // closed when Run is done with it

	mu      sync.Mutex
	earlier []*endedLife
	first   []messenger.Answer // of earlier, not returned by Recv yet
	own     *endedLife         // set when the runner has ended
}

var (
	_ messenger.Conn        = (*conn)(nil)
	_ messenger.EventSource = (*conn)(nil)
	_ messenger.Canceller   = (*conn)(nil)
)

func newConn(h *shim.Handle, dataRoot string, earlier []*endedLife) *conn {
	c := &conn{handle: h, dataRoot: dataRoot, earlier: earlier, settled: make(chan struct{})}
	for _, r := range earlier {
		c.first = append(c.first, r.answers()...)
	}
	return c
}

// settle records that the runner has ended; r is its life, or nil.
func (c *conn) settle(r *endedLife) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.settled:
	default:
		c.own = r
		close(c.settled)
	}
}

// Send gives a job to the runner, with the sheep's data root if the job has none.
func (c *conn) Send(ctx context.Context, in messenger.Input) error {
	in.IODataRoot = cmp.Or(in.IODataRoot, c.dataRoot)
	return c.handle.Send(ctx, in)
}

func (c *conn) Recv(ctx context.Context) (messenger.Answer, error) {
	c.mu.Lock()
	if len(c.first) > 0 {
		defer c.mu.Unlock()
		a := c.first[0]
		c.first = c.first[1:]
		return a, nil
	}
	c.mu.Unlock()
	return c.handle.Recv(ctx)
}

// RecvEvent waits for an event of the runner. See messenger.EventSource.
func (c *conn) RecvEvent(ctx context.Context) (messenger.Event, error) {
	return c.handle.RecvEvent(ctx)
}

// Cancel asks the runner to cancel a job. See messenger.Canceller.
func (c *conn) Cancel(ctx context.Context, id job.ID) error { return c.handle.Cancel(ctx, id) }

// Ack acknowledges an answer. It also works after the runner's end: the answer is then in
// the life's directory.
func (c *conn) Ack(ctx context.Context, id job.ID) error {
	for _, r := range c.earlier {
		if ok, err := r.ack(id); ok {
			return err
		}
	}
	err := c.handle.Ack(ctx, id)
	if !errors.Is(err, messenger.ErrClosed) {
		return err
	}
	select {
	case <-c.settled:
	case <-ctx.Done():
		return ctx.Err()
	}
	c.mu.Lock()
	own := c.own
	c.mu.Unlock()
	if own == nil {
		return messenger.ErrClosed
	}
	if ok, err := own.ack(id); ok {
		return err
	}
	return messenger.ErrClosed
}

// closedConn is the connection before the first Run.
type closedConn struct{}

func (closedConn) Send(context.Context, messenger.Input) error { return messenger.ErrClosed }
func (closedConn) Recv(context.Context) (messenger.Answer, error) {
	return messenger.Answer{}, messenger.ErrClosed
}
func (closedConn) Ack(context.Context, job.ID) error { return messenger.ErrClosed }
