package memory

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/lifecycle"
)

// record is a job's record and what callers do not see of it.
type record struct {
	lifecycle.Row
	at indexed
}

// made keeps what a change adds, and drops the oldest records that ended where there
// are more than are kept.
func (l *Ledger) made(r *record, c lifecycle.Change) {
	if a := c.Attempt; a != nil {
		kept := slices.DeleteFunc(l.attempts[r.ID], func(old job.Attempt) bool {
			return old.Run <= r.Run-lifecycle.KeepRuns || old.Run == r.Run && old.Number <= a.Number-lifecycle.KeepAttempts
		})
		l.attempts[r.ID] = append(kept, *a)
		l.charge(r.Tenant, *a)
	}
	l.update(r)
	if c.Event != nil {
		l.events.add(*c.Event)
	}
	if r.State.Final() {
		l.unblock(r.ID)
		l.expire()
	}
}

// unblock sees to the jobs that are after one that ended.
func (l *Ledger) unblock(ended job.ID) {
	for _, r := range slices.Clone(l.index.after[ended]) {
		if r.Blocked {
			l.settle(r)
		}
	}
}

// settle sees to a job that is after others.
func (l *Ledger) settle(r *record) {
	if change := r.Unblock(l.stateOf, l.cfg.Retention, l.moment()); change.Made {
		l.made(r, change)
	}
}

// stateOf is the state of a job, empty where it is not known.
func (l *Ledger) stateOf(id job.ID) job.State {
	if r := l.find(id); r != nil {
		return r.State
	}
	return ""
}

// needed reports whether a job that has not ended is after the given one.
func (l *Ledger) needed(id job.ID) bool {
	if slices.ContainsFunc(l.index.after[id], func(r *record) bool { return !r.State.Final() }) {
		return true
	}
	delete(l.index.after, id)
	return false
}

// apply makes a change of the job's record, as do says, which gets nil for an unknown
// job.
func (l *Ledger) apply(ctx context.Context, doing string, id job.ID, do func(r *lifecycle.Row, m lifecycle.Moment) (lifecycle.Change, error)) (job.Record, error) {
	return l.change(ctx, doing, func(m lifecycle.Moment) (*record, error) {
		r := l.find(id)
		if r == nil {
			_, err := do(nil, m)
			return new(record), err
		}
		change, err := do(&r.Row, m)
		switch {
		case err == nil && change.Made:
			l.made(r, change)
		case err == nil: // what nobody is told of may have changed
			l.update(r)
		}
		return r, err
	})
}

// Create implements ledger.Ledger.
func (l *Ledger) Create(ctx context.Context, rec job.Record) (job.Record, error) {
	return l.change(ctx, "queue job "+string(rec.ID), func(m lifecycle.Moment) (*record, error) {
		enter, err := l.create(rec, m, nil)
		if err != nil {
			return nil, err
		}
		return enter(), nil
	})
}

