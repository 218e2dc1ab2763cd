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

// maxBatch is how many changes one commit makes at most: enough that all waiting callers
// share an fsync, few enough that the first is answered soon.
const maxBatch = 256

// An operation is one caller's change on its way through the writer.
type operation struct {
	// apply makes the change. It is run again if its transaction failed. An error that
	// it returns before it wrote anything, with no statement failed, is a refusal: it is
	// the answer to this caller and does not affect the other operations of the
	// transaction.
	apply func(*tx) error
	// revert undoes the change if its caller did not wait for it; nil for changes that
	// may stay.
	revert func(*tx) error
	// maintenance is set where there is no caller. The change is tried again until it is
	// made.
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

// abandon is called by a caller that stops waiting. It reports whether the operation was
// not answered yet.
func (o *operation) abandon() bool { return o.state.CompareAndSwap(pending, abandoned) }

// answer gives the caller its answer. It reports whether the caller still waits.
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
	stmts  *statements
	events *recentEvents
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
	maintenance  maintenance
	commits      atomic.Int64 // how many transactions made something durable
	statements   atomic.Int64 // how many statements those ran
}

func newWriter(ctx context.Context, cfg Config, conn *sql.Conn) (*writer, error) {
	w := &writer{cfg: cfg, conn: conn, ops: make(chan *operation, maxBatch), quit: make(chan struct{})}
	var age, wall int64
	n := &w.numbers
	err := conn.QueryRowContext(ctx, `SELECT seq, token, event, pruned, age, wall, (SELECT count(*) FROM events) FROM numbers`).
		Scan(&n.seq, &n.token, &n.event, &n.pruned, &age, &wall, &w.storedEvents)
	if err != nil {
		return nil, err
	}
	w.clock = newAgeClock(age, wall, w.now())
	if behind := time.UnixMicro(wall).Sub(w.now()); wall != 0 && behind > clockTolerance {
		cfg.Log.Warn("The clock of this machine is behind the last change in the ledger: times of jobs are wrong until it is set (NTP); no job is lost",
			slog.Time("last_change", time.UnixMicro(wall).UTC()), slog.Duration("behind", behind))
	}
	w.saved = savedNumbers{numbers: *n, age: w.clock.base}
	if w.tally, err = loadTally(ctx, conn, cfg.Policy); err != nil {
		return nil, err
	}
	if w.stmts, err = prepare(ctx, conn, cfg.Policy); err != nil {
		return nil, err
	}
	w.rows = newRowCache()
	// The first transaction sweeps and, as this time is past, looks up the timers.
	w.maintenance = maintenance{sweeping: true, nextTimer: time.UnixMicro(1)}
	w.events = newRecentEvents(n.event)
	return w, nil
}

// now is the time as records keep it.
func (w *writer) now() time.Time { return lifecycle.KeptTime(w.cfg.Now()) }

func (w *writer) start() { w.done.Go(w.run) }

// stop ends the goroutine after all operations that were handed in are answered.
func (w *writer) stop() {
	w.once.Do(func() { close(w.quit) })
	w.done.Wait()
	w.stmts.close()
	w.conn.Close()
}

func (w *writer) run() {
	sweep := time.NewTicker(w.sweepEvery())
	defer sweep.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var first *operation
		if w.maintenance.pending() && w.maintenance.allowed() {
			select {
			case first = <-w.ops:
			case <-w.quit:
				w.drain()
				return
			default:
			}
		} else {
			timer.Reset(w.maintenance.idleFor(w.now()))
			select {
			case first = <-w.ops:
			case <-timer.C:
			case <-sweep.C:
				w.maintenance.sweeping = true
			case <-w.quit:
				w.drain()
				return
			}
		}
		// Callers that were woken together with this one hand in their changes now, so
		// that they share one fsync.
		runtime.Gosched()
		w.commit(w.gather(first))
	}
}

// drain makes the operations that are still handed in, and tries the reverts once; no
// more operations come. Then it writes the exact numbers, so that the next process that
// opens the ledger goes on without gaps.
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
	if err != nil { // numbers that were reserved in the file are skipped
		w.cfg.Log.Warn("cannot write the ledger's last numbers; some are left out", slog.Any("error", explain(w.cfg.Path, "close", err)))
	}
}

