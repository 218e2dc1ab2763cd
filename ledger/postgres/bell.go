package postgres

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// ringEvery is the interval between the notifications of all nodes together, roughly: a
// node waits that long for itself and for each node that has notified within ringLatest. A
// notification makes its receivers look for the changes of every node, so rate limiting the
// fleet as a whole delays no change, and each notification wakes all nodes. NOTIFY is sent
// apart from the changes: PostgreSQL serializes the commits of transactions that notify.
const (
	ringEvery  = 20 * time.Millisecond
	ringLatest = 400 * time.Millisecond
)

// bell is the doorbell: it tells whoever waits for events that there may be some.
// This node's own readers are woken at once, those of other nodes when the notification
// arrives. If it is lost, they poll (see maintenance).
type bell struct {
	log    *slog.Logger
	dial   func(ctx context.Context) (*pgx.Conn, error) // to the server itself, for LISTEN
	me     string                                       // to tell our own notifications
	notify func(ctx context.Context) error

	mu      sync.Mutex
	changed chan struct{}
	closed  bool
	heard   map[string]time.Time // when each other node rang last, of those that rang within ringLatest

	rung chan struct{} // a notification is to be sent
	quit context.CancelFunc
	done sync.WaitGroup
}

func newBell(dial func(ctx context.Context) (*pgx.Conn, error), log *slog.Logger) *bell {
	return &bell{log: log, dial: dial, me: newKey(), changed: make(chan struct{}), heard: map[string]time.Time{}, rung: make(chan struct{}, 1)}
}

// start listens, and rings for others by notify, until close.
func (b *bell) start(listening *pgx.Conn, notify func(ctx context.Context) error) {
	ctx, quit := context.WithCancel(context.Background())
	b.quit, b.notify = quit, notify
	b.done.Go(func() { b.listen(ctx, listening) })
	b.done.Go(func() { b.ringOthers(ctx) })
}

// ring wakes the readers on this node.
func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		close(b.changed)
		b.changed = make(chan struct{})
	}
}

// ringAll also wakes the readers on the other nodes.
func (b *bell) ringAll() {
	b.ring()
	select {
	case b.rung <- struct{}{}:
	default: // the notification that is to be sent is for this, too
	}
}

// wait is closed when the bell rings next.
func (b *bell) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changed
}

func (b *bell) close() {
	if b.quit != nil {
		b.quit()
		b.done.Wait()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		b.closed = true
		close(b.changed)
	}
}

// ringOthers sends notifications. One that cannot be sent is skipped: the others poll.
func (b *bell) ringOthers(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-b.rung:
		}
		began := time.Now()
		_ = once(ctx, b.notify)
		for rest := ringEvery; rest > 0; rest = time.Until(began.Add(b.pause())) {
			select {
			case <-ctx.Done():
				return
			case <-time.After(rest):
			}
		}
	}
}

// hear notes that another node rang.
func (b *bell) hear(node string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.heard[node] = time.Now()
	b.forget()
}

// forget drops the nodes that have not rung within ringLatest; b.mu is held.
func (b *bell) forget() {
	maps.DeleteFunc(b.heard, func(_ string, at time.Time) bool { return time.Since(at) > ringLatest })
}

// pause is how long after this node rang it rings again.
func (b *bell) pause() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.forget()
	return min(ringEvery*time.Duration(1+len(b.heard)), ringLatest)
}

// listenTime bounds the connection attempt of the listener.
const listenTime = 10 * time.Second

// connect opens the connection that listens.
func (b *bell) connect(ctx context.Context) (*pgx.Conn, error) {
	bounded, cancel := context.WithTimeout(ctx, listenTime)
	defer cancel()
	conn, err := b.dial(bounded)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Exec(bounded, queryListen); err != nil {
		closeConn(conn)
		return nil, err
	}
	return conn, nil
}

// closeConn closes a connection, whatever the server does.
func closeConn(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}

// listen rings when others do. conn is the first connection, nil for none yet.
func (b *bell) listen(ctx context.Context, conn *pgx.Conn) {
	lost := false
	for {
		if conn == nil {
			var err error
			if conn, err = b.connect(ctx); err != nil && ctx.Err() == nil && !lost {
				lost = true
				b.log.Warn("Cannot listen for changes that other nodes make; the ledger is polled meanwhile", slog.Any("error", err))
			}
			if conn != nil {
				if lost {
					lost = false
					b.log.Info("Listening for changes that other nodes make")
				}
				b.ring() // for what was missed
			}
		}
		for conn != nil {
			n, err := conn.WaitForNotification(ctx)
			if err != nil {
				closeConn(conn)
				conn = nil
			} else if n.Payload != b.me {
				b.hear(n.Payload)
				b.ring()
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(longestPause):
		}
	}
}

// Changed implements ledger.Ledger. The channel is closed, too, when the ledger is
// closed.
func (l *Ledger) Changed() <-chan struct{} { return l.bell.wait() }
