package sqlite

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// TestJobBudget: a job costs at most ten statements and four commits from its submission
// to its end, and no read of the file.
func TestJobBudget(t *testing.T) {
	l := mustOpen(t, Config{Path: filepath.Join(t.TempDir(), "ledger.db")})
	if err := l.read.get.Close(); err != nil { // a look-up in the file fails from now on
		t.Fatal(err)
	}
	statements, commits := l.writer.statements.Load(), l.writer.commits.Load()
	const jobs = 20
	for i := range jobs {
		rec, err := l.Create(t.Context(), numbered(i))
		if err != nil {
			t.Fatal(err)
		}
		claim, err := l.Claim(t.Context(), ledger.Slot{Sheep: "sheep", Node: "node", Ahead: true, Prefer: rec.Model})
		if err != nil || claim == nil || claim.ID != rec.ID {
			t.Fatalf("%v, %v", claim, err)
		}
		if _, err := l.Start(t.Context(), rec.ID, claim.Token); err != nil {
			t.Fatal(err)
		}
		done, err := l.Finish(t.Context(), rec.ID, claim.Token, ledger.Outcome{State: job.Done, Cause: job.CauseDone, At: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := l.Get(t.Context(), rec.ID); err != nil || got.State != job.Done || !got.FinishedAt.Equal(done.FinishedAt) {
			t.Errorf("%v, %v", got, err)
		}
	}
	// The rest is for the numbers, which are written now and then, and for the timers,
	// which are looked up when the ledger is opened.
	if n := l.writer.statements.Load() - statements; n > 10*jobs+jobs/2 {
		t.Errorf("%d jobs took %d statements", jobs, n)
	}
	if n := l.writer.commits.Load() - commits; n > 4*jobs {
		t.Errorf("%d jobs took %d commits", jobs, n)
	}
}

// TestRowCache: rows that are no longer in memory are read from the file, and removed
// rows are not found.
func TestRowCache(t *testing.T) {
	l := mustOpen(t, Config{Path: filepath.Join(t.TempDir(), "ledger.db"), KeepJobs: 1})
	const more = 50
	for i := range maxCachedRows + more {
		if _, err := l.Create(t.Context(), numbered(i)); err != nil {
			t.Fatal(err)
		}
	}
	c := l.writer.rows
	if c.get(numbered(0).ID) != nil || c.get(numbered(more).ID) == nil || len(c.byID) != maxCachedRows || len(c.bySeq) != maxCachedRows {
		t.Errorf("%d and %d rows are in memory", len(c.byID), len(c.bySeq))
	}
	for _, i := range []int{0, more, maxCachedRows} {
		id := numbered(i).ID
		if rec, err := l.Get(t.Context(), id); err != nil || rec.ID != id {
			t.Errorf("%v, %v", rec, err)
		}
		if _, err := l.Create(t.Context(), numbered(i)); err == nil {
			t.Errorf("job %s was created twice", id)
		}
		if rec, err := l.Cancel(t.Context(), id); err != nil || rec.State != job.Cancelled {
			t.Errorf("%v, %v", rec, err)
		}
	}
	// Of the three that ended one is kept.
	left := 0
	for _, i := range []int{0, more, maxCachedRows} {
		if _, err := l.Get(t.Context(), numbered(i).ID); err == nil {
			left++
		}
	}
	if left != 1 {
		t.Errorf("%d records of jobs that ended are left", left)
	}
}
