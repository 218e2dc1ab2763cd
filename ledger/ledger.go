// Package ledger is the durable record of every job: what was acknowledged to
// a client is in the ledger, and the ledger is authoritative for a job as long
// as it keeps the job's record.
//
// # Terms
//
// A node is one daemon. It joins the ledger and holds a lease for as long as it
// is alive; a slot is one sheep of one node. A record is queued until a slot
// claims it. A claim begins an attempt and gives its holder a token. Every later
// change of the claimed record needs that token: a holder that lost its claim
// gets ErrFenced and cannot change the job any more. Tokens only grow; no token
// is used twice.
//
// A claim is made ahead or to run. A job claimed ahead is held, but stays queued
// to everyone outside: its holder only prepares it. Start turns such a claim
// into a running one. A running claim is in state processing.
//
//	          Create
//	            │
//	            ▼      Claim            Finish
//	┌───────► queued ─────────► processing ─────► done | failed | cancelled
//	│           │ └─Claim ahead─┐  ▲ │                   │
//	│           │               ▼  │ │ Release           │ Create of the
//	├───────────┼── Release ─ queued │                   │ same id: next run
//	│           │             (held) │                   │
//	├───────────┼────────────────────┘                   │
//	│           └── Cancel, or the time to wait is over ─► cancelled | failed
//	└────────────────────────────────────────────────────┘
//
// # Attempts
//
// An attempt ends by Finish or Release, with a cause, and stays with the job's
// record as long as that is kept; of very many attempts only the last are kept
// (see each implementation's Config). It is spent or not: Record.Spent counts
// the spent ones of the run. What that means for the job is the caller's
// decision; the ledger only counts.
//
// # Times
//
// A job with a NotBefore in the future is queued and cannot be claimed; when the
// time has come the ledger itself makes it claimable and records an event of
// kind due. If nobody holds a job when its WaitUntil or its Deadline passes, the
// ledger fails it; if it is held, that is up to its holder until it is released.
// WaitUntil counts only until the first start of the run, which sets it to zero.
// Times within one record never go back, even if the clock does.
//
// # After
//
// A job may be after others, whose outputs it needs (Record.After). It is queued and
// cannot be claimed while one of them is not done: it is Blocked. When the last of them
// is done the ledger itself makes it claimable, soon, and records an event of kind
// due, unless it also waits for a time. When one of them fails or is cancelled, it
// fails with job.CauseAfter. As long as a job has not ended, those that it is after stay
// as they are once they are done: they have no new run, their files are not removed, and
// their records do not expire.
//
// # Cancel
//
// Cancel ends a job that nobody holds. For a job that is held it is a request:
// the record says Cancelling, an event of kind cancel is recorded, and the job
// stays held until its holder ends it. A job that is Cancelling ends as
// cancelled, whether it is released or finished and with any outcome: an
// acknowledged cancel takes effect. No new run begins before.
//
// # Events
//
// Every change of a job records an event, in the same transaction. Events are
// read in the order of their cursors; an event never appears before one that was
// read already. They are kept for a bounded time and number. A claim to run
// records only started; a claim ahead records claimed and, by Start, started. To see
// the last events and then the new ones, read the newest events and continue with the
// cursor that is returned with them: no event is missed or repeated.
//
// # Promises
//
// Every method that changes something has made the change durable (it survives
// a power cut) when it returns nil. Calls may come from any number of
// goroutines; an implementation groups them into few commits. A method that
// returns an error has changed nothing, except that after an error of class
// errdefs.ErrUnavailable or errdefs.ErrResourceExhausted, or a context's end, the
// change may or may not have been made; Start, Finish, Release and Cancel may be
// called again then: repeating one that was made answers as if it were made now,
// or ErrFenced, or ErrFinal.
//
// Records in a final state are kept for a bounded time and number (see each
// implementation's Config) and then expire; a record that is not final never
// does. A clock that jumps forward does not expire them early.
//
// # Scheduling order
//
// Claim picks among the queued, unheld, due records that the slot may run: those
// addressed to its sheep, and those addressed to none whose model is not among
// Slot.Except; likewise those with the other addresses that Slot names. It passes
// over those that a limit of the Policy keeps waiting. They are ordered by priority,
// higher first; then those whose model is Slot.Prefer; then, where tenants share, by
// the Share of their tenant; then by age, the older first. Between claims made at the
// same time no order is promised.
package ledger

