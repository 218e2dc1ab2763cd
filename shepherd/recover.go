package shepherd

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/runtime"
)

// adoption is what a lane takes over from an earlier daemon.
type adoption struct {
	found *runtime.Recovered
	// jobs are the attempts of the jobs that the runner has or has answered.
	jobs map[job.ID]*attempt
}

// interrupted is the ending of an attempt whose daemon and runner were both killed.
var interrupted = ending{cause: job.CauseInterrupted, reason: "Shepherd and the sheep were killed while the sheep had this job"}

// daemonKilled is the ending of an attempt whose daemon was killed while it prepared the
// job, before a runner had it.
var daemonKilled = ending{cause: job.CauseDaemonKilled, reason: "Shepherd was killed while it prepared this job"}

// take removes and returns the adopted attempt of a job, or nil.
func (d *adoption) take(id job.ID) *attempt {
	if d == nil {
		return nil
	}
	a := d.jobs[id]
	delete(d.jobs, id)
	return a
}

// recover finds what an earlier daemon left of this sheep's runner and jobs, ends the
// attempts that no runner has, and removes working directories of attempts that the ledger
// does not know. It is called before start.
func (l *lane) recover(ctx context.Context, claims []ledger.Claim) {
	d := &adoption{jobs: make(map[job.ID]*attempt)}
	work, cancel := context.WithCancel(context.Background())
	defer cancel() // the concluder then ends in the background what the ledger cannot end soon
	if r, ok := l.Sheep.(runtime.Recoverer); ok {
		found, err := r.Recover(ctx)
		if err != nil {
			l.log.Error("Cannot adopt what an earlier daemon left of this sheep", "error", err)
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
	keep := make(map[ledger.Token]job.ID)
	for _, c := range claims {
		if known[c.ID] {
			if a := l.adoptAttempt(ctx, c); a != nil {
				d.jobs[c.ID] = a
				keep[c.Token] = c.ID
				continue
			}
		}
		if l.endClaim(work, c, d.found) {
			keep[c.Token] = c.ID
		}
	}
	left, err := l.dirs.clean(keep, jobsOf(ctx, l.ledger, l.Name))
	if err != nil {
		l.log.Warn("Cannot clean the sheep's data directory", "error", err)
	}
	logUnmarked(l.log, filepath.Join(l.dataRoot, l.Name), left)
	l.worker.found = d
	l.state.adopt(job.Model{}, false)
	if d.found != nil && d.found.Running {
		l.state.adopt(d.found.Model, true)
		l.share.started(d.found.Model, 0)
		l.log.Info("Found the sheep's runner alive", "model", d.found.Model.String(), "job", d.found.Job)
	}
}

// jobsOf looks up in the ledger whether the sheep had a job; an empty sheep stands for any.
func jobsOf(ctx context.Context, l ledger.Ledger, sheep string) hadJob {
	return func(id job.ID) (bool, error) {
		attempts, err := l.Attempts(ctx, id)
		return slices.ContainsFunc(attempts, func(a job.Attempt) bool { return sheep == "" || a.Sheep == sheep }), err
	}
}

// logUnmarked reports directories that look like those of attempts and may belong to someone
// else.
func logUnmarked(log *slog.Logger, dir string, names []string) {
	if len(names) == 0 {
		return
	}
	log.Warn("Directories that look like working directories of jobs carry no mark of shepherd and are kept; remove them if nobody needs them",
		"directory", dir, "names", names[:min(len(names), 10)], "count", len(names))
}

// endClaim ends a claim that an earlier daemon left and that no runner has. placed is set if
// its working directory is visible to runners: it is removed only after the ledger has ended
// the claim, so that a daemon killed before that finds the same state.
func (l *lane) endClaim(work context.Context, c ledger.Claim, found *runtime.Recovered) (placed bool) {
	a := l.newAttempt(c)
	end := interrupted
	dir, err := l.dirs.find(c.Token, c.ID)
	a.dir, placed = dir, err == nil
	withRunner := c.State != job.Queued && found != nil && !found.Running && (found.Exit == nil || found.Exit.Lost)
	if errors.Is(err, fs.ErrNotExist) && !withRunner {
		end = daemonKilled
	}
	if c.Cancelling {
		end = stopped(errCancelled)
	}
	close(a.prepared)
	l.concluder.end(work, a, end)
	return placed
}

// adoptAttempt creates the attempt of a job that an earlier daemon gave to the runner. It
// returns nil if the job's directory is gone: the job's outputs are lost then, or the runner
// knows the job from an earlier attempt only.
func (l *lane) adoptAttempt(ctx context.Context, c ledger.Claim) *attempt {
	dir, err := l.dirs.find(c.Token, c.ID)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			l.log.Error("Cannot open the directory of a job that the runner has", "job", c.ID, "error", err)
		}
		return nil
	}
	if c.State == job.Queued { // the daemon ended before the start was in the ledger
		rec, err := l.retryLedger(ctx, c.ID, func() (job.Record, error) { return l.ledger.Start(ctx, c.ID, c.Token) })
		if err != nil {
			l.log.Error("Cannot record the start of a job that the runner has", "job", c.ID, "error", err)
			dir.leave()
			return nil
		}
		c.Record = rec
	}
	a := l.watch(c)
	a.adopted, a.dir = true, dir
	a.owner.Store(ownedByWorker)
	close(a.taken)
	close(a.prepared)
	return a
}

