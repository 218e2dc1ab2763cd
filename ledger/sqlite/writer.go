package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/iterait/shepherd/ledger"
)

// maxBatch is how many changes one commit makes at most: enough to share an
// fsync among all callers there are, little enough to answer the first soon.
const maxBatch = 256

// An operation is one caller's change on its way through the writer.
type operation struct {
	// apply makes the change. It decides on a refusal before it writes anything,
	// so that a refused operation leaves no trace in the transaction it shares.
	// It may be run again after its transaction failed.
	apply func(*tx) error
	// undo takes the change back where its caller did not wait for it; nil for
	// changes that may stay.
	undo func(*tx) error

	stage atomic.Int32
	done  chan struct{} // closed when err is set
	err   error
}

// The stages of an operation. The caller may leave until it is answered.
const (
	waiting int32 = iota
	answered
	left
)

// leave reports whether the caller leaves before it was answered.
func (o *operation) leave() bool { return o.stage.CompareAndSwap(waiting, left) }

// answer reports whether the caller is still there to get the answer.
func (o *operation) answer(err error) bool {
	o.err = err
	if !o.stage.CompareAndSwap(waiting, answered) {
		return false
	}
	close(o.done)
	return true
}

// writer makes all changes, from a goroutine of its own.
type writer struct {
	cfg   Config
	now   func() time.Time
	conn  *sql.Conn
	do    *statements
	feed  *feed
	tally *tally

	ops  chan *operation
	quit chan struct{}
	done sync.WaitGroup
	once sync.Once

	// Only the goroutine touches these.
	counters  counters
	overtakes int // rows in the table of that name
	pruneStep int // how many rows it may gain between two prunings
	pruneAt   int // prune it when it has more
	sweeping  bool
	undone    []*operation // to take back
	commits   atomic.Int64 // how many transactions made something durable
}

func newWriter(ctx context.Context, cfg Config, conn *sql.Conn, now func() time.Time) (*writer, error) {
	w := &writer{
		cfg: cfg, now: now, conn: conn,
		ops:       make(chan *operation, maxBatch),
		quit:      make(chan struct{}),
		pruneStep: pruneEvery, pruneAt: pruneEvery,
	}
	err := conn.QueryRowContext(ctx, `SELECT seq, token, event, (SELECT count(*) FROM overtakes) FROM counters`).
		Scan(&w.counters.seq, &w.counters.token, &w.counters.event, &w.overtakes)
	if err != nil {
		return nil, err
	}
	if w.tally, err = countStates(ctx, conn); err != nil {
		return nil, err
	}
	if w.do, err = prepare(ctx, conn); err != nil {
		return nil, err
	}
	w.feed = newFeed(cfg.Events, w.counters.event)
	return w, nil
}

func (w *writer) start() { w.done.Go(w.run) }

// stop ends the goroutine once all operations handed in are answered.
func (w *writer) stop() {
	w.once.Do(func() { close(w.quit) })
	w.done.Wait()
	w.do.close()
	w.conn.Close()
}

func (w *writer) run() {
	tick := time.NewTicker(w.sweepEvery())
	defer tick.Stop()
	w.sweeping = true
	for {
		if w.sweeping || len(w.undone) > 0 {
			select {
			case o := <-w.ops:
				w.commit(w.gather(o))
			case <-w.quit:
				w.drain()
				return
			default:
				w.commit(w.gather(nil))
			}
			continue
		}
		select {
		case o := <-w.ops:
			w.commit(w.gather(o))
		case <-tick.C:
			w.sweeping = true
		case <-w.quit:
			w.drain()
			return
		}
	}
}

// drain makes what is still handed in; nobody hands in more.
func (w *writer) drain() {
	w.sweeping = false
	for {
		batch := w.gather(nil)
		if len(batch) == 0 {
			return
		}
		w.commit(batch)
	}
}

