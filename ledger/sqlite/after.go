package sqlite

import (
	"errors"
	"slices"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// ending notes the blocked jobs that are after one that ends.
func (t *tx) ending(id job.ID) error {
	if t.blocked <= 0 && !t.w.tally.anyBlocked() {
		return nil
	}
	return t.query(func(scan func(...any) error) error {
		var seq int64
		if err := scan(&seq); err != nil {
			return err
		}
		t.unsettled = append(t.unsettled, seq)
		return nil
	}, t.do.dependents, string(id))
}

// settle makes blocked jobs claimable, or fails them, where what they are after has ended
// in this transaction; and so on.
func (t *tx) settle() error {
	for len(t.unsettled) > 0 {
		seqs := slices.Compact(slices.Sorted(slices.Values(t.unsettled)))
		t.unsettled = nil
		for _, seq := range seqs {
			r, err := t.bySeq(seq)
			if errors.Is(err, ledger.ErrNotFound) || err == nil && !r.Blocked {
				continue
			}
			if err == nil {
				err = t.settleOne(r)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *tx) settleOne(r *row) error {
	var unread error
	change := r.Unblock(func(id job.ID) job.State {
		other, err := t.byID(id)
		switch {
		case errors.Is(err, ledger.ErrNotFound):
			return ""
		case err != nil:
			unread = err
			return job.Queued
		}
		return other.State
	}, t.keep(), t.moment())
	if unread != nil {
		return unread
	}
	return t.made(r, change)
}
