package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// counters are the last numbers given out.
type counters struct{ seq, token, event int64 }

// tx is one transaction: what it changed beside the rows, kept apart until the
// commit succeeded.
type tx struct {
	w   *writer
	do  *statements
	now time.Time

	counters  counters
	changes   ledger.Counts // by how much each changed
	waiting   map[kind]int  // likewise
	events    []ledger.Event
	ended     int // records that came into a final state
	overtakes int // rows in the table of that name
	wrote     bool
	pruned    bool
	sweepOn   bool // there is more to expire
}

// A transaction is shared by many callers, so no caller's context ends it.
func (t *tx) queryRow(s *sql.Stmt, args ...any) *sql.Row {
	return s.QueryRowContext(context.Background(), args...)
}

func (t *tx) query(s *sql.Stmt, args ...any) (*sql.Rows, error) {
	return s.QueryContext(context.Background(), args...)
}

func (t *tx) exec(s *sql.Stmt, args ...any) (sql.Result, error) {
	return s.ExecContext(context.Background(), args...)
}

// byID reads a record; ErrNotFound where there is none.
func (t *tx) byID(id job.ID) (*row, error) {
	return scanOne(t.queryRow(t.do.byID, string(id)))
}

func (t *tx) bySeq(seq int64) (*row, error) {
	return scanOne(t.queryRow(t.do.bySeq, seq))
}

func scanOne(found *sql.Row) (*row, error) {
	r := new(row)
	err := r.scan(found.Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, ledger.ErrNotFound
	}
	return r, err
}

// held reads the record that the token's claim holds, or ErrFenced.
func (t *tx) held(id job.ID, token ledger.Token) (*row, error) {
	r, err := t.byID(id)
	if errors.Is(err, ledger.ErrNotFound) || err == nil && (r.token != token || token == 0) {
		return nil, ledger.ErrFenced
	}
	return r, err
}

// insert adds a queued record in the next place.
func (t *tx) insert(r *row) error {
	t.counters.seq++
	r.Seq = t.counters.seq
	_, err := t.exec(t.do.insert, r.Seq, string(r.ID), r.Model.Name, r.Model.Version, r.Sheep, r.Priority,
		r.Trace.Parent, r.Trace.State, r.Tenant, string(r.State), fromTime(r.EnqueuedAt), r.Run)
	if err != nil {
		return err
	}
	t.changes[r.State]++
	t.waiting[r.kind()]++
	t.record(r)
	return nil
}

// save writes a record that was in state before.
func (t *tx) save(r *row, before job.State) error {
	var failure job.Failure
	if r.Failure != nil {
		failure = *r.Failure
	}
	_, err := t.exec(t.do.save, string(r.State), failure.Message, failure.Type, failure.Traceback,
		fromTime(r.StartedAt), fromTime(r.FinishedAt), r.Attempt, r.Holder, r.Node, int64(r.token), r.putBack, r.overtaken,
		r.Usage.GPUMemory, r.Usage.GPUTime.Microseconds(), r.Seq)
	if err != nil {
		return err
	}
	t.changes[before]--
	t.changes[r.State]++
	if waits := r.waits(); waits != r.waited {
		n := -1
		if waits {
			n = 1
		}
		t.waiting[r.kind()] += n
		r.waited = waits
	}
	if r.State.Final() {
		t.ended++
	}
	t.record(r)
	return nil
}

// remove deletes a record that was in the given state.
func (t *tx) remove(r *row) error {
	if _, err := t.exec(t.do.remove, r.Seq); err != nil {
		return err
	}
	t.changes[r.State]--
	t.wrote = true
	return nil
}

// record makes an event of a change.
func (t *tx) record(r *row) {
	t.counters.event++
	t.events = append(t.events, ledger.Event{Seq: t.counters.event, Record: r.Record})
	t.wrote = true
}

// saveCounters makes the numbers given out durable with what they were given
// to. A transaction that wrote nothing is left so: its commit costs no fsync.
func (t *tx) saveCounters() error {
	if !t.wrote {
		return nil
	}
	_, err := t.exec(t.do.saveCounters, t.counters.seq, t.counters.token, t.counters.event)
	return err
}
