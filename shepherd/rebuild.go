package shepherd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/storage"
)

// RebuildConfig is what Rebuild works with.
type RebuildConfig struct {
	Ledger RebuildLedger
	Store  storage.Store
	// DryRun has nothing changed.
	DryRun bool
	// Report is called for each job that is queued again or cannot be, as it
	// becomes known.
	Report func(Rebuilt)
}

// RebuildLedger is what Rebuild needs of a ledger.Ledger.
type RebuildLedger interface {
	Get(ctx context.Context, id job.ID) (job.Record, error)
	Create(ctx context.Context, rec job.Record) (job.Record, error)
}

// Rebuilt is what became of one job whose end is not known.
type Rebuilt struct {
	ID    job.ID
	Model job.Model
	// Trouble says why the job is not in the queue; nil where it is.
	Trouble error
}

// RebuildCounts is how many jobs Rebuild found.
type RebuildCounts struct {
	Queued  int // entered in the ledger
	Known   int // the ledger has them
	Ended   int // their end is in storage
	Refused int // they cannot be queued
}

// errNoState says that a place has inputs and no job_status.json.
var errNoState = errors.New("its job_status.json is missing, so its model is not known: if it was submitted, submit it again")

// Rebuild enters in the ledger what storage knows of jobs that have not ended and
// the ledger does not know: the way back after the state directory was lost. Such
// a job gets the model and the place in the queue that job_status.json gives it;
// its sheep, priority, limits and tenant are not kept in storage, and are lost. A
// job that was running runs again. It may be called again after it failed. The
// error is the ledger's or the storage's.
func Rebuild(ctx context.Context, cfg RebuildConfig) (RebuildCounts, error) {
	var counts RebuildCounts
	type queued struct {
		rec job.Record
		at  time.Time
	}
	var lost []queued
	refuse := func(id job.ID, m job.Model, why error) {
		counts.Refused++
		cfg.Report(Rebuilt{ID: id, Model: m, Trouble: why})
	}
	err := cfg.Store.Jobs(ctx, func(id job.ID) error {
		switch _, err := cfg.Ledger.Get(ctx, id); {
		case err == nil:
			counts.Known++
			return nil
		case !errors.Is(err, ledger.ErrNotFound):
			return err
		}
		status, err := cfg.Store.Status(ctx, id)
		switch {
		case errdefs.IsNotFound(err):
			refuse(id, job.Model{}, errNoState)
			return nil
		case errdefs.IsDataLoss(err):
			refuse(id, job.Model{}, err)
			return nil
		case err != nil:
			return err
		case status.State.Final():
			counts.Ended++
			return nil
		case status.Accepted && status.Failure != nil:
			refuse(id, status.Model, errors.New(status.Failure.Message))
			return nil
		}
		lost = append(lost, queued{job.Record{ID: id, Model: status.Model}, status.EnqueuedAt})
		return nil
	})
	if err != nil {
		return counts, fmt.Errorf("look for jobs in storage: %w", err)
	}
	slices.SortStableFunc(lost, func(a, b queued) int { return a.at.Compare(b.at) })
	for _, q := range lost {
		if !cfg.DryRun {
			_, err := cfg.Ledger.Create(ctx, q.rec)
			if errdefs.IsAlreadyExists(err) { // it was submitted meanwhile
				counts.Known++
				continue
			}
			if err != nil {
				return counts, fmt.Errorf("enter job %s in the ledger: %w", q.rec.ID, err)
			}
		}
		counts.Queued++
		cfg.Report(Rebuilt{ID: q.rec.ID, Model: q.rec.Model})
	}
	return counts, nil
}
