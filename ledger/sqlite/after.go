package sqlite

import (
	"errors"
	"slices"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// noteDependents adds the jobs that are after one that ends to those to unblock.
func (t *tx) noteDependents(id job.ID) error {
	if t.blocked <= 0 && !t.w.tally.anyBlocked() {
		return nil
	}
	return t.query(func(scan func(...any) error) error {
		var seq int64
		if err := scan(&seq); err != nil {
			return err
		}
		t.toUnblock = append(t.toUnblock, seq)
		return nil
	}, t.stmts.dependents, string(id))
}

// unblock makes blocked jobs claimable, or fails them, where the jobs that they are after
// have ended in this transaction. A job that fails by this may end others in turn.
func (t *tx) unblock() error {
	for len(t.toUnblock) > 0 {
		seqs := slices.Compact(slices.Sorted(slices.Values(t.toUnblock)))
		t.toUnblock = nil
		for _, seq := range seqs {
			r, err := t.bySeq(seq)
			if errors.Is(err, ledger.ErrNotFound) || err == nil && !r.Blocked {
				continue
			}
			if err == nil {
				err = t.unblockOne(r)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *tx) unblockOne(r *row) error {
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
	return t.writeChange(r, change)
}
