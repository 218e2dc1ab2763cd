package shepherd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/storage"
)

// Retention configures how long jobs' files are kept.
type Retention struct {
	// Ledger knows which files are due; nil keeps all files forever and allows no removal.
	Ledger ledger.Retention
	// Policy is the policy that the ledger applies when a job ends.
	Policy job.Retention
	// Interval is the longest pause between two checks for due files; 0 means 30 s.
	Interval time.Duration
	// Patience is how long Remove waits for a removal; 0 means 30 s.
	Patience time.Duration
}

// Removal of due files. Normally the files of one job are removed at a time, followed by a
// pause of the same length, so that running jobs get at least half of the storage's
// capacity. If a whole batch is due, jobs end faster than that removes them: then several
// removals run at a time without pauses, so that the storage does not fill up.
const (
	removalBatch  = 64
	removalsOpen  = 8                // concurrent removals while whole batches are due
	removalRetry  = 10 * time.Minute // the longest pause between retries
	retentionScan = "storage.keep"   // the checkpoint with the policy that was applied to all records
)

// remover removes jobs' files: those that are due, and those that a client removes.
//
// A removal begins in the ledger, which refuses a new run of the job from then on, continues
// in storage, and ends in the ledger. An interrupted removal is due at once for the next
// daemon.
type remover struct {
	cfg    Retention
	jobs   ledger.Ledger
	store  storage.Store
	status *statusFiles
	// uploads knows uploads that are not submitted; nil for none.
	uploads ledger.Uploads
	log     *slog.Logger

	mu sync.Mutex
	// busy holds the ids that a removal, an upload or a number of submissions is working
	// on: a submission uses storage before the ledger knows about it.
	busy map[job.ID]int
}

func newRemover(cfg Retention, jobs ledger.Ledger, store storage.Store, status *statusFiles, log *slog.Logger) *remover {
	if cfg.Interval == 0 {
		cfg.Interval = 30 * time.Second
	}
	if cfg.Patience == 0 {
		cfg.Patience = commitTime
	}
	return &remover{cfg: cfg, jobs: jobs, store: store, status: status, log: log, busy: make(map[job.ID]int)}
}

// Values of remover.busy besides a number of submissions.
const (
	removing  = -1
	uploading = -2
)

// submit prevents the removal of a job's files until done is called. It returns
// job.ErrRemoving during a removal, and job.ErrUploading while a job of this id is being
// submitted with files.
func (r *remover) submit(id job.ID) (done func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch r.busy[id] {
	case removing:
		return nil, job.ErrRemoving
	case uploading:
		return nil, job.ErrUploading
	}
	r.busy[id]++
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.busy[id]--; r.busy[id] == 0 {
			delete(r.busy, id)
		}
	}, nil
}

// take prevents submissions of a job until done is called. ok is false during a submission
// or another removal.
func (r *remover) take(id job.ID) (done func(), ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.busy[id] != 0 {
		return nil, false
	}
	r.busy[id] = removing
	return r.freed(id), true
}

// upload prevents submissions and removals of a job until done is called. It returns
// job.ErrRemoving or job.ErrUploading during one.
func (r *remover) upload(id job.ID) (done func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch r.busy[id] {
	case 0:
	case removing:
		return nil, job.ErrRemoving
	default:
		return nil, job.ErrUploading
	}
	r.busy[id] = uploading
	return r.freed(id), nil
}

func (r *remover) freed(id job.ID) func() {
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.busy, id)
	}
}

// run removes due files until ctx ends.
func (r *remover) run(ctx context.Context) {
	if r.cfg.Ledger == nil {
		return
	}
	pause := time.Second
	for {
		err := r.applyPolicy(ctx)
		var wait time.Duration
		if err == nil {
			wait, err = r.removeDue(ctx)
		}
		if err == nil {
			var next time.Duration
			if next, err = r.removeDueUploads(ctx); next > 0 {
				wait = min(wait, max(next, 10*time.Millisecond))
			}
		}
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			r.log.Warn("Cannot remove expired files; retrying", "pause", pause, "error", err)
			wait, pause = pause, min(2*pause, removalRetry)
		default:
			pause = time.Second
		}
		if sleep(ctx, wait) != nil {
			return
		}
	}
}

