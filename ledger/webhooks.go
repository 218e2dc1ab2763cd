package ledger

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
)

// ErrNoDelivery says that there is no such message, or that it is another tenant's.
var ErrNoDelivery = fmt.Errorf("no record of this message: %w", errdefs.ErrNotFound)

// Webhooks is the part of a ledger that keeps the messages for receivers of webhooks
// until they are delivered or given up, and for some time after.
//
// # From events to messages
//
// The webhook that a job was created with (Record.Webhook) is kept for the run until
// QueueDeliveries says that its messages are complete. A consumer of events reads
// events, looks up the webhooks of their runs, and queues the messages together with
// its new cursor, in one commit: each event becomes a message once, however often a
// consumer is killed and however many nodes share the ledger.
//
// # The life of a message
//
//	QueueDeliveries ─► waiting ─ClaimDeliveries─► claimed ─SettleDelivery─► delivered | given up
//	                     ▲ ▲                        │ │                          │
//	                     │ └── SettleDelivery, or ──┘ │                          │
//	                     │     the hold is over       │                          │
//	                     └────────────────────────────┴───── Redeliver ──────────┘
//
// The messages about one job for one receiver are delivered in the order in which they
// were queued: a message is not due before those ahead of it are delivered or given up.
// A message that is delivered again on request is out of this order.
type Webhooks interface {
	// JobWebhooks returns the webhooks of those of the runs that have one and whose
	// messages are not complete.
	JobWebhooks(ctx context.Context, runs []JobRun) (map[JobRun]job.Webhook, error)

	// QueueDeliveries adds messages, drops the webhooks of the runs in complete, and
	// moves the checkpoint of a consumer of events from one cursor to another, in one
	// commit. It changes nothing and returns false where the checkpoint is another one:
	// another node has moved it, or an earlier call whose answer was lost. From is empty
	// for a consumer that has no checkpoint. A message whose ID is there already is left
	// out.
	QueueDeliveries(ctx context.Context, consumer string, from, to job.Cursor, messages []job.Delivery, complete []JobRun) (bool, error)

	// ClaimDeliveries returns up to limit messages that are due, those first that have
	// been due for longest, with their payload, and leaves out those for the receivers in
	// except. Each has one try more than before and is not due again until hold has
	// passed. Next is how long until another message is due; 0 for none.
	ClaimDeliveries(ctx context.Context, limit int, except []string, hold time.Duration) (due []job.Delivery, next time.Duration, err error)

	// SettleDelivery says what became of the given try of a message. It changes nothing
	// where the message was settled or has been tried again since.
	SettleDelivery(ctx context.Context, id string, try int, result DeliveryResult) error

	// Redeliver makes a message due at once, with all its tries before it. Tenant, where it
	// is not empty, is whose the message must be. A message that waits for one ahead of it
	// is left as it is. The error is ErrNoDelivery.
	Redeliver(ctx context.Context, id, tenant string) (job.Delivery, error)

	// Deliveries returns up to limit messages that match, the newest first and without
	// payload, from the cursor on (0 for the first), and the cursor to go on with, 0 at the
	// end.
	Deliveries(ctx context.Context, filter job.DeliveryFilter, cursor int64, limit int) ([]job.Delivery, int64, error)

	// Undelivered counts the messages that wait, by receiver, in the order of the names.
	// Those for receivers that jobs name are one, with an empty name.
	Undelivered(ctx context.Context) ([]Backlog, error)

	// ExpireDeliveries removes up to limit messages that were settled longer ago than
	// age, or that more than keep were queued after, and returns how many those were.
	ExpireDeliveries(ctx context.Context, age time.Duration, keep, limit int) (int, error)
}

// Backlog is what waits for a receiver.
type Backlog struct {
	Receiver string
	Messages int
	Oldest   time.Time // when the first of them was queued
}

// JobRun is one run of a job.
type JobRun struct {
	Job job.ID
	Run int
}

// MaxDeliveryProblem bounds a message's problem, in bytes.
const MaxDeliveryProblem = 512

// ClipProblem is a problem as ledgers keep it.
func ClipProblem(problem string) string {
	if len(problem) <= MaxDeliveryProblem {
		return problem
	}
	return strings.ToValidUTF8(problem[:MaxDeliveryProblem], "")
}

// DeliveryResult is the result of one try. State DeliveryWaiting has the message tried
// again after Pause.
type DeliveryResult struct {
	State   job.DeliveryState
	Pause   time.Duration
	Status  int
	Problem string
}
