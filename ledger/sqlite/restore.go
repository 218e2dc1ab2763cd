package sqlite

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/lifecycle"
)

var _ ledger.Restorer = (*Ledger)(nil)

// Restore implements ledger.Restorer.
func (l *Ledger) Restore(ctx context.Context, saved []ledger.Saved) error {
	return l.change(ctx, "restore records", func(t *tx) error {
		for _, s := range saved { // before the first write: a refusal changes nothing
			switch _, err := t.byID(s.Record.ID); {
			case err == nil:
				return fmt.Errorf("job %s: %w", s.Record.ID, ledger.ErrExists)
			case !errors.Is(err, ledger.ErrNotFound):
				return err
			}
		}
		for _, s := range saved {
			if err := t.restore(s); err != nil {
				return err
			}
		}
		return nil
	}, nil)
}

func (t *tx) restore(s ledger.Saved) error {
	restored, attempts, event := lifecycle.Restore(s, t.keep(), t.moment())
	r := &row{Row: *restored}
	defer func() { t.rows[r.ID] = nil }() // not cached: other ledgers may keep times with another precision
	r.State = job.Queued                  // inserted as a queued job, then saved with its state
	if entered, err := t.insert(r); err != nil || !entered {
		return cmp.Or(err, ledger.ErrExists)
	}
	r.State = restored.State
	if err := t.addWebhook(r); err != nil {
		return err
	}
	if r.Blocked { // the jobs that it is after may be restored as ended
		t.toUnblock = append(t.toUnblock, r.Seq)
	}
	for _, a := range attempts {
		if err := t.insertAttempt(r.ID, a); err != nil {
			return err
		}
	}
	if s.Record.State.Final() {
		if _, err := t.exec(t.stmts.webhooks.complete, string(r.ID), r.Run); err != nil {
			return err
		}
	}
	if err := t.save(r); err != nil {
		return err
	}
	return t.record(event)
}