import (
	"context"
	"fmt"
	"slices"
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
	// ErrRemoving says that the removal of the job's files has begun.
	ErrRemoving = fmt.Errorf("the files of this job are being removed: %w", errdefs.ErrConflict)
	// ErrNotFinal says that the job has not ended.
	ErrNotFinal = fmt.Errorf("the job has not ended: %w", errdefs.ErrFailedPrecondition)
	// ErrNeeded says that a job that has not ended is after this one.
	ErrNeeded = fmt.Errorf("a job that has not ended needs the outputs of this one: %w", errdefs.ErrFailedPrecondition)
	// ErrEventsGone says that the events after the given cursor are no longer
	// kept: the caller reads what it needs from the records and goes on from Now.
	ErrEventsGone = fmt.Errorf("events after this cursor are no longer kept: %w", errdefs.ErrOutOfRange)
)

// RecordError is the refusal of one of several records.
type RecordError struct {
	ID  job.ID
	Err error
}

func (e *RecordError) Error() string { return fmt.Sprintf("job %s: %v", e.ID, e.Err) }
func (e *RecordError) Unwrap() error { return e.Err }

// Token fences the changes of one claim.
type Token int64

// Slot is who claims.
type Slot struct {
	Node, Sheep string
	// Own are further addresses of the sheep itself: Claim goes by them as by its name.
	// Open are further ones whose jobs any of several sheep may take: Claim goes by them
	// as by no address at all.
	Own, Open []string
	// Prefer is the model whose jobs come first among those of one priority; zero
	// for none: the oldest comes first.
	Prefer job.Model
	// Except are models that the sheep cannot run. Jobs addressed to the sheep are
	// claimed whatever their model.
	Except []job.Model
	// Ahead claims without starting: the record stays queued, held by the slot.
	Ahead bool
	// Only, when not empty, restricts the claim to this job; Except and the order
	// do not matter then.
	Only job.ID
	// Addressed restricts the claim to jobs addressed to this sheep.
	Addressed bool
}

// Owned are the addresses of the sheep itself.
func (s Slot) Owned() []string { return append([]string{s.Sheep}, s.Own...) }

// Opened are the addresses, the empty one first, whose jobs other sheep may take, too;
// none where Addressed says so.
func (s Slot) Opened() []string {
	if s.Addressed {
		return nil
	}
	return append([]string{""}, s.Open...)
}

// Answers reports whether the slot may claim jobs with the address, and whether it is
// the sheep's own.
func (s Slot) Answers(address string) (may, own bool) {
	own = address == s.Sheep || slices.Contains(s.Own, address)
	return own || !s.Addressed && (address == "" || slices.Contains(s.Open, address)), own
}

// Claim is a claimed record and the right to change it.
type Claim struct {
	job.Record
	Token Token
}

// MaxLog bounds Outcome.Log and Return.Log, in bytes. What is longer is not kept.
const MaxLog = 512

// Outcome is how a run ended. State is final; Failure is set exactly when it is
// job.Failed, and kept as (*job.Failure).Clip has it. At becomes FinishedAt,
// though not before the attempt began; zero means now. Cause, which is never
// empty, Reason, as job.ClipReason has it, Usage and Phases are kept with the
// attempt, by the microsecond, and so is Log, which has at most MaxLog bytes.
type Outcome struct {
	State    job.State
	Failure  *job.Failure
	At       time.Time
	Cause    job.Cause
	Reason   string
	Usage    job.Usage
	Phases   job.Phases
	Log      string
	Warnings []string
}

// Return is why a claim is released, and what it means for the job. Cause is
// never empty; a job that is Cancelling ends with job.CauseCancelled instead.
type Return struct {
	Cause  job.Cause
	Reason string
	// Spent says that the attempt counts towards the job's tries.
	Spent bool
	// NotBefore is the earliest time of the next attempt; zero for at once.
	NotBefore time.Time
	Usage     job.Usage
	Phases    job.Phases
	// Log is as in Outcome.
	Log string
}

