package shepherd

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/internal/crashpoint"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/storage"
)

// statusConsumer is the name of the ledger checkpoint up to which this node has written
// states to storage.
func statusConsumer(node string) string { return job.StatusFile + "/" + node }

// Parameters of writing states to storage.
const (
	statusWriters   = 16
	maxNotifyDelay  = 2 * time.Second  // how long the notification of clients may wait for the write
	checkpointEvery = time.Second      // how often the checkpoint is advanced
	statusFlush     = 10 * time.Second // how long Stop waits for final states to be written
)

// statusFiles writes jobs' states to job_status.json, following the ledger's events.
// Non-final states are written after a delay and coalesced: what is written is the ledger's
// state at that time. Final states are written at once. The ledger keeps the progress as a
// checkpoint, from which the next daemon continues.
type statusFiles struct {
	ledger ledger.Ledger
	store  storage.Store
	owners *statusOwners
	delay  time.Duration
	log    *slog.Logger

	mu      sync.Mutex
	seen    job.Cursor                // of the last event noted
	serial  int64                     // its number, counted from 1
	pending map[job.ID]*pendingStatus // still to be written
	queue   []queuedStatus            // pending non-final states by due time; may contain entries that are written or rescheduled
	urgent  []job.ID                  // pending final states
	writing map[job.ID]bool
	wake    chan struct{}
	settled chan struct{} // closed when a write has ended

	unsynced sync.Once // guards the warning that states cannot be made durable
}

// pendingStatus is a job whose state is to be written.
type pendingStatus struct {
	serial int64      // the number of the first event that is not written
	before job.Cursor // the cursor before that event
	final  *job.Status
	event  job.Event
	due    time.Time
	tries  int
	notify []func() // called when the state is written or cannot be
}

type queuedStatus struct {
	id  job.ID
	due time.Time
}

func newStatusFiles(l ledger.Ledger, s storage.Store, node string, delay time.Duration, log *slog.Logger) *statusFiles {
	return &statusFiles{
		ledger: l, store: s, owners: newStatusOwners(node), delay: delay, log: log,
		pending: make(map[job.ID]*pendingStatus), writing: make(map[job.ID]bool),
		wake: make(chan struct{}, 1), settled: make(chan struct{}),
	}
}

// note schedules a write of the job's state after an event, if this node has to write it or
// waited is set because a client waits for it. notify is called once with the event: for a
// final state when it is written, cannot be written, or after maxNotifyDelay; for other
// states at once.
func (f *statusFiles) note(e job.Event, waited bool, notify func(job.Event)) {
	f.mu.Lock()
	f.serial++
	before := f.seen
	f.seen = e.Cursor
	switch {
	case !changesStatus(e): // the state in job_status.json does not change
		f.mu.Unlock()
		notify(e)
		return
	case !waited && !f.writeUnsettled(e.Job) && !f.owners.owns(e):
		if p := f.pending[e.Job]; p != nil && p.final == nil { // the node that made the change writes it
			delete(f.pending, e.Job)
		}
		f.mu.Unlock()
		notify(e)
		return
	}
	f.schedule(e, f.serial, before, notify)
	f.mu.Unlock()
	f.signal()
	if e.Status == nil {
		notify(e)
	}
}

// changesStatus reports whether the event changes the state in job_status.json.
func changesStatus(e job.Event) bool {
	switch e.Kind {
	case job.EventQueued, job.EventStarted, job.EventReturned, job.EventEnded:
		return true
	}
	return false
}

// writeUnsettled reports whether a write of the job's state is in progress or has failed, so that
// it may yet overwrite what another node writes. The caller holds f.mu.
func (f *statusFiles) writeUnsettled(id job.ID) bool {
	p := f.pending[id]
	return f.writing[id] || p != nil && p.tries > 0
}

// takeOver schedules a write of the job's state after an earlier event of a lost node. Until
// it is written this node's checkpoint does not pass from.
func (f *statusFiles) takeOver(e job.Event, from job.Cursor) {
	if !changesStatus(e) {
		return
	}
	f.mu.Lock()
	if p := f.pending[e.Job]; p == nil {
		f.schedule(e, 0, from, func(job.Event) {})
	} else {
		p.serial, p.before = 0, from // the pending write writes the ledger's current state anyway
	}
	f.mu.Unlock()
	f.signal()
}