// applyPolicy applies the current policy to records that ended under another one.
func (r *remover) applyPolicy(ctx context.Context) error {
	policy := job.Cursor(r.cfg.Policy.String())
	seen, err := r.jobs.Checkpoint(ctx, retentionScan)
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		return err
	}
	nothing := len(r.cfg.Policy.Models) == 0 && r.cfg.Policy.All == (job.KeepTimes{})
	if err == nil && seen == policy || err != nil && nothing { // no policy was ever applied
		return nil
	}
	for cursor := int64(0); ; {
		records, next, err := r.jobs.List(ctx, ledger.Filter{States: []job.State{job.Done, job.Failed, job.Cancelled}}, cursor, removalBatch)
		if err != nil {
			return err
		}
		var kept []ledger.Kept
		for _, rec := range records {
			kept = append(kept, ledger.Kept{Job: rec.ID, Run: rec.Run, For: r.cfg.Policy.For(rec)})
		}
		if err := r.cfg.Ledger.Keep(ctx, kept); err != nil {
			return err
		}
		if next == 0 {
			return r.jobs.SetCheckpoint(ctx, retentionScan, policy)
		}
		cursor = next
	}
}

// removeDue removes a batch of due files and returns how long to wait before the next.
func (r *remover) removeDue(ctx context.Context) (wait time.Duration, err error) {
	due, next, err := r.cfg.Ledger.Due(ctx, removalBatch)
	if err != nil {
		return 0, err
	}
	remove := r.removeInTurn
	if len(due) == removalBatch {
		remove = r.removeTogether
	}
	removed, err := remove(ctx, due)
	if err != nil {
		return 0, err
	}
	if removed > 0 {
		r.log.Info("Removed expired files of jobs", "jobs", removed)
	}
	if next == 0 || removed < len(due) {
		next = r.cfg.Interval
	}
	return max(min(next, r.cfg.Interval), 10*time.Millisecond), nil
}

// removeInTurn removes the files of one job after the other, with pauses, and returns for
// how many jobs.
func (r *remover) removeInTurn(ctx context.Context, due []ledger.Removal) (removed int, err error) {
	for _, d := range due {
		began := time.Now()
		ok, err := r.removeOne(ctx, d)
		if err != nil {
			return removed, err
		}
		if !ok {
			continue
		}
		removed++
		if err := sleep(ctx, time.Since(began)); err != nil {
			return removed, err
		}
	}
	return removed, nil
}

// removeTogether removes the files of several jobs at a time, and returns for how many jobs.
func (r *remover) removeTogether(ctx context.Context, due []ledger.Removal) (removed int, err error) {
	var mu sync.Mutex
	var removing sync.WaitGroup
	next := 0
	for range removalsOpen {
		removing.Go(func() {
			for {
				mu.Lock()
				if next == len(due) || err != nil || ctx.Err() != nil {
					mu.Unlock()
					return
				}
				d := due[next]
				next++
				mu.Unlock()
				ok, failed := r.removeOne(ctx, d)
				mu.Lock()
				if ok && failed == nil {
					removed++
				}
				err = errors.Join(err, failed)
				mu.Unlock()
			}
		})
	}
	removing.Wait()
	return removed, err
}

// removeOne removes the files of a job that is due. ok is false if the job is being
// submitted again or removed by a client.
func (r *remover) removeOne(ctx context.Context, d ledger.Removal) (ok bool, err error) {
	done, ok := r.take(d.ID)
	if !ok {
		return false, nil
	}
	defer done()
	if err := r.removeFiles(ctx, d); err != nil {
		return true, fmt.Errorf("remove the files of job %s: %w", d.ID, err)
	}
	return true, nil
}