// adopt takes over what recover found. The worker calls it before its first job. left is set
// if the runner keeps a job for the next daemon.
func (w *worker) adopt(work context.Context) (left bool) {
	l, d := w.lane, w.found
	defer func() { w.abandon(work, d) }()
	if d == nil || d.found == nil {
		return false
	}
	if !d.found.Running {
		w.adoptRemains(work, d)
		return false
	}
	done, _ := l.share.hold() // granted, because the runner is up
	defer done()
	// The runner may have answered its job after it was found.
	answered := slices.ContainsFunc(d.found.Answers, func(a messenger.Answer) bool { return a.JobID == d.found.Job })
	var current *attempt
	if !answered {
		current = d.take(d.found.Job)
	}
	s := w.supervisor
	loaded := func(err error) {
		if err == nil {
			l.turns.loaded(d.found.Model, 0, time.Now())
		}
	}
	if err := s.launch(work, d.found.Model, job.Trace{}, loaded); err != nil {
		l.log.Warn("The runner ended before it could be adopted", "error", err)
		w.takeAnswers(work, d)
		switch {
		case current == nil:
		case work.Err() != nil: // the lane is ending, which is not the job's fault
			l.concluder.end(work, current, stopped(context.Cause(work)))
		default:
			l.concluder.end(work, current, w.loadEnding(current, err))
		}
		return false
	}
	l.happened(RunnerAdopted)
	w.collectAnswers(work, d)
	switch {
	case current != nil:
		return w.resume(work, current)
	case d.found.Job != "" && !answered:
		// The runner works on a job that has ended, and cannot be told to drop it.
		l.log.Info("The adopted runner has a job that is no longer its own", "job", d.found.Job)
		s.stop()
	}
	return false
}

// collectAnswers receives the answers that the runner gave before the restart.
func (w *worker) collectAnswers(work context.Context, d *adoption) {
	for range d.found.Answers {
		answer, ok := <-w.supervisor.runner.answers
		if !ok {
			break
		}
		w.answered(work, answer)
	}
}

// takeAnswers ends the attempts whose answers were left by a runner that is gone.
func (w *worker) takeAnswers(work context.Context, d *adoption) {
	for _, answer := range d.found.Answers {
		if a := d.take(answer.JobID); a != nil {
			w.lane.concluder.end(work, a, answered(a, answer, nil))
		}
	}
}

// resume waits for the answer to a job that was given to the runner before the restart. left
// is set if the job is left to the next daemon again.
func (w *worker) resume(work context.Context, a *attempt) (left bool) {
	l := w.lane
	l.state.begin(a)
	a.sent = time.Now() // minus the time since the start, as far as the clock is right
	if ago := -l.clock.until(a.StartedAt); ago > 0 {
		a.sent = a.sent.Add(-ago)
	}
	a.loadBegan = time.Now() // load_timeout starts again for a runner that does not accept jobs yet
	l.log.Info("Job continues in the adopted runner", "job", a.ID)
	return w.conclude(work, a, func(ctx context.Context) (ending, bool) {
		l.share.begin(a.ID, a.StartedAt)
		return w.await(work, ctx, a)
	})
}

// adoptRemains ends the jobs of a runner that ended while no daemon was running.
func (w *worker) adoptRemains(work context.Context, d *adoption) {
	l := w.lane
	w.takeAnswers(work, d)
	if a := d.take(d.found.Job); a != nil {
		end := interrupted // the runner was killed with everything else
		if exit := d.found.Exit; exit != nil && !exit.Lost {
			end = exitEnding(exit)
		}
		l.concluder.end(work, a, end)
	}
	l.concluder.wait() // Forget must not remove answers that are not stored yet
	if d.found.Forget != nil && work.Err() == nil {
		if err := d.found.Forget(); err != nil {
			l.log.Warn("Cannot remove the state of a runner that has ended", "error", err)
		}
	}
}

// abandon ends attempts that could not be adopted, for example because the runner ended.
func (w *worker) abandon(work context.Context, d *adoption) {
	if d == nil {
		return
	}
	for _, id := range slices.Sorted(maps.Keys(d.jobs)) {
		w.lane.concluder.end(work, d.take(id), interrupted)
	}
}

// endOthers ends the claims of sheep that are no longer configured, in the background.
func (s *Shepherd) endOthers(byHolder map[string][]ledger.Claim) {
	for _, holder := range slices.Sorted(maps.Keys(byHolder)) {
		claims := byHolder[holder]
		if len(claims) == 0 {
			continue
		}
		s.log.Warn("Jobs were held by a sheep that is no longer configured", "sheep", holder, "jobs", len(claims))
		gone := newLane(Member{Name: holder}, s.env)
		s.env.background(func(ctx context.Context) {
			for _, c := range claims {
				gone.endClaim(ctx, c, nil)
			}
			gone.concluder.wait()
		})
	}
}
