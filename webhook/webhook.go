// Package webhook sends messages about jobs to receivers, as HTTP requests in the format of
// Standard Webhooks (https://www.standardwebhooks.com).
//
//	ledger's events ─► reader, one per consumer ─► messages in the ledger ─► sender ─► receivers
//
// A consumer is a configured receiver, or all receivers that jobs name. Each consumer has a
// cursor in the ledger, which moves in the same commit that queues its messages (see
// ledger.Webhooks): no message is lost or queued twice after a crash, or when several nodes
// that share the ledger run a Dispatcher. A message is delivered at least once, with the same
// id at each try. Messages about one job are delivered to one receiver in order.
//
// The message about the end of a group is made from the event of the job that ended last: at
// each end of one of its jobs the reader looks whether all have ended. If several events find
// that, their messages have the same id.
//
// Clients choose the URLs. A request goes to no address of a private or special network, nor
// to one of this machine, unless it is allowed; this is checked when the connection is made,
// after the name was resolved. Redirects are not followed, no proxy is used, and only the
// status of a response is kept.
package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

const (
	// giveUpAfter is how long a message is tried.
	giveUpAfter = 24 * time.Hour
	// firstPause is the pause after the first try. Each further pause is twice as long, up
	// to longestPause.
	firstPause   = 5 * time.Second
	longestPause = time.Hour
	// tryTime bounds one try. A message is claimed for the time hold; after that it is tried
	// again.
	tryTime = 15 * time.Second
	hold    = 4 * tryTime
	// senders bounds the tries under way, and claimBatch how many messages are claimed at a
	// time. A receiver with that many tries under way gets no more.
	senders    = 32
	claimBatch = 4
	// keepFor and keepNumber bound the messages that are kept after they are settled.
	keepFor     = 7 * 24 * time.Hour
	keepNumber  = 100_000
	expireBatch = 500
	expireEvery = time.Hour
	// checkpointEvery is how often a cursor is stored while no event makes a message.
	checkpointEvery = time.Minute
	// lookEvery is how often a node looks for messages that another node has left.
	lookEvery  = time.Minute
	eventBatch = 256
)

// Ledger is the part of a ledger that the Dispatcher uses.
type Ledger interface {
	ledger.Webhooks
	Events(ctx context.Context, after job.Cursor, filter ledger.EventFilter, limit int) ([]job.Event, job.Cursor, error)
	Now(ctx context.Context) (job.Cursor, error)
	Changed() <-chan struct{}
	Checkpoint(ctx context.Context, consumer string) (job.Cursor, error)
	List(ctx context.Context, filter ledger.Filter, cursor int64, limit int) ([]job.Record, int64, error)
}

// Receiver is a configured receiver.
type Receiver struct {
	Name string
	URL  string
	// Secrets is called before each try. The message is signed with each of the secrets, so
	// that a secret can be replaced.
	Secrets func() ([]Secret, error)
	// Events are the kinds that are sent; empty stands for job.EventEnded.
	Events []job.EventKind
	// Tenant is the tenant whose jobs the messages are about, empty for all.
	Tenant string
}

// wants reports whether the receiver subscribes to the event.
func (r Receiver) wants(e job.Event) bool {
	if len(r.Events) == 0 {
		return e.Kind == job.EventEnded
	}
	for _, kind := range r.Events {
		if kind == e.Kind {
			return true
		}
	}
	return false
}

// Config configures a Dispatcher. Ledger, Event and Log are required.
type Config struct {
	Ledger    Ledger
	Receivers []Receiver
	// JobSecrets returns the secrets for the receivers that jobs of a tenant name; nil if
	// jobs may not name receivers.
	JobSecrets func(tenant string) ([]Secret, error)
	// Event returns an event in the format of the API.
	Event func(job.Event) (json.RawMessage, error)
	// Allow are private or special networks, or networks of this machine, to which requests
	// may be sent.
	Allow []netip.Prefix
	// Shared says that other nodes use the ledger, too.
	Shared bool
	// UserAgent names the daemon in requests.
	UserAgent string
	// Tried, if not nil, is called after each try of a message, for metrics, with the name
	// of the receiver, empty for one that a job names, and the new state of the message.
	Tried func(receiver string, state job.DeliveryState)
	// Transport sends the requests; nil stands for one that follows the rules above.
	Transport http.RoundTripper
	Log       *slog.Logger
}

