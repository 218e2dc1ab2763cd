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

// RebuildConfig holds the parameters of Rebuild.
type RebuildConfig struct {
	Ledger RebuildLedger
	Store  storage.Store
	// DryRun reports what Rebuild would do and changes nothing.
	DryRun bool
	// Report is called for each job as soon as it is queued or found not to be queueable.
	Report func(Rebuilt)
}

// RebuildLedger is the part of ledger.Ledger that Rebuild needs.
type RebuildLedger interface {
	Get(ctx context.Context, id job.ID) (job.Record, error)
	Create(ctx context.Context, rec job.Record) (job.Record, error)
}

// Rebuilt is the result for one job whose end is not known.
type Rebuilt struct {
	ID    job.ID
	Model job.Model
	// Trouble is why the job was not queued; nil if it was.
	Trouble error
}

// RebuildCounts counts the jobs that Rebuild found.
type RebuildCounts struct {
	Queued  int // entered in the ledger
	Known   int // already in the ledger
	Ended   int // ended, according to storage
	Refused int // cannot be queued
}

// errNoState is the error of a place that has inputs and no job_status.json.
var errNoState = errors.New("its job_status.json is missing, so its model is not known: if it was submitted, submit it again")

// Rebuild creates ledger records for unfinished jobs that storage knows and the ledger does
// not, after the state directory was lost. A job gets its model and its position in the
// queue from job_status.json. Its sheep, priority, limits and tenant are not kept in storage
// and are lost. A job that was running runs again. Rebuild can be repeated after an error,
// which is the ledger's or the storage's.
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
