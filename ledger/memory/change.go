package memory

import (
	"cmp"
	"context"
	"slices"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/lifecycle"
)

// Create implements ledger.Ledger.
func (l *Ledger) Create(ctx context.Context, rec job.Record) (job.Record, error) {
	return l.change(ctx, "queue job "+string(rec.ID), func(m lifecycle.Moment) (*record, error) {
		add, err := l.create(rec, m, nil)
		if err != nil {
			return nil, err
		}
		return add(), nil
	})
}

// CreateAll implements ledger.Ledger.
func (l *Ledger) CreateAll(ctx context.Context, recs []job.Record) ([]job.Record, error) {
	created := make([]job.Record, len(recs))
	err := l.call(ctx, "queue several jobs", func() error {
		m := l.moment()
		add := make([]func() *record, len(recs))
		for i, rec := range recs {
			var err error
			if add[i], err = l.create(rec, m, recs[:i]); err != nil {
				return &ledger.RecordError{ID: rec.ID, Err: err}
			}
		}
		for i := range recs {
			created[i] = add[i]().copy()
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return created, nil
}

// create checks a new record, which is created together with those before it, and returns
// a function that adds it.
func (d *database) create(rec job.Record, m lifecycle.Moment, before []job.Record) (add func() *record, err error) {
	find := func(id job.ID) *job.Record {
		for i := range before {
			if before[i].ID == id {
				queued := before[i]
				queued.State = job.Queued
				return &queued
			}
		}
		if r := d.find(id); r != nil {
			return &r.Record
		}
		return nil
	}
	if slices.ContainsFunc(before, func(b job.Record) bool { return b.ID == rec.ID }) {
		return nil, ledger.ErrExists
	}
	old := d.find(rec.ID)
	var replaced *lifecycle.Row
	if old != nil {
		replaced = &old.Row
	}
	blocked, afterErr := ledger.CheckAfter(rec, find)
	rec.Blocked = blocked
	row, change, err := lifecycle.Create(replaced, d.needed(rec.ID), rec, m)
	if err == nil {
		err = afterErr
	}
	if err == nil {
		err = d.checkUpload(rec)
	}
	if err != nil {
		return nil, err
	}
	return func() *record {
		delete(d.uploads, rec.ID)
		if old != nil {
			d.drop(old)
		}
		d.last.seq++
		row.Seq = d.last.seq
		r := &record{Row: *row}
		d.jobs = append(d.jobs, r)
		d.enter(r)
		d.webhooks.add(r, rec.Webhook)
		d.applied(r, change)
		return r
	}, nil
}

// Claim implements ledger.Ledger.
func (l *Ledger) Claim(ctx context.Context, slot ledger.Slot) (*ledger.Claim, error) {
	var claim *ledger.Claim
	err := l.call(ctx, "claim a job for sheep "+slot.Sheep, func() error {
		r := l.choose(slot)
		if r == nil {
			return nil
		}
		l.last.token++
		l.applied(r, r.Claim(slot, l.last.token, l.moment()))
		claim = &ledger.Claim{Record: r.copy(), Token: r.Token}
		return nil
	})
	return claim, err
}

// choose returns the job that the slot gets, nil for none.
func (d *database) choose(slot ledger.Slot) *record {
	if len(d.index.waiting) == 0 {
		return nil
	}
	admission := d.cfg.Policy.Admit(d.load())
	if slot.Only != "" {
		r := d.find(slot.Only)
		if r == nil || !r.Claimable() || !mayTake(slot, r.group(), admission) {
			return nil
		}
		return r
	}
	var first *record
	for key, g := range d.index.waiting {
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

// before reports whether a comes before b for a slot, without comparing their age.
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

// attempt is the attempt under way.
func (r *record) attempt() job.Attempt {
	return job.Attempt{Run: r.Run, Number: r.Attempt, Node: r.Node, Sheep: r.Holder, Began: r.ClaimedAt, Started: r.StartedAt}
}

// inOrder compares groups of waiting jobs: those with most jobs come first.
func inOrder(a, b ledger.Waiting) int {
	return cmp.Or(cmp.Compare(b.Jobs, a.Jobs), cmp.Compare(a.Model.Name, b.Model.Name),
		cmp.Compare(a.Model.Version, b.Model.Version), cmp.Compare(a.Sheep, b.Sheep))
}