// gather takes the operations that wait, up to maxBatch. first, unless nil, is the first
// of them.
func (w *writer) gather(first *operation) []*operation {
	var batch []*operation
	if w.maintenance.allowed() {
		batch, w.maintenance.reverts = w.maintenance.reverts, nil
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
// is due, and answers them. If that fails, each gets a transaction of its own, so that
// one failing operation does not fail the others.
func (w *writer) commit(batch []*operation) {
	batch = slices.DeleteFunc(batch, func(o *operation) bool { return o.state.Load() == abandoned })
	errs, err := w.transact(batch, w.maintenance.allowed())
	var failed *transactError
	switch errors.As(err, &failed); {
	case err == nil:
		w.answer(batch, errs)
	case len(batch) == 0:
		w.postponeMaintenance(err)
	case failed.during == duringMaintenance:
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

// postponeMaintenance sets when failed maintenance is tried again: later each time.
func (w *writer) postponeMaintenance(err error) {
	if !w.maintenance.allowed() {
		return
	}
	pause := w.maintenance.postpone()
	w.cfg.Log.Warn("cannot run timers, take back abandoned claims or remove expired records; retrying",
		slog.Any("error", explain(w.cfg.Path, "maintain the ledger", err)), slog.Duration("pause", pause))
}

// answer answers the operations of a transaction that was committed. A change whose
// caller did not wait for it is reverted.
func (w *writer) answer(batch []*operation, errs []error) {
	for i, o := range batch {
		if !o.answer(errs[i]) && errs[i] == nil && o.revert != nil {
			w.maintenance.reverts = append(w.maintenance.reverts, &operation{apply: o.revert, maintenance: true, done: make(chan struct{})})
		}
	}
}

// fail answers operations whose transaction failed.
func (w *writer) fail(batch []*operation, err error) {
	for _, o := range batch {
		if o.maintenance {
			w.maintenance.reverts = append(w.maintenance.reverts, o)
			w.postponeMaintenance(err)
			continue
		}
		o.answer(err)
	}
}

// transactError is the error of a transaction that was rolled back, and the part of it
// that failed.
type transactError struct {
	during int
	err    error
}

// The parts of a transaction.
const (
	duringBegin = iota
	duringMaintenance
	duringOperations // their commit included
)

func (e *transactError) Error() string { return e.err.Error() }
func (e *transactError) Unwrap() error { return e.err }

// transact applies the operations in one transaction, and the maintenance that is due
// where maintenance is set. It returns the answer of each operation, or a transactError.
func (w *writer) transact(batch []*operation, maintenance bool) ([]error, error) {
	// A statement on the one connection is in the transaction that BEGIN opened
	// there: sql.Tx would only add its locks and a copy of every statement.
	ctx := context.Background()
	if _, err := w.stmts.begin.ExecContext(ctx); err != nil {
		return nil, &transactError{duringBegin, err}
	}
	t := &tx{
		session: session{stmts: w.stmts}, tallyChange: newTallyChange(),
		w: w, now: w.now(), age: w.clock.now(),
		numbers: w.numbers, saved: w.saved, nextTimer: w.maintenance.nextTimer, rows: map[job.ID]*row{},
	}
	errs, err := t.run(batch, maintenance)
	if err == nil {
		if _, failure := w.stmts.commit.ExecContext(ctx); failure != nil {
			err = &transactError{duringOperations, failure}
		}
	}
	if err != nil {
		// After a full disk or a failed write SQLite has rolled back by itself
		// and answers that there is nothing to roll back.
		w.stmts.rollback.ExecContext(ctx)
		return nil, err
	}
	w.committed(t, maintenance)
	return errs, nil
}

// run makes the changes of the transaction.
func (t *tx) run(batch []*operation, maintenance bool) ([]error, error) {
	if maintenance {
		if err := t.runTimers(); err != nil {
			return nil, &transactError{duringMaintenance, err}
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
	if err := t.unblock(); err != nil {
		return nil, &transactError{duringOperations, err}
	}
	if maintenance {
		if err := errors.Join(t.expire(len(batch) == 0), t.pruneEvents(len(batch) == 0), t.saveAge()); err != nil {
			return nil, &transactError{duringMaintenance, err}
		}
	}
	if err := t.saveNumbers(); err != nil {
		return nil, &transactError{duringOperations, err}
	}
	return errs, nil
}

// committed brings the state in memory up to date with a committed transaction.
// Claimable jobs are counted before their events are published.
func (w *writer) committed(t *tx, maintenance bool) {
	if t.writes > 0 {
		w.commits.Add(1)
		w.statements.Add(int64(t.ran))
	}
	w.numbers, w.saved, w.maintenance.nextTimer = t.numbers, t.saved, t.nextTimer
	w.storedEvents += len(t.events) - t.removed
	if maintenance {
		w.maintenance.done(t.sweepMore)
	}
	w.rows.publish(t.rows)
	w.tally.add(t.tallyChange)
	w.events.publish(t.events, t.numbers.event)
}
