package sqlite

import (
	"strconv"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// numbers are the last seq, token and event number that were given out, and the number of
// the last event that was pruned.
type numbers struct{ seq, token, event, pruned int64 }

// reserve is how many numbers are written to the file as given out at a time, so that not
// every transaction has to write them. A crash leaves a gap.
const reserve = 1000

// tx is one transaction. It collects the changes of the state in memory, which are made
// after the commit succeeded.
type tx struct {
	session
	tallyChange
	w   *writer
	now time.Time // as records keep it
	age int64     // of the ledger

	numbers numbers
	saved   savedNumbers
	events  []job.Event // that it recorded
	removed int         // events
	// rows are those that were written, for the cache; nil where the row must be read
	// from the file.
	rows      map[job.ID]*row
	nextTimer time.Time // no timer is due before; zero for none
	ended     int       // records that reached a final state
	toUnblock []int64   // seqs of blocked records to look at
	sweepMore bool      // there is more to expire
}

// byID reads a record, which the caller may change; ErrNotFound where there is
// none.
func (t *tx) byID(id job.ID) (*row, error) {
	if r, ok := t.cached(id); ok {
		return r, nil
	}
	return single(t.queryJobs(t.stmts.byID, string(id)))
}

func (t *tx) bySeq(seq int64) (*row, error) {
	if r := t.w.rows.getSeq(seq); r != nil {
		return t.byID(r.ID)
	}
	return single(t.queryJobs(t.stmts.bySeq, seq))
}

// cached returns a copy of a row that this transaction or a recent one wrote.
func (t *tx) cached(id job.ID) (*row, bool) {
	r, written := t.rows[id]
	if !written {
		r = t.w.rows.get(id)
	}
	if r == nil {
		return nil, false
	}
	c := *r
	return &c, true
}

// single returns the one row of a query by a unique key, or ErrNotFound.
func single(found []*row, err error) (*row, error) {
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, ledger.ErrNotFound
	}
	return found[0], nil
}

// insert adds a queued record with the next seq. It returns false where the job has a
// record.
func (t *tx) insert(r *row) (bool, error) {
	limits, err := encodeLimits(r.Limits)
	if err != nil {
		return false, err
	}
	labels, err := encodeLabels(r.Labels)
	if err != nil {
		return false, err
	}
	after, err := encodeAfter(r.After)
	if err != nil {
		return false, err
	}
	writes := t.writes
	result, err := t.exec(t.stmts.insert, t.numbers.seq+1, string(r.ID), r.Model.Name, r.Model.Version, r.Sheep, r.Priority, r.Tenant, r.Trace.Parent, r.Trace.State, limits, string(r.State),
		r.Run, fromTime(r.EnqueuedAt), fromTime(r.NotBefore), fromTime(r.WaitUntil), fromTime(r.Deadline), fromTime(r.ChangedAt), r.Delayed, fromTime(r.GiveUpAt()), encodeKeep(r.Keep), labels, r.Idempotency,
		after, r.Blocked, r.Group)
	if err != nil {
		return false, err
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		t.writes = writes // nothing was written
		return false, err
	}
	t.numbers.seq++
	r.Seq = t.numbers.seq
	t.countNew(r)
	t.setTimers(r)
	t.rows[r.ID] = r
	return true, nil
}

// save writes the columns of a record that can change.
func (t *tx) save(r *row) error {
	var failure job.Failure
	if r.Failure != nil {
		failure = *r.Failure
	}
	warnings, err := encodeWarnings(r.Warnings)
	if err != nil {
		return err
	}
	_, err = t.exec(t.stmts.save, string(r.State), r.Attempt, r.Spent, fromTime(r.NotBefore), fromTime(r.WaitUntil), fromTime(r.ClaimedAt), fromTime(r.StartedAt), fromTime(r.FinishedAt),
		fromTime(r.ChangedAt), r.Holder, r.Node, int64(r.Token), r.Cancelling, r.Delayed, fromTime(r.GiveUpAt()), r.EndedAge,
		r.Usage.GPUMemory, r.Usage.GPUTime.Microseconds(), warnings, failure.Type, failure.Message, failure.Traceback,
		r.KeptFor.Microseconds(), r.RemoveAge, int(r.Removal), fromTime(r.RemovedAt), r.Blocked,
		r.Seq)
	if err != nil {
		return err
	}
	if r.State.Final() && !r.stored.state.Final() {
		t.ended++
		if err := t.noteDependents(r.ID); err != nil {
			return err
		}
	}
	t.countChanged(r)
	t.setTimers(r)
	t.rows[r.ID] = r
	return nil
}

