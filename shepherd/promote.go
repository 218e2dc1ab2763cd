package shepherd

import (
	"context"
	"errors"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/storage"
)

// fencerOf is what keeps the outputs of attempts on several nodes apart; nil where the
// ledger is this node's alone, and an attempt begins only when the one before has let
// go of the job's place.
func fencerOf(cfg Config) storage.Fencer {
	if cfg.Peers == nil {
		return nil
	}
	fencer, _ := cfg.Store.(storage.Fencer)
	return fencer
}

// storeResults stores the outputs of an attempt; replace says that the job's place may
// hold others.
func (c *concluder) storeResults(ctx context.Context, a *attempt, replace bool) (storage.Collected, error) {
	l := c.lane
	if l.fencer == nil {
		return l.store.Collect(ctx, a.ID, a.dir.job, replace)
	}
	if replace {
		if err := l.fencer.Fence(ctx, a.ID, int64(a.Token)); err != nil {
			return storage.Collected{}, err
		}
	}
	apart, err := l.fencer.CollectApart(ctx, a.ID, int64(a.Token), a.dir.job)
	if err != nil {
		return storage.Collected{}, err
	}
	// Whoever gets the job after this has seen everything that was stored apart, and
	// removes it before it promotes its own: then the copies below fail.
	if err := c.stillHeld(ctx, a); err != nil {
		return storage.Collected{}, err
	}
	if err := apart.Promote(ctx, replace); err != nil {
		if errors.Is(err, storage.ErrFenced) {
			err = errors.Join(c.stillHeld(ctx, a), err)
		}
		return storage.Collected{}, err
	}
	if err := apart.Discard(ctx); err != nil {
		l.log.Warn("Copies of a job's outputs stay in storage until the job is removed", "job", a.ID, "error", err)
	}
	return apart.Collected(), nil
}

// stillHeld returns ledger.ErrFenced where the attempt is over for the ledger.
func (c *concluder) stillHeld(ctx context.Context, a *attempt) error {
	_, err := c.lane.retryLedger(ctx, a.ID, func() (job.Record, error) {
		return c.lane.ledger.Start(ctx, a.ID, a.Token) // which it has been
	})
	if errors.Is(err, ledger.ErrFenced) {
		a.stopper.stop(errFenced)
	}
	return err
}