// CreateAll implements ledger.Ledger.
func (l *Ledger) CreateAll(ctx context.Context, recs []job.Record) ([]job.Record, error) {
	created := make([]job.Record, len(recs))
	err := l.call(ctx, "queue several jobs", func() error {
		m := l.moment()
		enter := make([]func() *record, len(recs))
		for i, rec := range recs {
			var err error
			if enter[i], err = l.create(rec, m, recs[:i]); err != nil {
				return &ledger.RecordError{ID: rec.ID, Err: err}
			}
		}
		for i := range recs {
			created[i] = enter[i]().copy()
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return created, nil
}

// create checks a new record and returns what enters it. Those that are entered before
// it are given.
func (l *Ledger) create(rec job.Record, m lifecycle.Moment, before []job.Record) (enter func() *record, err error) {
	find := func(id job.ID) *job.Record {
		for i := range before {
			if before[i].ID == id {
				queued := before[i]
				queued.State = job.Queued
				return &queued
			}
		}
		if r := l.find(id); r != nil {
			return &r.Record
		}
		return nil
	}
	if slices.ContainsFunc(before, func(b job.Record) bool { return b.ID == rec.ID }) {
		return nil, ledger.ErrExists
	}
	old := l.find(rec.ID)
	var replaced *lifecycle.Row
	if old != nil {
		replaced = &old.Row
	}
	blocked, afterErr := ledger.CheckAfter(rec, find)
	rec.Blocked = blocked
	row, change, err := lifecycle.Create(replaced, l.needed(rec.ID), rec, m)
	if err == nil {
		err = afterErr
	}
	if err == nil {
		err = l.mayEnd(rec)
	}
	if err != nil {
		return nil, err
	}
	return func() *record {
		delete(l.uploads, rec.ID)
		if old != nil {
			l.drop(old)
		}
		l.seq++
		row.Seq = l.seq
		r := &record{Row: *row}
		l.jobs = append(l.jobs, r)
		l.enter(r)
		l.webhooks.add(r, rec.Webhook)
		l.made(r, change)
		return r
	}, nil
}

// drop removes a record; its attempts stay.
func (l *Ledger) drop(old *record) {
	if i, ok := slices.BinarySearchFunc(l.jobs, old.Seq, func(r *record, seq int64) int { return cmp.Compare(r.Seq, seq) }); ok {
		l.jobs = slices.Delete(l.jobs, i, i+1)
	}
	l.forget(old)
}

// forget takes a record out of all but the list of all jobs.
func (l *Ledger) forget(old *record) {
	l.leave(old)
	l.webhooks.removed(old.ID)
}

// Claim implements ledger.Ledger.
func (l *Ledger) Claim(ctx context.Context, slot ledger.Slot) (*ledger.Claim, error) {
	var claim *ledger.Claim
	err := l.call(ctx, "claim a job for sheep "+slot.Sheep, func() error {
		r := l.choose(slot)
		if r == nil {
			return nil
		}
		l.token++
		l.made(r, r.Claim(slot, l.token, l.moment()))
		claim = &ledger.Claim{Record: r.copy(), Token: r.Token}
		return nil
	})
	return claim, err
}

// choose is the job that the slot gets, nil for none.
func (l *Ledger) choose(slot ledger.Slot) *record {
	if len(l.index.waiting) == 0 {
		return nil
	}
	admission := l.cfg.Policy.Admit(l.load())
	if slot.Only != "" {
		r := l.find(slot.Only)
		if r == nil || !r.Claimable() || !mayTake(slot, r.group(), admission) {
			return nil
		}
		return r
	}
	var first *record
	for key, g := range l.index.waiting {
		if !mayTake(slot, key, admission) {
			continue
		}
		r := g.oldest()
		if first == nil || before(r, first, slot, admission) || !before(first, r, slot, admission) && r.Seq < first.Seq {
			first = r
		}
	}
	return first
}

// mayTake reports whether the slot may take jobs of a group.
func mayTake(slot ledger.Slot, of groupKey, admission ledger.Admission) bool {
	may, own := slot.Answers(of.address)
	if !own && slot.Only == "" && slices.Contains(slot.Except, of.model) {
		may = false
	}
	return may && admission.Reached(of.tenant, of.model) == nil
}

// before reports whether a slot takes a rather than b, whichever is the older.
func before(a, b *record, slot ledger.Slot, admission ledger.Admission) bool {
	if a.Priority != b.Priority {
		return a.Priority > b.Priority
	}
	if mine, theirs := a.Model == slot.Prefer, b.Model == slot.Prefer; mine != theirs {
		return mine
	}
	return admission.Share(a.Tenant) < admission.Share(b.Tenant)
}

// Start implements ledger.Ledger.
func (l *Ledger) Start(ctx context.Context, id job.ID, token ledger.Token) (job.Record, error) {
	return l.apply(ctx, "start job "+string(id), id, func(r *lifecycle.Row, m lifecycle.Moment) (lifecycle.Change, error) {
		return r.Start(token, m)
	})
}

// Finish implements ledger.Ledger. An outcome that is none is of class
// errdefs.ErrInternal.
func (l *Ledger) Finish(ctx context.Context, id job.ID, token ledger.Token, o ledger.Outcome) (job.Record, error) {
	return l.apply(ctx, "finish job "+string(id), id, func(r *lifecycle.Row, m lifecycle.Moment) (lifecycle.Change, error) {
		if err := lifecycle.CheckOutcome(o); err != nil {
			return lifecycle.Change{}, err
		}
		return r.Finish(token, o, l.cfg.Retention, m)
	})
}

// Release implements ledger.Ledger. A return without a cause is of class
// errdefs.ErrInternal.
func (l *Ledger) Release(ctx context.Context, id job.ID, token ledger.Token, why ledger.Return) (job.Record, error) {
	return l.apply(ctx, "release job "+string(id), id, func(r *lifecycle.Row, m lifecycle.Moment) (lifecycle.Change, error) {
		if err := lifecycle.CheckReturn(why); err != nil {
			return lifecycle.Change{}, err
		}
		return r.Release(token, why, l.cfg.Retention, m)
	})
}

// Cancel implements ledger.Ledger.
func (l *Ledger) Cancel(ctx context.Context, id job.ID) (job.Record, error) {
	return l.apply(ctx, "cancel job "+string(id), id, func(r *lifecycle.Row, m lifecycle.Moment) (lifecycle.Change, error) {
		return r.Cancel(l.cfg.Retention, m)
	})
}

// attempt is the one under way.
func (r *record) attempt() job.Attempt {
	return job.Attempt{Run: r.Run, Number: r.Attempt, Node: r.Node, Sheep: r.Holder, Began: r.ClaimedAt, Started: r.StartedAt}
}

// expire drops the records that ended first, where there are more than are
// kept; those whose files are to be removed stay. It looks at all records, so it waits
// until there are an eighth more.
func (l *Ledger) expire() {
	ended := func() int {
		return l.index.counts[job.Done] + l.index.counts[job.Failed] + l.index.counts[job.Cancelled]
	}
	if n := ended(); n <= l.cfg.KeepJobs || n < l.expireAt {
		return
	}
	defer func() { l.expireAt = ended() + l.cfg.KeepJobs/8 }()
	var expirable []*record
	for _, r := range l.jobs {
		if r.State.Final() && r.RemoveAge == 0 && !l.needed(r.ID) {
			expirable = append(expirable, r)
		}
	}
	slices.SortStableFunc(expirable, func(a, b *record) int { return cmp.Compare(a.EndedAge, b.EndedAge) })
	gone := make(map[*record]bool)
	for _, oldest := range expirable[:max(len(expirable)-l.cfg.KeepJobs, 0)] {
		gone[oldest] = true
		l.forget(oldest)
		delete(l.attempts, oldest.ID)
	}
	if len(gone) > 0 {
		l.jobs = slices.DeleteFunc(l.jobs, func(r *record) bool { return gone[r] })
	}
}

// runTimers makes jobs claimable whose time has come, fails those that waited for
// too long, and has itself called when it is time again.
func (l *Ledger) runTimers() {
	if l.closed {
		return
	}
	m := l.moment()
	due, next := l.index.timers.due(m.Now)
	for _, r := range due {
		if change := r.Due(m); change.Made { // made before the next, which may end the job
			l.made(r, change)
		}
		if change := r.GiveUp(l.cfg.Retention, m); change.Made {
			l.made(r, change)
		}
	}
	if len(due) > 0 { // what was made may have become due later
		_, next = l.index.timers.due(time.Time{})
	}
	l.arm(next, m.Now)
}

// arm has runTimers be called at a time of the ledger's clock; zero for never.
func (l *Ledger) arm(next, now time.Time) {
	if next.IsZero() {
		if l.timer != nil {
			l.timer.Stop()
			l.timer = nil
		}
		return
	}
	const clockJumps = time.Hour // the clock is looked at again, should it have jumped
	wait := min(next.Sub(now), clockJumps)
	at := time.Now().Add(wait)
	if l.timer != nil && at.Equal(l.armed) {
		return
	}
	if l.timer != nil {
		l.timer.Stop()
	}
	l.armed = at
	l.timer = time.AfterFunc(wait, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.runTimers()
	})
}

// inOrder compares groups of waiting jobs: those with most jobs come first.
func inOrder(a, b ledger.Waiting) int {
	return cmp.Or(cmp.Compare(b.Jobs, a.Jobs), cmp.Compare(a.Model.Name, b.Model.Name),
		cmp.Compare(a.Model.Version, b.Model.Version), cmp.Compare(a.Sheep, b.Sheep))
}
