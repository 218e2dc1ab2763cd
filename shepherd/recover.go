package shepherd

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
)

// adoption is what a lane takes up from an earlier daemon.
type adoption struct {
	found *runtime.Recovered
	// jobs are those that the runner has or has answered, by id.
	jobs map[job.ID]*assignment
	// interrupted are the other claims of this sheep that were running: nothing
	// of them is left but, perhaps, their state in storage.
	interrupted []ledger.Claim
}

// errInterrupted is why a job goes back to the queue when the daemon and all that
// ran it were killed.
var errInterrupted = errors.New("the daemon and the sheep were killed")

// take removes and returns the adopted job, nil where there is none.
func (d *adoption) take(id job.ID) *assignment {
	if d == nil {
		return nil
	}
	a := d.jobs[id]
	delete(d.jobs, id)
	return a
}

// recover finds out what is left of this sheep and of the jobs it held, and
// cleans its working directories but for those of adopted jobs. What takes
// storage is left to the worker, so that a start does not wait for it.
func (l *lane) recover(ctx context.Context, claims []ledger.Claim) {
	d := &adoption{jobs: make(map[job.ID]*assignment)}
	if r, ok := l.sheep.(runtime.Recoverer); ok {
		found, err := r.Recover(ctx)
		if err != nil {
			l.log.Error("Cannot take up what an earlier daemon left of this sheep", "error", err)
		}
		d.found = found
	}
	known := make(map[job.ID]bool)
	if d.found != nil {
		if d.found.Job != "" {
			known[d.found.Job] = true
		}
		for _, a := range d.found.Answers {
			known[a.JobID] = true
		}
	}
	for _, c := range claims {
		switch {
		case c.State == job.Processing && known[c.ID]:
			d.jobs[c.ID] = l.readopt(c)
		case c.State == job.Processing:
			d.interrupted = append(d.interrupted, c)
		default: // only prepared
			l.release(ctx, &assignment{Claim: c}, true, "the daemon was restarted")
		}
	}
	l.clean(d.jobs)
	l.adopted = d
	if d.found != nil && d.found.Running {
		l.mu.Lock()
		l.up, l.loaded, l.planned = true, d.found.Model, d.found.Model
		l.busy = true // until the worker has seen to it
		l.mu.Unlock()
		l.hasDevices(d.found.Model, 0)
		l.log.Info("Found the sheep's runner alive", "model", d.found.Model.String(), "job", d.found.Job)
	}
}

// readopt makes an assignment of a job that was staged by an earlier daemon.
func (l *lane) readopt(c ledger.Claim) *assignment {
	a := &assignment{Claim: c, id: c.ID, dir: filepath.Join(l.dir, string(c.ID)), staged: make(chan struct{}), cancel: func() {}}
	close(a.staged)
	a.result.Outputs = true // not known: replace what is there
	a.owner.Store(takenByWorker)
	return a
}

// clean removes the working directories that belong to no adopted job.
func (l *lane) clean(keep map[job.ID]*assignment) {
	if err := os.MkdirAll(l.dir, 0o755); err != nil {
		l.log.Error("Cannot create the sheep's data directory", "error", err)
		return
	}
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		l.log.Error("Cannot read the sheep's data directory", "error", err)
		return
	}
	for _, e := range entries {
		if keep[job.ID(e.Name())] != nil {
			continue
		}
		if err := os.RemoveAll(filepath.Join(l.dir, e.Name())); err != nil {
			l.log.Warn("Cannot remove a left-over working directory", "error", err)
		}
	}
}

// takeUp does what recover found: the worker calls it before its first job.
func (l *lane) takeUp() {
	d := l.adopted
	for _, c := range d.interrupted {
		l.settle(c)
	}
	if d.found == nil {
		return
	}
	if !d.found.Running {
		l.takeUpRemains(d)
		return
	}
	done, _ := l.take() // it has them
	defer done()
	// What was under way when the runner was found may have been answered since.
	answered := slices.ContainsFunc(d.found.Answers, func(a messenger.Answer) bool { return a.JobID == d.found.Job })
	var current *assignment
	if !answered {
		current = d.take(d.found.Job)
	}
	if err := l.launch(l.work, d.found.Model, job.Trace{}, func(error) {}); err != nil {
		l.log.Warn("The runner that was found ended before it could be taken up", "error", err)
		for _, answer := range d.found.Answers {
			if a := d.take(answer.JobID); a != nil {
				l.finish(a, ending{answered: true, failure: answer.Failure})
			}
		}
		if current != nil {
			l.refuse(l.work, current, err)
		}
		return
	}
	l.happened(RunnerAdopted)
	if d.found.Job != "" && current == nil && !answered {
		// Nobody waits for what the runner is doing (the job was cancelled), and
		// it cannot be told to stop: answers first, then it goes.
		l.log.Info("The runner found has a job that is no longer its own", "job", d.found.Job)
		l.collectAnswers(d)
		l.stopRunner()
		return
	}
	l.collectAnswers(d)
	if current != nil {
		l.resume(current)
	}
}