func (r *remover) removeFiles(ctx context.Context, d ledger.Removal) error {
	switch _, err := r.cfg.Ledger.BeginRemoval(ctx, d.ID, d.Run, false); {
	case errdefs.IsNotFound(err), errors.Is(err, ledger.ErrNotFinal):
		return nil // it was submitted again
	case errors.Is(err, ledger.ErrNeeded):
		return nil // another job has started to need the outputs
	case errors.Is(err, ledger.ErrRemoving):
		return nil // by another node
	case err != nil:
		return err
	}
	return r.finish(ctx, d.ID)
}

// finish completes a removal that has begun.
func (r *remover) finish(ctx context.Context, id job.ID) error {
	if err := r.status.drop(ctx, id); err != nil { // else its state would be written after the removal
		return err
	}
	if err := r.store.Remove(ctx, id); err != nil {
		return serviceError("storage", err)
	}
	return r.cfg.Ledger.EndRemoval(ctx, id)
}

// Remove removes a job that has ended: its files and its record. The id can be used again
// after Remove returns nil. A removal that fails after it has begun is retried in the
// background, also by the next daemon. The error is *job.UnknownJob, job.ErrNotEnded,
// job.ErrNeeded, job.ErrRemoving (a submission or removal of the job is in progress),
// job.ErrRemovalContinues (it takes longer than Patience) or job.ErrRemovalStopped (the same
// for a job that only storage knows, which is not retried), or has the class of the ledger
// or the storage.
func (s *Shepherd) Remove(ctx context.Context, id job.ID) error {
	r := s.remover
	if r.cfg.Ledger == nil {
		return fmt.Errorf("remove job %s: this ledger never removes jobs: %w", id, errdefs.ErrNotImplemented)
	}
	done, ok := r.take(id)
	if !ok {
		return job.ErrRemoving
	}
	defer done()
	// Complete the removal even if the client disconnects.
	ctx = context.WithoutCancel(ctx)
	_, err := r.cfg.Ledger.BeginRemoval(ctx, id, 0, true)
	switch {
	case errors.Is(err, ledger.ErrNotFound):
		if err := s.checkNotReserved(ctx, job.Request{ID: id}); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, r.cfg.Patience)
		defer cancel()
		err := s.removeUnrecorded(ctx, id)
		if err != nil && ctx.Err() != nil {
			return job.ErrRemovalStopped
		}
		return err
	case errors.Is(err, ledger.ErrNotFinal):
		return job.ErrNotEnded
	case errors.Is(err, ledger.ErrNeeded):
		return job.ErrNeeded
	case errors.Is(err, ledger.ErrRemoving):
		return job.ErrRemoving
	case err != nil:
		return serviceError("ledger", fmt.Errorf("begin the removal of job %s: %w", id, err))
	}
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Patience)
	defer cancel()
	err = r.finish(ctx, id)
	if err != nil && ctx.Err() != nil {
		return job.ErrRemovalContinues
	}
	if err != nil {
		return fmt.Errorf("remove job %s, which continues in the background: %w", id, err)
	}
	s.log.Info("Job removed", "job", id)
	return nil
}

// removeUnrecorded removes a job that only storage knows: the original shepherd's, one whose
// record has expired, or the files of an interrupted upload. If it is interrupted, the rest
// is still such a job.
func (s *Shepherd) removeUnrecorded(ctx context.Context, id job.ID) error {
	status, err := s.Job(ctx, id)
	if err != nil {
		return err
	}
	if !status.State.Final() && !isCutShort(status) {
		return job.ErrNotEnded
	}
	if err := s.remover.status.drop(ctx, id); err != nil {
		return err
	}
	if err := s.cfg.Store.Remove(ctx, id); err != nil {
		return serviceError("storage", fmt.Errorf("remove job %s: %w", id, err))
	}
	s.log.Info("Job removed", "job", id)
	return nil
}
