package sqlite

import (
	"context"
	"database/sql"
	"errors"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// # Overtaking
//
// Each waiting job may be overtaken MaxOvertakes times. Counting per job would
// mean to touch every older job at every claim out of order; instead such a
// claim leaves one row in the table overtakes, and how often a job was
// overtaken is how many rows with a later place there are of slots that could
// have run it:
//
//   - for a job addressed to no sheep, the rows of all slots but those that
//     took addressed jobs only;
//   - for one addressed to a sheep, all rows of that sheep.
//
// Within either group the oldest job has the most such rows, so it is enough
// to look at the oldest. Since none gets beyond the bound, no more rows than
// that are ever counted.
//
// That holds for jobs that have waited since they were created. One that was
// held and put back was not overtaken while it was held, though rows were
// added. Such jobs are few, so each has a counter of its own: Claim sets it
// from the rows, and while the job waits again, claims out of order raise it.

// pruneEvery is how many rows the table overtakes may gain before those that no
// waiting job can count any more are removed.
const pruneEvery = 512

// head is the first waiting job of one kind in the scheduling order without
// regard to models.
type head struct {
	seq      int64
	priority int
	open     bool // addressed to no sheep
	putBack  bool
}

// Claim implements ledger.Ledger.
func (l *Ledger) Claim(ctx context.Context, slot ledger.Slot) (*ledger.Claim, error) {
	// A sheep that has taken the last job asks for another at once: nothing
	// waiting is answered from memory. Whoever learns of a job that came since
	// does so after it was counted.
	counts, err := l.Count(ctx)
	if err != nil {
		return nil, err
	}
	if counts[job.Queued] == 0 {
		return nil, nil
	}
	var claim *ledger.Claim
	err = l.change(ctx, "claim a job for sheep "+slot.Sheep,
		func(t *tx) (err error) {
			claim, err = t.claim(slot)
			return err
		},
		// A claim that nobody got would keep its job from everybody.
		func(t *tx) error {
			if claim == nil {
				return nil
			}
			return t.release(claim.ID, claim.Token, true)
		})
	if err != nil {
		return nil, err
	}
	return claim, nil
}

func (t *tx) claim(slot ledger.Slot) (*ledger.Claim, error) {
	r, err := t.choose(slot)
	if err != nil || r == nil {
		return nil, err
	}
	t.counters.token++
	r.token = ledger.Token(t.counters.token)
	r.Holder, r.Node = slot.Sheep, slot.Node
	r.Attempt++
	if !slot.Ahead {
		r.State, r.StartedAt = job.Processing, t.now
	}
	if err := t.save(r, job.Queued); err != nil {
		return nil, err
	}
	return &ledger.Claim{Record: r.Record, Token: r.token}, nil
}

// choose picks the job that the slot gets, nil for none.
func (t *tx) choose(slot ledger.Slot) (*row, error) {
	if slot.Only != "" {
		return t.chooseOnly(slot)
	}
	heads, err := t.heads(slot)
	if err != nil || len(heads) == 0 {
		return nil, err
	}
	seq, err := t.chooseExhausted(slot, heads)
	if err == nil && seq == 0 {
		seq, err = t.chooseLoaded(slot, heads[0].priority)
	}
	if err != nil {
		return nil, err
	}
	if seq == 0 {
		seq = heads[0].seq
		for _, h := range heads {
			seq = min(seq, h.seq)
		}
	}
	r, err := t.bySeq(seq)
	if err != nil {
		return nil, err
	}
	if err := t.settle(r); err != nil {
		return nil, err
	}
	return r, t.overtake(slot, r, heads)
}

// chooseOnly picks the one job that the slot asks for, if it may run it now.
// That is no choice by model, so nothing counts as overtaken.
func (t *tx) chooseOnly(slot ledger.Slot) (*row, error) {
	r, err := t.byID(slot.Only)
	if errors.Is(err, ledger.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	addressed := r.Sheep == slot.Sheep
	if r.State != job.Queued || r.token != 0 || !addressed && (r.Sheep != "" || slot.Addressed) {
		return nil, nil
	}
	return r, t.settle(r)
}

// settle gives a job that is claimed for the first time its counter.
func (t *tx) settle(r *row) (err error) {
	if !r.putBack {
		r.overtaken, err = t.overtaken(head{seq: r.Seq, priority: r.Priority, open: r.Sheep == ""}, r.Sheep)
	}
	return err
}

// heads are those of the highest priority there is for the slot.
func (t *tx) heads(slot ledger.Slot) ([]head, error) {
	rows, err := t.query(t.do.heads, slot.Sheep)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	heads := make([]head, 0, 4)
	for rows.Next() {
		var h head
		if err := rows.Scan(&h.seq, &h.priority, &h.open, &h.putBack); err != nil {
			return nil, err
		}
		switch {
		case h.open && slot.Addressed, len(heads) > 0 && h.priority < heads[0].priority:
			continue
		case len(heads) > 0 && h.priority > heads[0].priority:
			heads = heads[:0]
		}
		heads = append(heads, h)
	}
	return heads, rows.Err()
}

// chooseExhausted picks the oldest job that may be overtaken no more, 0 for
// none.
func (t *tx) chooseExhausted(slot ledger.Slot, heads []head) (int64, error) {
	var oldest int64
	consider := func(seq int64) {
		if oldest == 0 || seq < oldest {
			oldest = seq
		}
	}
	putBack := false
	for _, h := range heads {
		if h.putBack {
			putBack = true
			continue
		}
		n, err := t.overtaken(h, slot.Sheep)
		if err != nil {
			return 0, err
		}
		if n >= t.w.cfg.MaxOvertakes {
			consider(h.seq)
		}
	}
	if putBack {
		var seq sql.NullInt64
		err := t.queryRow(t.do.exhausted, slot.Sheep, also(slot), heads[0].priority, t.w.cfg.MaxOvertakes).Scan(&seq)
		if err != nil {
			return 0, err
		}
		if seq.Valid {
			consider(seq.Int64)
		}
	}
	return oldest, nil
}

// chooseLoaded picks the oldest job whose model the slot has loaded, 0 for none.
func (t *tx) chooseLoaded(slot ledger.Slot, priority int) (int64, error) {
	if slot.Loaded.IsZero() {
		return 0, nil
	}
	var seq sql.NullInt64
	err := t.queryRow(t.do.loaded, slot.Sheep, also(slot), priority, slot.Loaded.Name, slot.Loaded.Version).Scan(&seq)
	return seq.Int64, err
}

// overtaken is how often a job that has waited since it was created was
// overtaken, by its place or that of the sheep it is addressed to.
func (t *tx) overtaken(h head, sheep string) (n int, err error) {
	if t.overtakes == 0 {
		return 0, nil
	}
	if h.open {
		err = t.queryRow(t.do.overtakesOfAny, h.priority, h.seq, t.w.cfg.MaxOvertakes).Scan(&n)
	} else {
		err = t.queryRow(t.do.overtakesBySheep, sheep, h.priority, h.seq, t.w.cfg.MaxOvertakes).Scan(&n)
	}
	return n, err
}

// overtake notes that the slot gets r before older jobs, if there are any.
func (t *tx) overtake(slot ledger.Slot, r *row, heads []head) error {
	waiting, putBack := false, false
	for _, h := range heads {
		if h.seq < r.Seq {
			waiting = waiting || !h.putBack
			putBack = putBack || h.putBack
		}
	}
	if waiting {
		if _, err := t.exec(t.do.overtake, r.Priority, r.Seq, slot.Sheep, slot.Addressed); err != nil {
			return err
		}
		t.overtakes++
	}
	if putBack {
		if _, err := t.exec(t.do.bump, slot.Sheep, also(slot), r.Priority, r.Seq); err != nil {
			return err
		}
	}
	return nil
}

// also is the other address whose jobs the slot takes beside its own: none in
// particular, or its own again.
func also(slot ledger.Slot) string {
	if slot.Addressed {
		return slot.Sheep
	}
	return ""
}

// prune removes the overtakes that no waiting job can count any more, once
// there are many.
func (t *tx) prune() error {
	if t.overtakes <= t.w.pruneAt {
		return nil
	}
	result, err := t.exec(t.do.prune)
	if err != nil {
		return err
	}
	n, err := result.RowsAffected()
	t.overtakes -= int(n)
	t.pruned = true
	return err
}
