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
		for _, s := range saved { // before anything is written: a refusal must leave nothing
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
	defer func() { t.rows[r.ID] = nil }() // the record's times and limits are as another ledger told them
	r.State = job.Queued                  // entered as any job, and then saved as it is
	if entered, err := t.insert(r); err != nil || !entered {
		return cmp.Or(err, ledger.ErrExists)
	}
	r.State = restored.State
	if err := t.addWebhook(r); err != nil {
		return err
	}
	if r.Blocked { // what it waits for may have ended by being restored
		t.unsettled = append(t.unsettled, r.Seq)
	}
	for _, a := range attempts {
		if err := t.insertAttempt(r.ID, a); err != nil {
			return err
		}
	}
	if s.Record.State.Final() {
		if _, err := t.exec(t.do.webhooks.complete, string(r.ID), r.Run); err != nil {
			return err
		}
	}
	if err := t.save(r); err != nil {
		return err
	}
	return t.record(event)
}
