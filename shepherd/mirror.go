package shepherd

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/storage"
)

// mirrorWriters is how many states that are not final are written at a time.
const mirrorWriters = 4

// mirror writes jobs' states to job_status.json. States that are not final are
// written late and coalesced: only ids wait, and what is written is what the
// ledger says when the time has come. The final state is written by whoever ends
// the job, through exclusive, which keeps a late write from overtaking it.
type mirror struct {
	ledger ledger.Ledger
	store  storage.Store
	delay  time.Duration
	log    *slog.Logger

	mu      sync.Mutex
	due     []dueStatus              // by time, oldest first
	waiting map[job.ID]struct{}      // ids in due that are still to be written
	writing map[job.ID]chan struct{} // closed when the write under way has ended
	wake    chan struct{}
}

type dueStatus struct {
	id job.ID
	at time.Time
}

func newMirror(l ledger.Ledger, s storage.Store, delay time.Duration, log *slog.Logger) *mirror {
	return &mirror{
		ledger: l, store: s, delay: delay, log: log,
		waiting: make(map[job.ID]struct{}), writing: make(map[job.ID]chan struct{}),
		wake: make(chan struct{}, 1),
	}
}

// note asks for the job's state to be written in a while.
func (m *mirror) note(id job.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.waiting[id]; ok {
		return
	}
	m.waiting[id] = struct{}{}
	m.due = append(m.due, dueStatus{id, time.Now().Add(m.delay)})
	if len(m.due) == 1 {
		select {
		case m.wake <- struct{}{}:
		default:
		}
	}
}

// exclusive drops what waits for the job, waits for a write under way, and keeps
// others from writing until the returned function is called.
func (m *mirror) exclusive(id job.ID) (release func()) {
	m.mu.Lock()
	delete(m.waiting, id)
	m.mu.Unlock()
	return m.hold(id, func() bool { return true })
}

// hold waits until nobody writes the job's state and keeps others from it until
// release is called; nil when it is no longer wanted. What waits for the job is
// done with either way.
func (m *mirror) hold(id job.ID, wanted func() bool) (release func()) {
	for {
		m.mu.Lock()
		if !wanted() {
			m.mu.Unlock()
			return nil
		}
		busy, ok := m.writing[id]
		if !ok {
			delete(m.waiting, id)
			done := make(chan struct{})
			m.writing[id] = done
			m.mu.Unlock()
			return func() {
				m.mu.Lock()
				delete(m.writing, id)
				m.mu.Unlock()
				close(done)
			}
		}
		m.mu.Unlock()
		<-busy
	}
}

// run writes what is due until ctx ends.
func (m *mirror) run(ctx context.Context) {
	var writers sync.WaitGroup
	defer writers.Wait()
	slots := make(chan struct{}, mirrorWriters)
	for {
		id, wait, ok := m.next()
		if !ok {
			var timer <-chan time.Time
			if wait > 0 {
				timer = time.After(wait)
			}
			select {
			case <-ctx.Done():
				return
			case <-m.wake:
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
			m.write(ctx, id)
		})
	}
}

// next takes the id that is due, or says how long until one is (0: none waits).
func (m *mirror) next() (id job.ID, wait time.Duration, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(m.due) > 0 {
		head := m.due[0]
		if _, wanted := m.waiting[head.id]; !wanted {
			m.due = m.due[1:] // ended, or written, meanwhile
			continue
		}
		if wait := time.Until(head.at); wait > 0 {
			return "", wait, false
		}
		m.due = m.due[1:]
		return head.id, 0, true
	}
	m.due = nil
	return "", 0, false
}

func (m *mirror) write(ctx context.Context, id job.ID) {
	// Since its turn came, the job may have ended, and its final state be written.
	release := m.hold(id, func() bool { _, waits := m.waiting[id]; return waits })
	if release == nil {
		return
	}
	defer release()
	rec, err := m.ledger.Get(ctx, id)
	if err != nil || rec.State.Final() && rec.State != job.Cancelled {
		return // whoever ended it writes
	}
	err = m.store.SetStatus(ctx, id, rec.Status())
	if err != nil && ctx.Err() == nil {
		level := slog.LevelWarn
		if errors.Is(err, storage.ErrNotFound) {
			level = slog.LevelDebug
		}
		m.log.Log(ctx, level, "Cannot write a job's state to storage", "job", id, "sheep", rec.Holder, "state", rec.State, "error", err)
		if rec.State.Final() && errdefs.IsUnavailable(err) {
			m.note(id) // nobody else will write it
		}
	}
}

// flush forgets what is not final: the ledger has it, and the next daemon goes
// on from there.
func (m *mirror) flush() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.waiting)
	m.due = nil
}