// Dispatcher sends messages. Its methods may be called from any goroutine.
type Dispatcher struct {
	cfg       Config
	receivers map[string]Receiver
	client    *http.Client
	wake      chan struct{} // has a value if there may be a message to send

	mu      sync.Mutex
	stop    context.CancelFunc // nil before Start
	stopped bool
	running sync.WaitGroup
}

// New creates a Dispatcher. It does nothing before Start.
func New(cfg Config) *Dispatcher {
	d := &Dispatcher{cfg: cfg, receivers: make(map[string]Receiver), wake: make(chan struct{}, 1)}
	for _, r := range cfg.Receivers {
		d.receivers[r.Name] = r
	}
	transport := cfg.Transport
	if transport == nil {
		transport = newTransport(cfg.Allow)
	}
	d.client = &http.Client{
		Transport: transport, Timeout: tryTime,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return d
}

// Start starts to read events and to send messages. A new receiver gets messages about events
// from now on.
func (d *Dispatcher) Start() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stop != nil || d.stopped {
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	d.stop = stop
	for _, r := range d.cfg.Receivers {
		d.running.Go(func() { d.newReader(receiverConsumer(r, d.cfg.Event)).run(ctx) })
	}
	if d.cfg.JobSecrets != nil {
		d.running.Go(func() { d.newReader(jobsConsumer(d.cfg.Ledger, d.cfg.Event)).run(ctx) })
	}
	d.running.Go(func() { d.send(ctx) })
	d.running.Go(func() { d.expire(ctx) })
}

// Stop stops the goroutines of Start and waits for them. Tries under way are cancelled; the
// next Dispatcher tries their messages again.
func (d *Dispatcher) Stop() {
	d.mu.Lock()
	d.stopped = true
	if d.stop != nil {
		d.stop()
	}
	d.mu.Unlock()
	d.running.Wait()
	d.client.CloseIdleConnections()
}

// Deliveries lists messages, as ledger.Webhooks does.
func (d *Dispatcher) Deliveries(ctx context.Context, filter job.DeliveryFilter, cursor int64, limit int) ([]job.Delivery, int64, error) {
	return d.cfg.Ledger.Deliveries(ctx, filter, cursor, limit)
}

// Redeliver queues a message to be sent again, at once. The error is job.ErrNoMessage.
func (d *Dispatcher) Redeliver(ctx context.Context, id, tenant string) (job.Delivery, error) {
	again, err := d.cfg.Ledger.Redeliver(ctx, id, tenant)
	if errors.Is(err, ledger.ErrNoDelivery) {
		return job.Delivery{}, job.ErrNoMessage
	}
	if err == nil {
		d.nudge()
	}
	return again, err
}

// JobSecret returns the text of the secret for the receivers that jobs of a tenant name;
// empty if jobs may not name receivers.
func (d *Dispatcher) JobSecret(tenant string) (string, error) {
	if d.cfg.JobSecrets == nil {
		return "", nil
	}
	secrets, err := d.cfg.JobSecrets(tenant)
	if err != nil {
		return "", fmt.Errorf("read the secret for webhooks of jobs: %w", err)
	}
	return secrets[0].Text(), nil
}

// nudge wakes the sender to look for messages that are due.
func (d *Dispatcher) nudge() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// expire removes expired messages from time to time.
func (d *Dispatcher) expire(ctx context.Context) {
	ticker := time.NewTicker(expireEvery)
	defer ticker.Stop()
	for {
		for {
			gone, err := d.cfg.Ledger.ExpireDeliveries(ctx, keepFor, keepNumber, expireBatch)
			if err != nil && ctx.Err() == nil {
				d.cfg.Log.Warn("Cannot remove expired messages for receivers of webhooks; retrying", "error", err)
			}
			if err != nil || gone < expireBatch {
				break
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// pause waits. It returns false if ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