// schedule schedules the write of a state. The caller holds f.mu.
func (f *statusFiles) schedule(e job.Event, serial int64, before job.Cursor, notify func(job.Event)) {
	p := f.pending[e.Job]
	if p == nil {
		p = &pendingStatus{serial: serial, before: before}
		f.pending[e.Job] = p
	}
	p.event, p.final, p.tries = e, e.Status, 0
	if e.Status == nil {
		p.due = time.Now().Add(f.delay)
		f.queue = append(f.queue, queuedStatus{e.Job, p.due})
	} else {
		p.due = time.Now()
		p.notify = append(p.notify, sync.OnceFunc(func() { notify(e) }))
		f.urgent = append(f.urgent, e.Job)
	}
}

func (f *statusFiles) signal() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// run writes the states that are due until ctx ends.
func (f *statusFiles) run(ctx context.Context) {
	var writers sync.WaitGroup
	defer writers.Wait()
	writers.Go(func() { f.keepPosition(ctx) })
	slots := make(chan struct{}, statusWriters)
	for {
		id, wait, ok := f.next(time.Now())
		if !ok {
			var timer <-chan time.Time
			if wait > 0 {
				timer = time.After(wait)
			}
			select {
			case <-ctx.Done():
				return
			case <-f.wake:
			case <-timer:
			}
			continue
		}
		select {
		case <-ctx.Done():
			return
		case slots <- struct{}{}:
		}
		writers.Go(func() {
			defer func() { <-slots }()
			f.write(ctx, id)
		})
	}
}

// next returns a job whose state is due, or how long until one is; 0 if none is pending.
func (f *statusFiles) next(now time.Time) (id job.ID, wait time.Duration, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.urgent) > 0 {
		id := f.urgent[0]
		f.urgent = f.urgent[1:]
		if p := f.pending[id]; p != nil && !f.writing[id] {
			f.writing[id] = true
			return id, 0, true
		}
	}
	f.urgent = nil
	for len(f.queue) > 0 {
		head := f.queue[0]
		p := f.pending[head.id]
		if p == nil || f.writing[head.id] || !p.due.Equal(head.due) {
			f.queue = f.queue[1:] // written or rescheduled meanwhile
			continue
		}
		if wait := head.due.Sub(now); wait > 0 {
			return "", wait, false
		}
		f.queue = f.queue[1:]
		f.writing[head.id] = true
		return head.id, 0, true
	}
	f.queue = nil
	return "", 0, false
}

// write writes the ledger's current state of the job.
func (f *statusFiles) write(ctx context.Context, id job.ID) {
	f.mu.Lock()
	p := f.pending[id]
	event, notify := p.event, p.notify
	serial := f.serial
	f.mu.Unlock()
	timer := time.AfterFunc(maxNotifyDelay, func() { notifyAll(notify) })
	err := f.put(ctx, id, event)
	f.owners.wrote(id)
	timer.Stop()

	f.mu.Lock()
	delete(f.writing, id)
	retry := err != nil && ctx.Err() == nil && f.worthRetrying(err)
	switch {
	case ctx.Err() != nil && err != nil: // the next daemon writes it
	case retry:
		p.tries++
		p.due = time.Now().Add(min(f.delay<<min(p.tries, 6), 30*time.Second))
		f.queue = insert(f.queue, queuedStatus{id, p.due})
	case p.event.Cursor == event.Cursor: // no later event
		delete(f.pending, id)
	default: // a later event still has to be written
		p.serial, p.before = serial, event.Cursor
		if p.final != nil {
			f.urgent = append(f.urgent, id)
		} else {
			f.queue = insert(f.queue, queuedStatus{id, p.due})
		}
	}
	if len(notify) > 0 {
		p.notify = p.notify[len(notify):]
	}
	close(f.settled)
	f.settled = make(chan struct{})
	f.mu.Unlock()
	f.signal()
	notifyAll(notify)
	if err != nil && ctx.Err() == nil {
		level := slog.LevelWarn
		if errors.Is(err, storage.ErrNotFound) {
			level = slog.LevelDebug // the job's place was removed
		}
		f.log.Log(ctx, level, "Cannot write a job's state to storage", "job", id, "state", string(event.State), "retry", retry, "error", err)
	}
}

