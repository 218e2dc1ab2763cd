// Package ledger is the durable record of every job: what was acknowledged to
// a client is in the ledger, and the ledger is the truth about a job for as
// long as it holds its record.
//
// # Terms
//
// A record is queued until a slot claims it. A slot is one sheep of one node (a
// node is one daemon). A claim gives its holder a token; every later change of
// the claimed record needs that token, so a holder that lost its claim (it was
// taken for dead, or handed the job back) can no longer change the job: it gets
// ErrFenced. Tokens only grow; a token is never given out twice.
//
// A claim is made ahead or to run. A job claimed ahead is held, but stays
// queued to everyone outside: its holder only prepares it. Start turns such a
// claim into a running one. A running claim is in state processing.
//
//	          Create
//	            │
//	            ▼      Claim            Finish
//	┌───────► queued ─────────► processing ─────► done | failed | cancelled
//	│           │ └─Claim ahead─┐  ▲ │                   │
//	│           │               ▼  │ │                   │
//	│           │             queued │ Release           │ Create of the
//	├───────────┼── Release ─ (held) │                   │ same id: next run
//	│           │                    │                   │
//	└───────────┼────────────────────┘                   │
//	▲           └── Cancel ──────────────► cancelled     │
//	└────────────────────────────────────────────────────┘
//
// # Promises
//
// Every method that changes something has made the change durable (it survives
// a power cut) when it returns nil. Calls may come from any number of
// goroutines; an implementation groups them into few commits. A method that
// returns an error has changed nothing, except that after an error of class
// errdefs.ErrUnavailable or errdefs.ErrResourceExhausted, or a context's end, the
// change may or may not have been made.
//
// Records in a final state are kept for a bounded time and number (see each
// implementation's Config) and then expire; a record that is not final never
// does.
//
// A ledger shared by several nodes may take the claims of a node that it has
// not heard from for a while and put their jobs back; the node then gets
// ErrFenced.
//
// # Scheduling order
//
// Claim picks among the queued, unheld records that the slot may run: those
// addressed to its sheep and those addressed to none. They are ordered by
// priority, higher first; then those whose model the slot has loaded before
// others; then by age. Choosing a loaded model lets a younger job overtake an
// older one of the same priority: that happens to each job at most
// Config.MaxOvertakes times, counting only claims by slots that could have run
// the overtaken job; after that it goes first.
package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
)

// Errors of a ledger. They wrap errdefs classes; anything else that a ledger
// returns is of class errdefs.ErrUnavailable (try again),
// errdefs.ErrResourceExhausted (there is no room; try again when there is) or
// errdefs.ErrInternal.
var (
	ErrExists   = fmt.Errorf("a job with this id is not finished yet: %w", errdefs.ErrAlreadyExists)
	ErrOthers   = fmt.Errorf("a job with this id is another tenant's: %w", errdefs.ErrAlreadyExists)
	ErrNotFound = fmt.Errorf("no record of this job: %w", errdefs.ErrNotFound)
	ErrFenced   = fmt.Errorf("the claim on this job is no longer held: %w", errdefs.ErrAborted)
	ErrFinal    = fmt.Errorf("the job has ended already: %w", errdefs.ErrFailedPrecondition)
	// ErrEventsGone says that Watch cannot go on gap-free from the asked
	// sequence number: the caller reads what it needs anew and watches from the
	// present.
	ErrEventsGone = errors.New("events after this sequence number are no longer kept")
)

// Token fences the changes of one claim.
type Token int64

// Slot is who claims.
type Slot struct {
	Node  string
	Sheep string
	// Loaded is the model the sheep has loaded, zero for none.
	Loaded job.Model
	// Ahead claims without starting: the record stays queued, held by the slot.
	Ahead bool
	// Only, when not empty, restricts the claim to this job.
	Only job.ID
	// Addressed restricts the claim to jobs addressed to this sheep.
	Addressed bool
}

// Claim is a claimed record and the right to change it.
type Claim struct {
	job.Record
	Token Token
}

// Outcome is how a run ended. State is final; Failure is set exactly when it is
// job.Failed. At becomes FinishedAt; zero means now. Usage is kept with the
// record, GPUTime by the microsecond.
type Outcome struct {
	State   job.State
	Failure *job.Failure
	At      time.Time
	Usage   job.Usage
}