// Filter narrows List. The zero Filter matches every record.
type Filter struct {
	States []job.State
	Sheep  string // addressed sheep
	Model  job.Model
	Tenant string
	Labels job.Labels // all of which the record has
	Prefix job.ID     // with which the record's ID begins
	Group  string
	// Since and Before bound EnqueuedAt: not earlier than Since, earlier than Before;
	// zero is no bound.
	Since, Before time.Time
	// Newest lists by Seq descending instead of ascending.
	Newest bool
}

// Waiting is the jobs of one model, with one address, that can be claimed.
type Waiting struct {
	Model job.Model
	Sheep string // that they are addressed to, empty for any
	Jobs  int
	// Oldest is when the oldest was submitted.
	Oldest time.Time
	// Rest says that these are all those not listed before, of whatever model and
	// address.
	Rest bool
}

// Counts is how many records are in each state.
type Counts map[job.State]int

// EventFilter narrows Events. The zero EventFilter matches every event.
type EventFilter struct {
	Job    job.ID
	Tenant string
}

// Matches reports whether the event is one of those asked for.
func (f EventFilter) Matches(e job.Event) bool {
	return (f.Job == "" || e.Job == f.Job) && (f.Tenant == "" || e.Tenant == f.Tenant)
}

// Lease is a node's proof that it is alive.
type Lease interface {
	// Lost is closed before any other node may take the jobs that this one holds.
	// A node whose lease is lost stops its attempts at once; it can change none
	// of them any more.
	Lost() <-chan struct{}
	// Release gives the lease up, which does not count as losing it. The node's
	// claims stay, for its next Join.
	Release(ctx context.Context) error
}