// setTimers schedules the times at which the record becomes claimable or fails.
func (t *tx) setTimers(r *row) {
	if r.Delayed && !r.Blocked {
		t.setTimer(r.NotBefore)
	}
	if at := r.GiveUpAt(); !at.IsZero() {
		t.setTimer(at)
	}
}

func (t *tx) setTimer(at time.Time) {
	if t.nextTimer.IsZero() || at.Before(t.nextTimer) {
		t.nextTimer = at
	}
}

// remove deletes a record, which is not claimable.
func (t *tx) remove(r *row) error {
	if _, err := t.exec(t.stmts.remove, r.Seq); err != nil {
		return err
	}
	t.rows[r.ID] = nil
	t.countRemoved(r)
	return nil
}

// record writes the event of a change, nil for none.
func (t *tx) record(made *job.Event) error {
	if made == nil {
		return nil
	}
	t.numbers.event++
	event := *made
	event.Cursor = cursor(t.numbers.event)
	var status job.Status
	var failure job.Failure
	if event.Status != nil {
		status = *event.Status
	}
	if status.Failure != nil {
		failure = *status.Failure
	}
	_, err := t.exec(t.stmts.insertEvent, t.numbers.event, fromTime(event.At), t.age, string(event.Kind), string(event.Job), event.Run, event.Model.Name, event.Model.Version,
		event.Address, event.Tenant, event.Attempt, event.Sheep, event.Node,
		string(event.State), string(event.Cause), event.Reason, event.Delayed,
		fromTime(status.EnqueuedAt), fromTime(status.StartedAt), fromTime(status.FinishedAt), failure.Type, failure.Message, failure.Traceback)
	if err != nil {
		return err
	}
	t.events = append(t.events, event)
	return nil
}

func cursor(event int64) job.Cursor { return job.Cursor(strconv.FormatInt(event, 10)) }

// savedNumbers are the numbers and the age as they are in the file.
type savedNumbers struct {
	numbers
	age int64
}

// saveNumbers writes the numbers that were given out, unless the file has larger ones.
// Where the transaction wrote nothing, it writes nothing: the commit then needs no fsync.
func (t *tx) saveNumbers() error {
	if t.writes == 0 {
		return nil
	}
	saved, given := &t.saved, t.numbers
	if given.seq <= saved.seq && given.token <= saved.token && given.event <= saved.event && given.pruned == saved.pruned &&
		t.age-saved.age < saveAgeWithChanges.Microseconds() {
		return nil
	}
	for _, n := range []struct {
		saved *int64
		given int64
	}{{&saved.seq, given.seq}, {&saved.token, given.token}, {&saved.event, given.event}} {
		if n.given > *n.saved {
			*n.saved = n.given + reserve
		}
	}
	saved.pruned = given.pruned
	return t.writeNumbers()
}

// saveAge writes the ledger's age if it was not written for saveAgeIdle.
func (t *tx) saveAge() error {
	if t.age-t.saved.age < saveAgeIdle.Microseconds() {
		return nil
	}
	return t.writeNumbers()
}

func (t *tx) writeNumbers() error {
	t.saved.age = t.age
	_, err := t.exec(t.stmts.saveNumbers, t.saved.seq, t.saved.token, t.saved.event, t.saved.pruned, t.age, fromTime(t.now))
	return err
}