// collectAnswers receives the answers that the runner gave before the restart.
func (l *lane) collectAnswers(d *adoption) {
	for range d.found.Answers {
		answer, ok := <-l.runner.answers
		if !ok {
			break
		}
		l.answered(answer)
	}
}

// resume waits for the answer to a job that was given to the runner before the
// restart, as run does.
func (l *lane) resume(a *assignment) {
	l.begin(a)
	a.sent = a.StartedAt // or soon after
	l.log.Info("Job goes on in the runner that has it", "job", a.ID)
	ctx, stop := l.hold(a.ID)
	defer stop()
	if l.lost(ctx, a.ID) {
		l.stopRunner()
		l.leave(ctx, a, errCancelled)
		return
	}
	l.begun(a.ID, a.StartedAt)
	l.await(ctx, a)
}

// takeUpRemains finishes the jobs of a runner that ended while no daemon was
// there.
func (l *lane) takeUpRemains(d *adoption) {
	for _, answer := range d.found.Answers {
		if a := d.take(answer.JobID); a != nil {
			l.finish(a, ending{answered: true, failure: answer.Failure})
		}
	}
	if a := d.take(d.found.Job); a != nil {
		if exit := d.found.Exit; exit != nil && !exit.Lost {
			l.refuse(l.work, a, exit)
		} else { // it went down with everything else, which is not its fault
			l.leave(l.work, a, errInterrupted)
		}
	}
	l.finishers.Wait() // what is forgotten must be safe first
	if d.found.Forget != nil && l.work.Err() == nil {
		if err := d.found.Forget(); err != nil {
			l.log.Warn("Cannot remove the traces of a runner that has ended", "error", err)
		}
	}
}

// settle ends a claim that was running when the daemon ended, with no trace of
// its runner. Where storage has its final state, the daemon died between the
// last two steps of finishing it, and the ledger follows; otherwise it runs
// again. While storage is away neither is known: the claim stays until it is
// back, or for the next daemon.
func (l *lane) settle(c ledger.Claim) {
	l.worker.waits() // for storage, it may be
	defer l.worker.works()
	status, err := l.storedStatus(c.ID)
	if err != nil && (l.work.Err() != nil || l.worthRetrying(l.work, err)) {
		l.log.Warn("Storage cannot be asked how a job ended; the next daemon does", "job", c.ID, "error", err)
		return
	}
	ctx, cancel := context.WithTimeout(l.work, commitTime)
	defer cancel()
	a := &assignment{Claim: c}
	if err == nil && status.State.Final() && status.StartedAt.Equal(c.StartedAt) {
		_, err := l.retryLedger(ctx, a.ID, func() (job.Record, error) {
			return l.shepherd.cfg.Ledger.Finish(ctx, c.ID, c.Token, ledger.Outcome{State: status.State, Failure: status.Failure, At: status.FinishedAt})
		})
		if err == nil || errors.Is(err, ledger.ErrFenced) {
			if err == nil {
				l.shepherd.cfg.Observer.Ended(l.name, status.State)
			}
			l.log.Info("Job had ended before the daemon did", "job", c.ID, "state", status.State)
			return
		}
		l.log.Error("Cannot finish a job in the ledger that has ended", "job", c.ID, "error", err)
	}
	l.release(ctx, a, true, "the daemon was restarted")
}

// storedStatus is the job's state in storage. It tries again while storage is
// away, until the feed ends.
func (l *lane) storedStatus(id job.ID) (job.Status, error) {
	var status job.Status
	ask := func() error {
		ctx, cancel := context.WithTimeout(l.work, commitTime)
		defer cancel()
		var err error
		status, err = l.shepherd.cfg.Store.Status(ctx, id)
		return err
	}
	// The feed's end keeps it from trying again, not from asking once.
	return status, l.persist(l.open, id, "look how it ended", ask)
}

// settleOthers deals with what sheep held that are configured no more, beside the
// work of the others. It is as in recover and takeUp, with nothing to adopt.
func (s *Shepherd) settleOthers(byHolder map[string][]ledger.Claim) {
	for holder, claims := range byHolder {
		s.log.Warn("Jobs were held by a sheep that is no longer configured", "sheep", holder, "jobs", len(claims))
		gone := newLane(Member{Name: holder}, s)
		gone.enter(s.feed, s.work)
		s.background.Go(func() {
			defer gone.wait()
			for _, c := range claims {
				if c.State == job.Processing {
					gone.settle(c)
				} else {
					gone.release(gone.work, &assignment{Claim: c}, true, "the daemon was restarted")
				}
			}
		})
	}
}
