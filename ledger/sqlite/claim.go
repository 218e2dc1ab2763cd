package sqlite

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// head is the first claimable job of an address or a model.
type head struct {
	seq      int64
	priority int
	sheep    string // that it is addressed to
	model    job.Model
}

// compareHeads compares heads by priority, then age.
func compareHeads(a, b head) int {
	return cmp.Or(cmp.Compare(b.priority, a.priority), cmp.Compare(a.seq, b.seq))
}

// Claim implements ledger.Ledger.
func (l *Ledger) Claim(ctx context.Context, slot ledger.Slot) (*ledger.Claim, error) {
	doing := "claim a job for sheep " + slot.Sheep
	// A sheep that has taken the last job asks for another at once. The answer that there
	// is none comes from memory. A new job is counted before its event is published.
	some := false
	err := l.call(doing, func() error {
		some = l.writer.tally.anyFor(slot)
		return ctx.Err()
	})
	if err != nil || !some {
		return nil, err
	}
	var claim *ledger.Claim
	err = l.change(ctx, doing,
		func(t *tx) (err error) {
			claim, err = t.claim(slot)
			return err
		},
		// A claim that no caller got would block its job.
		func(t *tx) error {
			if claim == nil {
				return nil
			}
			_, err := t.release(claim.ID, claim.Token, ledger.Return{Cause: job.CauseHandedBack, Reason: "the sheep did not wait for its claim"})
			return err
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
	t.numbers.token++
	if err := t.writeChange(r, r.Claim(slot, ledger.Token(t.numbers.token), t.moment())); err != nil {
		return nil, err
	}
	return &ledger.Claim{Record: r.Record, Token: r.Token}, nil
}

// choose returns the job that the slot gets, nil for none.
func (t *tx) choose(slot ledger.Slot) (*row, error) {
	if slot.Only != "" {
		return t.chooseOnly(slot)
	}
	if t.w.cfg.Policy.BoundsClaims() {
		return t.chooseBounded(slot)
	}
	heads, err := t.heads(slot)
	if err != nil || len(heads) == 0 {
		return nil, err
	}
	first := slices.MinFunc(heads, compareHeads)
	if !slot.Prefer.IsZero() && first.model != slot.Prefer {
		if first, err = t.preferred(slot, first); err != nil {
			return nil, err
		}
	}
	return t.bySeq(first.seq)
}

// chooseOnly returns the one job that the slot asks for, if it may run it now.
func (t *tx) chooseOnly(slot ledger.Slot) (*row, error) {
	r, err := t.byID(slot.Only)
	if errors.Is(err, ledger.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if may, _ := slot.Answers(r.Sheep); !may || !r.Claimable() || t.admission().Reached(r.Tenant, r.Model) != nil {
		return nil, nil
	}
	return r, nil
}

// heads returns the first job of each address of the slot: of the sheep's own addresses
// the first job, of the others the first that it can run.
func (t *tx) heads(slot ledger.Slot) ([]head, error) {
	var heads []head
	var excluded []string // addresses whose first job the slot cannot run
	each := func(scan func(...any) error) error {
		var h head
		if err := scan(&h.seq, &h.priority, &h.sheep, &h.model.Name, &h.model.Version); err != nil {
			return err
		}
		switch may, own := slot.Answers(h.sheep); {
		case own || may && !slices.Contains(slot.Except, h.model):
			heads = append(heads, h)
		case may:
			excluded = append(excluded, h.sheep)
		}
		return nil
	}
	if err := t.query(each, t.stmts.heads, slot.Sheep); err != nil {
		return nil, err
	}
	further := slot.Own
	if !slot.Addressed {
		further = slices.Concat(slot.Own, slot.Open)
	}
	for _, address := range further {
		if err := t.query(each, t.stmts.head, address); err != nil {
			return nil, err
		}
	}
	for _, address := range excluded {
		err := t.query(func(scan func(...any) error) error {
			h := head{sheep: address}
			if err := scan(&h.seq, &h.priority, &h.model.Name, &h.model.Version); err != nil {
				return err
			}
			if !slices.Contains(slot.Except, h.model) {
				heads = append(heads, h)
			}
			return nil
		}, t.stmts.byModel, address)
		if err != nil {
			return nil, err
		}
	}
	return heads, nil
}

// preferred returns the oldest job of the preferred model with the priority of the first
// job, or else the first job.
func (t *tx) preferred(slot ledger.Slot, first head) (head, error) {
	addresses := slot.Owned()
	if !slices.Contains(slot.Except, slot.Prefer) {
		addresses = append(addresses, slot.Opened()...)
	}
	found := head{}
	for _, address := range addresses {
		h := head{priority: first.priority}
		ok, err := t.queryOne([]any{&h.seq}, t.stmts.preferred, address, first.priority, slot.Prefer.Name, slot.Prefer.Version)
		if err != nil {
			return head{}, err
		}
		if ok && (found.seq == 0 || h.seq < found.seq) {
			found = h
		}
	}
	if found.seq == 0 {
		return first, nil
	}
	return found, nil
}
