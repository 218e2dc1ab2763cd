package shepherd

import (
	"context"
	"errors"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/storage"
)

// fencerOf returns the Fencer that separates the outputs of attempts on different nodes. It
// is nil if the ledger is not shared: then an attempt begins only after the previous one has
// finished writing to the job's place.
func fencerOf(cfg Config) storage.Fencer {
	if cfg.Peers == nil {
		return nil
	}
	fencer, _ := cfg.Store.(storage.Fencer)
	return fencer
}

// storeResults stores the outputs of an attempt. replace is set if the job's place may hold
// outputs of an earlier one.
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
	// Whoever gets the job after this check sees everything that was stored apart, and
	// removes it before it promotes its own outputs: then Promote below fails.
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

// stillHeld returns ledger.ErrFenced if the attempt has ended in the ledger.
func (c *concluder) stillHeld(ctx context.Context, a *attempt) error {
	_, err := c.lane.retryLedger(ctx, a.ID, func() (job.Record, error) {
		return c.lane.ledger.Start(ctx, a.ID, a.Token) // repeats the start, which only checks the token
	})
	if errors.Is(err, ledger.ErrFenced) {
		a.stopper.stop(errFenced)
	}
	return err
}