// gather takes the operations that wait, from first on where it is not nil.
func (w *writer) gather(first *operation) []*operation {
	batch := w.undone
	w.undone = nil
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

// commit makes the operations durable in one transaction and answers them. If
// that fails, each gets a transaction of its own: what spoils one operation
// does not spoil its neighbours.
func (w *writer) commit(batch []*operation) {
	batch = present(batch)
	errs, err := w.transact(batch)
	switch {
	case err == nil:
	case len(batch) > 1:
		for _, o := range batch {
			w.commit([]*operation{o})
		}
		return
	case len(batch) == 1:
		errs = []error{err}
	default: // only the sweep failed: the next tick tries again
		w.sweeping = false
		w.cfg.Log.Warn("cannot expire ended jobs; it is tried again later", slog.Any("error", explain(w.cfg.Path, "expire jobs", err)))
	}
	for i, o := range batch {
		if !o.answer(errs[i]) && errs[i] == nil && o.undo != nil {
			w.undone = append(w.undone, &operation{apply: o.undo, done: make(chan struct{})})
		}
	}
}

// present leaves out the operations whose callers have left.
func present(batch []*operation) []*operation {
	kept := batch[:0]
	for _, o := range batch {
		if o.stage.Load() == waiting {
			kept = append(kept, o)
		}
	}
	return kept
}

// transact applies the operations in one transaction. It returns what each is
// answered, or the error because of which none was made.
func (w *writer) transact(batch []*operation) ([]error, error) {
	// A statement on the one connection is in the transaction that BEGIN opened
	// there: sql.Tx would only add its locks and a copy of every statement.
	ctx := context.Background()
	if _, err := w.do.begin.ExecContext(ctx); err != nil {
		return nil, err
	}
	t := &tx{w: w, do: w.do, now: w.now(), counters: w.counters, changes: ledger.Counts{}, waiting: map[kind]int{}, overtakes: w.overtakes}
	errs, err := t.applyAll(batch)
	if err == nil {
		_, err = w.do.commit.ExecContext(ctx)
	}
	if err != nil {
		// After a full disk or a failed write SQLite has rolled back by itself
		// and answers that there is nothing to roll back.
		w.do.rollback.ExecContext(ctx)
		return nil, err
	}
	if t.wrote {
		w.commits.Add(1)
	}
	w.counters = t.counters
	w.overtakes = t.overtakes
	if t.pruned {
		w.pruneAt = 2*w.overtakes + w.pruneStep
	}
	w.sweeping = t.sweepOn
	w.tally.add(t.changes, t.waiting)
	w.feed.publish(t.events)
	return errs, nil
}

func (t *tx) applyAll(batch []*operation) ([]error, error) {
	errs := make([]error, len(batch))
	for i, o := range batch {
		if errs[i] = o.apply(t); errs[i] != nil && !refusal(errs[i]) {
			return nil, errs[i]
		}
	}
	if err := t.expire(len(batch) == 0); err != nil {
		return nil, err
	}
	if err := t.prune(); err != nil {
		return nil, err
	}
	return errs, t.saveCounters()
}

// refusal reports whether err is the ledger's answer rather than a failure.
func refusal(err error) bool {
	return errors.Is(err, ledger.ErrExists) || errors.Is(err, ledger.ErrNotFound) ||
		errors.Is(err, ledger.ErrFenced) || errors.Is(err, ledger.ErrFinal)
}

// change hands an operation to the writer and waits until it is durable or ctx
// ends. In the latter case it may still be made, unless there is an undo.
func (l *Ledger) change(ctx context.Context, doing string, apply, undo func(*tx) error) error {
	err := l.await(ctx, &operation{apply: apply, undo: undo, done: make(chan struct{})})
	if err != nil {
		return explain(l.path, doing, err)
	}
	return nil
}

func (l *Ledger) await(ctx context.Context, o *operation) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := l.enter(); err != nil {
		return err
	}
	defer l.calls.Done()
	select {
	case l.writer.ops <- o:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-o.done:
		return o.err
	case <-ctx.Done():
		if o.leave() {
			return ctx.Err()
		}
		<-o.done
		return o.err
	}
}
