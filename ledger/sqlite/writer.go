package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger/lifecycle"
)

// maxBatch is how many changes one commit makes at most: enough to share an
// fsync among all callers there are, little enough to answer the first soon.
const maxBatch = 256

// How long the writer waits before it tries again what it does by itself, after
// that failed: the first time, and at most.
const (
	minRetry = time.Second
	maxRetry = time.Minute
)

// An operation is one caller's change on its way through the writer.
type operation struct {
	// apply makes the change. It may be run again after its transaction failed. An
	// error that it returns before it wrote anything, with no statement failed, is
	// a refusal: the answer to this caller, and nothing to the operations that
	// share the transaction.
	apply func(*tx) error
	// revert takes the change back where its caller did not wait for it; nil for
	// changes that may stay.
	revert func(*tx) error
	// maintenance says that there is no caller, and that the change is tried again until
	// it is made.
	maintenance bool

	state atomic.Int32
	done  chan struct{} // closed when err is set
	err   error
}

// The states of an operation. The caller may abandon it until it is answered.
const (
	pending int32 = iota
	answered
	abandoned
)

// abandon reports whether the caller goes away before it was answered.
func (o *operation) abandon() bool { return o.state.CompareAndSwap(pending, abandoned) }

// answer reports whether the caller is still there to get the answer.
func (o *operation) answer(err error) bool {
	o.err = err
	if !o.state.CompareAndSwap(pending, answered) {
		return false
	}
	close(o.done)
	return true
}

// writer makes all changes, from a goroutine of its own.
type writer struct {
	cfg    Config
	conn   *sql.Conn
	do     *statements
	events *eventLog
	tally  *tally
	rows   *rowCache
	clock  ageClock

	ops  chan *operation
	quit chan struct{}
	done sync.WaitGroup
	once sync.Once

	// Only the goroutine touches these.
	numbers      numbers
	saved        savedNumbers
	storedEvents int
	nextTimer    time.Time    // no timer is due before; zero for none
	sweeping     bool         // look for what is no longer kept
	reverts      []*operation // of abandoned changes
	retryAt      time.Time    // when maintenance is tried again after it failed
	retryPause   time.Duration
	commits      atomic.Int64 // how many transactions made something durable
	statements   atomic.Int64 // how many statements those ran
}

func newWriter(ctx context.Context, cfg Config, conn *sql.Conn) (*writer, error) {
	w := &writer{cfg: cfg, conn: conn, ops: make(chan *operation, maxBatch), quit: make(chan struct{}), sweeping: true}
	var age, wall int64
	n := &w.numbers
	err := conn.QueryRowContext(ctx, `SELECT seq, token, event, pruned, age, wall, (SELECT count(*) FROM events) FROM numbers`).
		Scan(&n.seq, &n.token, &n.event, &n.pruned, &age, &wall, &w.storedEvents)
	if err != nil {
		return nil, err
	}
	w.clock = newAgeClock(age, wall, w.now())
	if behind := time.UnixMicro(wall).Sub(w.now()); wall != 0 && behind > clockTolerance {
		cfg.Log.Warn("The clock of this machine is behind the last change in the ledger: times of jobs are wrong until it is set (NTP); nothing is lost by it",
			slog.Time("last_change", time.UnixMicro(wall).UTC()), slog.Duration("behind", behind))
	}
	w.saved = savedNumbers{numbers: *n, age: w.clock.base}
	if w.tally, err = loadTally(ctx, conn, cfg.Policy); err != nil {
		return nil, err
	}
	if w.do, err = prepare(ctx, conn, cfg.Policy); err != nil {
		return nil, err
	}
	w.rows = newRowCache()
	w.nextTimer = time.UnixMicro(1) // past: what is due, and when the next is, is looked up at once
	w.events = newEventLog(n.event)
	return w, nil
}

// now is the time as records keep it.
func (w *writer) now() time.Time { return lifecycle.KeptTime(w.cfg.Now()) }

func (w *writer) start() { w.done.Go(w.run) }

// stop ends the goroutine once all operations handed in are answered.
func (w *writer) stop() {
	w.once.Do(func() { close(w.quit) })
	w.done.Wait()
	w.do.close()
	w.conn.Close()
}

