// Package webhook tells receivers of what happens to jobs, by HTTP requests in the
// form of Standard Webhooks (https://www.standardwebhooks.com).
//
//	ledger's events ─► reader, one per consumer ─► messages in the ledger ─► sender ─► receivers
//
// A consumer is a configured receiver, or all that jobs name. Each has a cursor in the
// ledger, which moves in the same commit that queues its messages (see
// ledger.Webhooks): nothing is lost or made twice by a crash, or by several nodes that
// share the ledger and all run a Dispatcher. A message is delivered at least once, with
// the same id at each try, and those about one job to one receiver in order.
//
// The end of a group is told by the event of a job that ended last: who reads the end of
// one of its jobs looks whether all have ended. Should several events find that, their
// messages have one id.
//
// The URLs are others' to choose. A request goes to no address of a private or special
// network, nor to one of this machine, unless it is allowed; that is checked when the
// connection is made, after the name was looked up. Redirects are not followed, no
// proxy is used, and nothing of an answer but its status is kept.
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
	// giveUpAfter is for how long a message is tried.
	giveUpAfter = 24 * time.Hour
	// firstPause is that after the first try; each is twice as long, up to longestPause.
	firstPause   = 5 * time.Second
	longestPause = time.Hour
	// tryTime bounds one try, and hold is after what time a try is taken for lost.
	tryTime = 15 * time.Second
	hold    = 4 * tryTime
	// senders bounds the tries at a time, and claimBatch how many messages are claimed
	// at a time. A receiver with that many tries under way gets no more.
	senders    = 32
	claimBatch = 4
	// keepFor and keepNumber bound the messages that are kept after they were settled.
	keepFor     = 7 * 24 * time.Hour
	keepNumber  = 100_000
	expireBatch = 500
	expireEvery = time.Hour
	// checkpointEvery is how often a cursor is kept that has passed no event of interest.
	checkpointEvery = time.Minute
	// lookEvery is how often a node looks for messages that another one has left.
	lookEvery  = time.Minute
	eventBatch = 256
)

// Ledger is what the Dispatcher needs of a ledger.
type Ledger interface {
	ledger.Webhooks
	Events(ctx context.Context, after job.Cursor, filter ledger.EventFilter, limit int) ([]job.Event, job.Cursor, error)
	Now(ctx context.Context) (job.Cursor, error)
	Changed() <-chan struct{}
	Checkpoint(ctx context.Context, consumer string) (job.Cursor, error)
	List(ctx context.Context, filter ledger.Filter, cursor int64, limit int) ([]job.Record, int64, error)
}

// Receiver is a configured one.
type Receiver struct {
	Name string
	URL  string
	// Secrets are read before each try: the message is signed with each of them, so that
	// a secret can be replaced by another.
	Secrets func() ([]Secret, error)
	// Events are the kinds that are sent; empty stands for job.EventEnded.
	Events []job.EventKind
	// Tenant is whose jobs are told of, empty for all.
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

// Config is what a Dispatcher is made of. Ledger, Event and Log are required.
type Config struct {
	Ledger    Ledger
	Receivers []Receiver
	// JobSecrets are those for the receivers that jobs of a tenant name; nil where jobs
	// may name none.
	JobSecrets func(tenant string) ([]Secret, error)
	// Event is an event as the API shows it.
	Event func(job.Event) (json.RawMessage, error)
	// Allow are networks that requests may go to although they are private, special or
	// this machine's.
	Allow []netip.Prefix
	// Shared says that other nodes use the ledger, too.
	Shared bool
	// UserAgent names the daemon in requests.
	UserAgent string
	// Tried, if not nil, is called after each try of a message, for metrics, with the name
	// of the receiver, empty for one that a job names, and what became of the message.
	Tried func(receiver string, state job.DeliveryState)
	// Transport sends the requests; nil stands for one with the rules of the package.
	Transport http.RoundTripper
	Log       *slog.Logger
}

// Dispatcher sends messages. Its methods may be called from any goroutine.
type Dispatcher struct {
	cfg       Config
	receivers map[string]Receiver
	client    *http.Client
	wake      chan struct{} // holds one where there may be a message to send

	mu      sync.Mutex
	stop    context.CancelFunc // nil before Start
	stopped bool
	running sync.WaitGroup
}

// New makes a Dispatcher, which does nothing before Start.
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

// Start begins to read events and to send messages. A receiver that was not there before
// is told of events from now on.
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

// Stop ends what Start began. Tries that are under way are broken off; their messages
// are tried again by the next Dispatcher.
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

// Redeliver sends a message again, and soon. The error is job.ErrNoMessage.
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

// JobSecret is the text of the secret for the receivers that jobs of a tenant name; empty
// where jobs may name none.
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

// nudge has messages looked for that are due.
func (d *Dispatcher) nudge() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// expire removes messages that are no longer kept, now and then.
func (d *Dispatcher) expire(ctx context.Context) {
	ticker := time.NewTicker(expireEvery)
	defer ticker.Stop()
	for {
		for {
			gone, err := d.cfg.Ledger.ExpireDeliveries(ctx, keepFor, keepNumber, expireBatch)
			if err != nil && ctx.Err() == nil {
				d.cfg.Log.Warn("Messages for receivers of webhooks that are no longer kept cannot be removed; it is tried again", "error", err)
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

// pause waits, and returns false where ctx ended.
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
