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

// Retention is how long jobs' files are kept, and who knows when they are due.
type Retention struct {
	// Ledger is nil where files are kept for ever and no job can be removed.
	Ledger ledger.Retention
	// Policy is what the ledger decides by when a job ends.
	Policy job.Retention
	// Interval bounds how long files that are due may wait; 0 takes 30 s.
	Interval time.Duration
	// Patience is for how long Remove waits for a removal; 0 takes 30 s.
	Patience time.Duration
}

// How files that are due are removed: batch by batch, one job at a time, with a
// pause after each that is as long as its removal took, so that jobs at work have
// at least half of the storage's attention. Where whole batches are due, more jobs
// end than are removed that way: then several are removed at a time, without pauses,
// or the storage would fill.
const (
	removalBatch  = 64
	removalsOpen  = 8                // that run at a time while whole batches are due
	removalRetry  = 10 * time.Minute // between tries of a storage that is away at most
	retentionScan = "storage.keep"   // the checkpoint that says which policy all records were seen with
)

// remover removes jobs' files: those that are due, and those of jobs that a client
// wants removed.
//
// A removal begins in the ledger, which then refuses a new run of the job, goes on
// in storage, and ends in the ledger. One that was cut short is due at once for the
// next daemon.
type remover struct {
	cfg    Retention
	jobs   ledger.Ledger
	store  storage.Store
	status *statusFiles
	// uploads knows those that are not submitted; nil where there are none.
	uploads ledger.Uploads
	log     *slog.Logger

	mu sync.Mutex
	// busy has the ids that submissions (counted), a removal or an upload are at work on:
	// a submission looks at storage before the ledger knows of it.
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

// What a job's files are busy with, beside a number of submissions.
const (
	removing  = -1
	uploading = -2
)

// submit keeps the files of a job from being removed until the returned function
// is called. It answers job.ErrRemoving while they are, and job.ErrUploading while a
// job of this id is being submitted with files.
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

// take keeps submissions of a job away until the returned function is called. ok is
// false where one is under way, or another removal.
func (r *remover) take(id job.ID) (done func(), ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.busy[id] != 0 {
		return nil, false
	}
	r.busy[id] = removing
	return r.freed(id), true
}

// upload keeps submissions and removals of a job away until the returned function is
// called. It answers job.ErrRemoving or job.ErrUploading while there is one.
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

// run removes what is due until ctx ends.
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
			r.log.Warn("Cannot remove files whose time is over; trying again", "pause", pause, "error", err)
			wait, pause = pause, min(2*pause, removalRetry)
		default:
			pause = time.Second
		}
		if sleep(ctx, wait) != nil {
			return
		}
	}
}

// applyPolicy gives the records that ended under another policy the times of the
// present one.
func (r *remover) applyPolicy(ctx context.Context) error {
	policy := job.Cursor(r.cfg.Policy.String())
	seen, err := r.jobs.Checkpoint(ctx, retentionScan)
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		return err
	}
	nothing := len(r.cfg.Policy.Models) == 0 && r.cfg.Policy.All == (job.KeepTimes{})
	if err == nil && seen == policy || err != nil && nothing { // there was never another
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

// removeDue removes a batch of what is due, and returns how long to wait before the
// next.
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
		r.log.Info("Removed the files of jobs whose time was over", "jobs", removed)
	}
	if next == 0 || removed < len(due) {
		next = r.cfg.Interval
	}
	return max(min(next, r.cfg.Interval), 10*time.Millisecond), nil
}

// removeInTurn removes the files of one job after the other, with pauses, and
// returns how many it removed.
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

// removeTogether removes the files of several jobs at a time, and returns how many
// it removed.
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

// removeOne removes the files of a job that is due. ok is false where it is
// submitted again, or removed by a client.
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
		return nil // since
	case errors.Is(err, ledger.ErrRemoving):
		return nil // by another node
	case err != nil:
		return err
	}
	return r.finish(ctx, d.ID)
}

// finish ends a removal that has begun.
func (r *remover) finish(ctx context.Context, id job.ID) error {
	if err := r.status.drop(ctx, id); err != nil { // or it would be written to where the files were
		return err
	}
	if err := r.store.Remove(ctx, id); err != nil {
		return away("storage", err)
	}
	return r.cfg.Ledger.EndRemoval(ctx, id)
}

// Remove removes a job that has ended: its files, and all that the ledger knows of
// it. When it returns nil the id can be used again. A removal that fails after it
// has begun goes on by itself, also in the next daemon. The error is
// *job.UnknownJob, job.ErrNotEnded, job.ErrNeeded, job.ErrRemoving (a submission or a
// removal of the job is under way), job.ErrRemovalContinues (it takes longer than
// Remove waits) or job.ErrRemovalStopped (likewise, of a job that only storage
// knows), or has the class its part gave it.
func (s *Shepherd) Remove(ctx context.Context, id job.ID) error {
	r := s.remover
	if r.cfg.Ledger == nil {
		return fmt.Errorf("remove job %s: this ledger keeps jobs for ever: %w", id, errdefs.ErrNotImplemented)
	}
	done, ok := r.take(id)
	if !ok {
		return job.ErrRemoving
	}
	defer done()
	// What has begun is better ended now, whether the client is still there or not.
	ctx = context.WithoutCancel(ctx)
	_, err := r.cfg.Ledger.BeginRemoval(ctx, id, 0, true)
	switch {
	case errors.Is(err, ledger.ErrNotFound):
		if err := s.notReserved(ctx, job.Request{ID: id}); err != nil {
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
		return away("ledger", fmt.Errorf("begin the removal of job %s: %w", id, err))
	}
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Patience)
	defer cancel()
	err = r.finish(ctx, id)
	if err != nil && ctx.Err() != nil {
		return job.ErrRemovalContinues
	}
	if err != nil {
		return fmt.Errorf("remove job %s, which goes on by itself: %w", id, err)
	}
	s.log.Info("Job removed", "job", id)
	return nil
}

// removeUnrecorded removes a job that storage alone knows: the original shepherd's,
// one whose record has expired, or what an upload that was cut short has left. Where
// that ends half-way, what is left is still such a job.
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
		return away("storage", fmt.Errorf("remove job %s: %w", id, err))
	}
	s.log.Info("Job removed", "job", id)
	return nil
}