func (w *writer) run() {
	sweep := time.NewTicker(w.sweepEvery())
	defer sweep.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var first *operation
		if w.busy() && w.maintenanceDue() {
			select {
			case first = <-w.ops:
			case <-w.quit:
				w.drain()
				return
			default:
			}
		} else {
			timer.Reset(w.rest())
			select {
			case first = <-w.ops:
			case <-timer.C:
			case <-sweep.C:
				w.sweeping = true
			case <-w.quit:
				w.drain()
				return
			}
		}
		// Whoever was woken with this caller hands in its change now, so that one
		// fsync does for all of them.
		runtime.Gosched()
		w.commit(w.gather(first))
	}
}

// busy reports whether there is maintenance that does not wait for a time.
func (w *writer) busy() bool { return w.sweeping || len(w.reverts) > 0 }

// rest is how long the writer has nothing to do by itself.
func (w *writer) rest() time.Duration {
	rest := w.untilTimer()
	if w.busy() {
		rest = 0
	}
	return max(rest, time.Until(w.retryAt))
}

func (w *writer) maintenanceDue() bool { return !time.Now().Before(w.retryAt) }

// drain makes what is still handed in, and takes back what was abandoned where
// that does not fail; nobody hands in more. Then it writes the numbers as they
// are, so that the next to open the ledger goes on without gaps.
func (w *writer) drain() {
	for {
		batch := w.gather(nil)
		if len(batch) == 0 {
			break
		}
		w.commit(batch)
	}
	_, err := w.transact([]*operation{{apply: func(t *tx) error {
		t.saved.numbers = t.numbers
		return t.writeNumbers()
	}}}, false)
	if err != nil { // the file has larger ones
		w.cfg.Log.Warn("cannot write the ledger's last numbers; some are left out", slog.Any("error", explain(w.cfg.Path, "close", err)))
	}
}

// gather takes the operations that wait, from first on where it is not nil.
func (w *writer) gather(first *operation) []*operation {
	var batch []*operation
	if w.maintenanceDue() {
		batch, w.reverts = w.reverts, nil
	}
	if first != nil {
		batch = append(batch, first)
	}
	for len(batch) < maxBatch {
		select {
		case o := <-w.ops:
			batch = append(batch, o)
		default:
			return batch
		}
	}
	return batch
}

// commit makes the operations durable in one transaction, with the maintenance that
// is due, and answers them. If that fails, each gets a transaction of its own:
// what spoils one operation does not spoil its neighbours.
func (w *writer) commit(batch []*operation) {
	batch = slices.DeleteFunc(batch, func(o *operation) bool { return o.state.Load() == abandoned })
	errs, err := w.transact(batch, w.maintenanceDue())
	var failed *transactError
	switch errors.As(err, &failed); {
	case err == nil:
		w.answer(batch, errs)
	case len(batch) == 0:
		w.postponeMaintenance(err)
	case failed.during == duringUpkeep:
		w.postponeMaintenance(err)
		w.commit(batch)
	case failed.during == duringBegin || len(batch) == 1:
		w.fail(batch, failed.err)
	default:
		for _, o := range batch {
			w.commit([]*operation{o})
		}
	}
}

// postponeMaintenance has maintenance rest after it failed, for longer each time.
func (w *writer) postponeMaintenance(err error) {
	if !w.maintenanceDue() {
		return
	}
	w.retryPause = min(max(2*w.retryPause, minRetry), maxRetry)
	w.retryAt = time.Now().Add(w.retryPause)
	w.cfg.Log.Warn("cannot run timers, take back abandoned claims or remove what is no longer kept; it is tried again",
		slog.Any("error", explain(w.cfg.Path, "maintain the ledger", err)), slog.Duration("pause", w.retryPause))
}

// answer answers the operations of a transaction that was committed. A change
// that nobody waited for is taken back.
func (w *writer) answer(batch []*operation, errs []error) {
	for i, o := range batch {
		if !o.answer(errs[i]) && errs[i] == nil && o.revert != nil {
			w.reverts = append(w.reverts, &operation{apply: o.revert, maintenance: true, done: make(chan struct{})})
		}
	}
}