// Filter narrows List. The zero Filter matches every record.
type Filter struct {
	States []job.State
	Sheep  string // addressed sheep
	Model  job.Model
	Tenant string
}

// Event says that a record changed. Seq counts all changes of a ledger from 1,
// without gaps as far as one watcher is concerned.
type Event struct {
	Seq    int64
	Record job.Record
}

// Waiting is the jobs of one kind that can be claimed: queued and held by nobody.
type Waiting struct {
	Sheep    string // that they are addressed to, empty for any
	Priority int
	Jobs     int
	Oldest   time.Time // when the oldest was submitted
	// Rest says that these are all those not listed before, of whatever sheep and
	// priority. The oldest of them is not known.
	Rest bool
}

// Counts is how many records are in each state.
type Counts map[job.State]int

// Ledger keeps the records. See the package comment for its promises.
type Ledger interface {
	// Create adds a queued record: of rec it takes ID, Model, Sheep,
	// Priority, Trace and Tenant, and it returns the record as kept (Seq, Run,
	// EnqueuedAt). Where the id has a record in a final state, that one is replaced
	// and Run counts on; where it has one that is not final, the answer is
	// ErrExists. A record keeps its tenant: where rec has another one, the answer is
	// ErrOthers, and where it has none, the next run is that tenant's, too.
	Create(ctx context.Context, rec job.Record) (job.Record, error)

	// Claim gives the slot the next job by the scheduling order, or nil when
	// there is none for it. Attempt has been counted up. A claim that its caller
	// did not get because ctx ended is put back unspent, by itself and soon.
	Claim(ctx context.Context, slot Slot) (*Claim, error)

	// Start turns a claim made ahead into a running one. Starting a running one
	// changes nothing. It answers ErrFenced when the claim is lost; a job that
	// was cancelled while held is lost to its holder.
	Start(ctx context.Context, id job.ID, token Token) (job.Record, error)

	// Finish ends the job, once; one claimed ahead and never started, too, as
	// when its inputs cannot be had. A holder that lost the claim gets ErrFenced,
	// whatever became of the record.
	Finish(ctx context.Context, id job.ID, token Token, outcome Outcome) (job.Record, error)

	// Release puts the job back in its old place in the queue. A job handed
	// back unspent has not used up its attempt.
	Release(ctx context.Context, id job.ID, token Token, unspent bool) error

	// Cancel ends a job that is queued, held ahead or not, as cancelled; its
	// holder is fenced. A processing job is ended the same way: its holder finds
	// out by ErrFenced or by Watch. It answers ErrNotFound or ErrFinal.
	Cancel(ctx context.Context, id job.ID) (job.Record, error)

	// Get returns a record, or ErrNotFound.
	Get(ctx context.Context, id job.ID) (job.Record, error)

	// Held returns the claims of a node with their tokens, oldest first: what a
	// daemon that starts again has to take up or release.
	Held(ctx context.Context, node string) ([]Claim, error)

	// List returns up to limit records that match, by Seq ascending from the
	// cursor on (0 for the first), and the cursor to go on with, 0 at the end.
	List(ctx context.Context, filter Filter, cursor int64, limit int) ([]job.Record, int64, error)

	// Count returns how many records are in each state. It is cheap however
	// many there are.
	Count(ctx context.Context) (Counts, error)

	// Waiting returns the jobs that can be claimed by sheep and priority, at most
	// as many kinds as asked for: those of the highest priorities, and by sheep
	// among them, and what is left as one. It is cheap however many jobs there are.
	Waiting(ctx context.Context, most int) ([]Waiting, error)

	// Watch sends the events after the given sequence number, in order and
	// without gaps, until ctx ends, and then closes the channel. A negative
	// number means from now on: events of changes that begin after Watch
	// returned are sent. A watcher that falls behind further than the kept
	// events is cut off: its channel is closed early. It answers ErrEventsGone
	// for a number too old.
	Watch(ctx context.Context, after int64) (<-chan Event, error)

	// Ping answers nil when the ledger can make changes durable right now.
	Ping(ctx context.Context) error

	// Close ends watches and waits for running calls.
	Close() error
}