// Ledger keeps the records. See the package comment for its promises.
type Ledger interface {
	// Join announces that the node is alive. A lease that the same node had
	// before is lost.
	Join(ctx context.Context, node string) (Lease, error)

	// Create adds a queued record: of rec it takes ID, Model, Sheep, Priority,
	// Trace, Tenant, Limits, NotBefore, WaitUntil, Deadline, Keep, Labels, After, Group,
	// Idempotency and Webhook (see Webhooks), and it returns the record as kept (Seq,
	// Run, EnqueuedAt, Blocked), without the webhook. Where the id has a record in a final
	// state, that one is replaced and Run counts on; its attempts stay. Where it has one
	// that is not final, or whose Idempotency is the same and not empty, the answer is
	// ErrExists. A record keeps its tenant: where rec has another one, the answer is
	// ErrOthers, and where it has none, the next run is that tenant's, too. While the
	// job's files are being removed the answer is ErrRemoving, and while a job that has
	// not ended is after it ErrNeeded. Where it is after a job that is not known, is
	// another tenant's, has failed or was cancelled, or whose files are removed, the
	// answer is an *AfterError; jobs without tenant may be after anyone's. A reservation
	// of the id ends with it, or keeps it from being entered (see Uploads).
	Create(ctx context.Context, rec job.Record) (job.Record, error)

	// CreateAll is Create of several records, in their order and together: all of them or
	// none. A record may be after those before it. The refusal of one of several is a
	// *RecordError.
	CreateAll(ctx context.Context, recs []job.Record) ([]job.Record, error)

	// Claim gives the slot the next job by the scheduling order, or nil when
	// there is none for it. A claim that its caller did not get because ctx ended
	// is put back unspent, by itself and soon.
	Claim(ctx context.Context, slot Slot) (*Claim, error)

	// Start turns a claim made ahead into a running one. Starting a running one
	// changes nothing. It answers ErrFenced when the claim is lost. A claim that is
	// Cancelling is started like any other.
	Start(ctx context.Context, id job.ID, token Token) (job.Record, error)

	// Finish ends the job, once; one claimed ahead and never started, too, as
	// when its inputs are missing. The attempt is spent. A job that is Cancelling
	// ends as cancelled, with job.CauseCancelled. A holder that lost the
	// claim gets ErrFenced, whatever became of the record.
	Finish(ctx context.Context, id job.ID, token Token, outcome Outcome) (job.Record, error)

	// Release ends the attempt and puts the job back in its old place in the
	// queue, or ends it as cancelled where it is Cancelling. The record is as it
	// is then.
	Release(ctx context.Context, id job.ID, token Token, why Return) (job.Record, error)

	// Cancel ends a job that nobody holds as cancelled, and asks the holder of one
	// that is held to end it; the record returned says which: its state is final,
	// or it is Cancelling. Asking twice is asking once. It answers ErrNotFound or
	// ErrFinal.
	Cancel(ctx context.Context, id job.ID) (job.Record, error)

	// Get returns a record, or ErrNotFound.
	Get(ctx context.Context, id job.ID) (job.Record, error)

	// Attempts returns the attempts of all runs of the job that are kept, oldest
	// first, the one under way included; none where the job is not known.
	Attempts(ctx context.Context, id job.ID) ([]job.Attempt, error)

	// LastAttempts returns the newest attempt that has ended of each of the jobs that
	// has one, whichever its run. Its cost is in proportion to the number of jobs.
	LastAttempts(ctx context.Context, jobs []job.ID) (map[job.ID]job.Attempt, error)

	// Held returns the claims of a node with their tokens, oldest first: what a
	// daemon that starts again adopts or releases.
	Held(ctx context.Context, node string) ([]Claim, error)

	// List returns up to limit records that match, by Seq from the cursor on (0
	// for the first), and the cursor to go on with, 0 at the end. The failures
	// listed have no traceback. Its cost is in proportion to the records it
	// returns where the filter names at most one of states, sheep, model, tenant, group
	// and one label; else to those that match one of them. Prefix, Since and Before are
	// compared with each record that matches the rest.
	List(ctx context.Context, filter Filter, cursor int64, limit int) ([]job.Record, int64, error)

	// Position returns the job's place among the jobs that can be claimed, by priority
	// and age, counting those addressed as it is and those addressed to none: 1 is
	// the first, most the last that is told apart, and 0 says that the job cannot be
	// claimed now. It answers ErrNotFound. Its cost is in proportion to the number it
	// returns.
	Position(ctx context.Context, id job.ID, most int) (int, error)

	// Count returns how many records are in each state. It is cheap however
	// many there are.
	Count(ctx context.Context) (Counts, error)

	// Waiting returns the jobs that can be claimed, by model and address, at most
	// as many entries as asked for, those with most jobs first, and what is left as
	// one. Its cost is in proportion to the number of models.
	Waiting(ctx context.Context, most int) ([]Waiting, error)

	// Queued returns how many records of a tenant, which is not empty, are queued, most
	// at the most. Its cost is at most in proportion to the number that it returns.
	Queued(ctx context.Context, tenant string, most int) (int, error)

	// Load returns what the ledger's Policy goes by at this moment. Its cost is in
	// proportion to the number of jobs that are held.
	Load(ctx context.Context) (Load, error)

	// Events returns up to limit events after the cursor that match, in order, and
	// the cursor to go on with (which may lie behind the last event returned: what
	// does not match need not be read again). Fewer than limit are all there are. It
	// answers ErrEventsGone for a cursor that is too old, or that this ledger did
	// not give out. What the events point to is shared: it is only read.
	Events(ctx context.Context, after job.Cursor, filter EventFilter, limit int) ([]job.Event, job.Cursor, error)

	// NewestEvents returns the last events that match, at most as many as asked for, in
	// order, and the cursor to go on with: Events after it returns what happens later.
	// Fewer than asked for are all that are kept. Its cost is in proportion to the number
	// that it returns, and, of a tenant's job, to that job's events. What the events point
	// to is shared: it is only read.
	NewestEvents(ctx context.Context, filter EventFilter, most int) ([]job.Event, job.Cursor, error)

	// Now is the cursor of the latest event: Events after it returns what happens
	// from now on.
	Now(ctx context.Context) (job.Cursor, error)

	// Changed returns a channel that is closed when an event may have been
	// recorded since the call, or the ledger was closed. To miss nothing, call
	// Changed, then read Events, then wait.
	Changed() <-chan struct{}

	// Checkpoint returns the cursor that a consumer of events has kept, or
	// ErrNotFound; SetCheckpoint keeps one.
	Checkpoint(ctx context.Context, consumer string) (job.Cursor, error)
	SetCheckpoint(ctx context.Context, consumer string, cursor job.Cursor) error

	// Ping answers nil when the ledger can make changes durable right now.
	Ping(ctx context.Context) error

	// Close ends leases and waits for running calls.
	Close() error
}