// fail answers operations that were not made.
func (w *writer) fail(batch []*operation, err error) {
	for _, o := range batch {
		if o.maintenance {
			w.reverts = append(w.reverts, o)
			w.postponeMaintenance(err)
			continue
		}
		o.answer(err)
	}
}

// transactError says that nothing of a transaction was made, and in which part
// of it that was found.
type transactError struct {
	during int
	err    error
}

// The parts of a transaction.
const (
	duringBegin = iota
	duringUpkeep
	duringOperations // their commit included
)

func (e *transactError) Error() string { return e.err.Error() }
func (e *transactError) Unwrap() error { return e.err }

// transact applies the operations in one transaction, with the maintenance that is
// due where it is asked for. It returns what each operation is answered, or a
// transactError.
func (w *writer) transact(batch []*operation, maintenance bool) ([]error, error) {
	// A statement on the one connection is in the transaction that BEGIN opened
	// there: sql.Tx would only add its locks and a copy of every statement.
	ctx := context.Background()
	if _, err := w.do.begin.ExecContext(ctx); err != nil {
		return nil, &transactError{duringBegin, err}
	}
	t := &tx{
		session: session{do: w.do}, tallyChange: newTallyChange(),
		w: w, now: w.now(), age: w.clock.now(),
		numbers: w.numbers, saved: w.saved, nextTimer: w.nextTimer, rows: map[job.ID]*row{},
	}
	errs, err := t.run(batch, maintenance)
	if err == nil {
		if _, failure := w.do.commit.ExecContext(ctx); failure != nil {
			err = &transactError{duringOperations, failure}
		}
	}
	if err != nil {
		// After a full disk or a failed write SQLite has rolled back by itself
		// and answers that there is nothing to roll back.
		w.do.rollback.ExecContext(ctx)
		return nil, err
	}
	w.committed(t, maintenance)
	return errs, nil
}

// run makes all changes of the transaction.
func (t *tx) run(batch []*operation, maintenance bool) ([]error, error) {
	if maintenance {
		if err := t.runTimers(); err != nil {
			return nil, &transactError{duringUpkeep, err}
		}
	}
	errs := make([]error, len(batch))
	for i, o := range batch {
		writes := t.writes
		errs[i] = o.apply(t)
		if errs[i] != nil && (t.failed || t.writes != writes) {
			return nil, &transactError{duringOperations, errs[i]}
		}
	}
	if err := t.settle(); err != nil {
		return nil, &transactError{duringOperations, err}
	}
	if maintenance {
		if err := errors.Join(t.expire(len(batch) == 0), t.pruneEvents(len(batch) == 0), t.saveAge()); err != nil {
			return nil, &transactError{duringUpkeep, err}
		}
	}
	if err := t.saveNumbers(); err != nil {
		return nil, &transactError{duringOperations, err}
	}
	return errs, nil
}

// committed takes over what the transaction changed beside the file. Claimable
// jobs are counted before their events are told.
func (w *writer) committed(t *tx, maintenance bool) {
	if t.writes > 0 {
		w.commits.Add(1)
		w.statements.Add(int64(t.ran))
	}
	w.numbers, w.saved, w.nextTimer = t.numbers, t.saved, t.nextTimer
	w.storedEvents += len(t.events) - t.removed
	if maintenance {
		w.sweeping = t.sweepMore
		w.retryAt, w.retryPause = time.Time{}, 0
	}
	w.rows.publish(t.rows)
	w.tally.add(t.tallyChange)
	w.events.publish(t.events, t.numbers.event)
}

// change hands an operation to the writer and waits until it is durable or ctx
// ends. In the latter case it may still be made, unless there is a revert.
func (l *Ledger) change(ctx context.Context, doing string, apply, revert func(*tx) error) error {
	return l.call(doing, func() error {
		return l.await(ctx, &operation{apply: apply, revert: revert, done: make(chan struct{})})
	})
}

func (l *Ledger) await(ctx context.Context, o *operation) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case l.writer.ops <- o:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-o.done:
		return o.err
	case <-ctx.Done():
		if o.abandon() {
			return ctx.Err()
		}
		<-o.done
		return o.err
	}
}