func (f *statusFiles) put(ctx context.Context, id job.ID, event job.Event) error {
	rec, err := f.ledger.Get(ctx, id)
	var status job.Status
	switch {
	case err == nil && (rec.Removing || rec.FilesRemoved):
		return nil // do not recreate a removed place
	case err == nil:
		status = rec.Status()
	case errors.Is(err, ledger.ErrNotFound) && event.Status != nil: // the record has expired or was removed
		if there, err := f.store.Exists(ctx, id); err != nil || !there {
			return err
		}
		status = *event.Status
	case errors.Is(err, ledger.ErrNotFound):
		return nil
	default:
		return err
	}
	if err := f.store.SetStatus(ctx, id, status); err != nil {
		return err
	}
	crashpoint.Reached(crashpoint.StatusWritten)
	return nil
}

// drop cancels pending writes of a job's state and waits for one in progress. The error is
// ctx's.
func (f *statusFiles) drop(ctx context.Context, id job.ID) error {
	for {
		f.mu.Lock()
		if !f.writing[id] {
			p := f.pending[id]
			delete(f.pending, id)
			f.mu.Unlock()
			if p != nil {
				notifyAll(p.notify)
			}
			return nil
		}
		settled := f.settled
		f.mu.Unlock()
		select {
		case <-settled:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (f *statusFiles) worthRetrying(err error) bool {
	return errdefs.IsUnavailable(err) || errdefs.IsResourceExhausted(err) || errdefs.IsPermissionDenied(err) ||
		errors.Is(err, context.DeadlineExceeded) || isMachineFault(err)
}

// insert adds q to the queue in order of time.
func insert(queue []queuedStatus, q queuedStatus) []queuedStatus {
	i := len(queue)
	for i > 0 && queue[i-1].due.After(q.due) {
		i--
	}
	queue = append(queue, queuedStatus{})
	copy(queue[i+1:], queue[i:])
	queue[i] = q
	return queue
}

func notifyAll(callbacks []func()) {
	for _, notify := range callbacks {
		notify()
	}
}

// keepPosition advances the checkpoint until ctx ends. It runs on its own goroutine because
// syncing may be slow and must not delay writes.
func (f *statusFiles) keepPosition(ctx context.Context) {
	ticker := time.NewTicker(checkpointEvery)
	defer ticker.Stop()
	kept := job.Cursor("")
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			kept = f.checkpoint(ctx, kept)
		}
	}
}

// checkpoint advances the checkpoint to the current position and returns it.
func (f *statusFiles) checkpoint(ctx context.Context, kept job.Cursor) job.Cursor {
	cursor := f.position()
	if cursor == kept || cursor == "" {
		return kept
	}
	if s, ok := f.store.(storage.StatusSyncer); ok {
		if err := s.SyncStatuses(ctx); err != nil {
			f.unsynced.Do(func() {
				f.log.Warn("Cannot make the states of jobs in storage durable; the next daemon rewrites those written from now on", "error", err)
			})
			return kept
		}
	}
	if err := f.ledger.SetCheckpoint(ctx, statusConsumer(f.owners.self), cursor); err != nil {
		if ctx.Err() == nil {
			f.log.Warn("Cannot save the checkpoint of the states in storage", "error", err)
		}
		return kept
	}
	crashpoint.Reached(crashpoint.Checkpointed)
	return cursor
}

// position returns the cursor up to which all states are in storage.
func (f *statusFiles) position() job.Cursor {
	f.mu.Lock()
	defer f.mu.Unlock()
	cursor, first := f.seen, int64(-1)
	for _, p := range f.pending {
		if first < 0 || p.serial < first {
			first, cursor = p.serial, p.before
		}
	}
	return cursor
}

// flush waits for the writes of final states, for up to statusFlush and while leased lasts,
// and saves the checkpoint. Non-final states are left to the next daemon.
func (f *statusFiles) flush(ctx, leased context.Context) {
	ctx, cancel := context.WithTimeout(ctx, statusFlush)
	defer cancel()
	for leased.Err() == nil {
		f.mu.Lock()
		open := 0
		for _, p := range f.pending {
			if p.final != nil {
				open++
			}
		}
		settled := f.settled
		f.mu.Unlock()
		if open == 0 {
			break
		}
		select {
		case <-settled:
			continue
		case <-leased.Done():
		case <-ctx.Done():
			f.log.Warn("States of jobs that have ended are not in storage yet; the next daemon writes them", "jobs", open)
		}
		break
	}
	f.checkpoint(leased, "")
}
