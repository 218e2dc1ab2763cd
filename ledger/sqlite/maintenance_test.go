package sqlite

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// TestMaintenanceIsRetried makes every write fail for a while: maintenance is done
// once writes succeed again, without a restart.
func TestMaintenanceIsRetried(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		l := mustOpen(t, Config{Path: filepath.Join(t.TempDir(), "ledger.db"), Keep: time.Hour, Log: textLog(&log)})
		begin := time.Now()
		for _, rec := range []job.Record{
			{ID: "abandoned"},
			{ID: "delayed", NotBefore: begin.Add(time.Minute)},
			{ID: "waiting", NotBefore: begin.Add(1000 * time.Hour), WaitUntil: begin.Add(time.Minute)},
		} {
			if _, err := l.Create(t.Context(), rec); err != nil {
				t.Fatal(err)
			}
		}
		endJobs(t, l, "old")
		if c, err := l.Claim(t.Context(), ledger.Slot{Node: "n", Sheep: "a"}); err != nil || c == nil { // so that the next token is reserved
			t.Fatalf("Claim = %v, %v", c, err)
		} else if _, err := l.Release(t.Context(), c.ID, c.Token, ledger.Return{Cause: job.CauseHandedBack}); err != nil {
			t.Fatal(err)
		}
		queryOnly := func(on int) error {
			_, err := l.writer.conn.ExecContext(context.Background(), fmt.Sprintf("PRAGMA query_only(%d)", on))
			return err
		}

		// The claim's caller stops waiting between the commit and its answer.
		var claim *ledger.Claim
		o := &operation{done: make(chan struct{})}
		o.apply = func(tx *tx) (err error) {
			if claim, err = tx.claim(ledger.Slot{Node: "n", Sheep: "a"}); err != nil {
				return err
			}
			o.abandon()
			return queryOnly(1)
		}
		o.revert = func(tx *tx) error {
			_, err := tx.release(claim.ID, claim.Token, ledger.Return{Cause: job.CauseHandedBack})
			return err
		}
		l.writer.ops <- o
		synctest.Wait()
		if _, err := l.Create(t.Context(), job.Record{ID: "refused"}); err == nil {
			t.Fatal("writes do not fail: nothing is tested")
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		for id, state := range map[job.ID]job.State{"abandoned": job.Processing, "delayed": job.Queued, "waiting": job.Queued, "old": job.Cancelled} {
			if rec, err := l.Get(t.Context(), id); err != nil || rec.State != state {
				t.Errorf("%s is %s, %v", id, rec.State, err)
			}
		}
		if n := strings.Count(log.String(), "retrying"); n < 2 || n > 200 {
			t.Errorf("%d entries in the log in two hours:\n%.2000s", n, log.String())
		}

		if err := queryOnly(0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(maxRetry)
		synctest.Wait()
		for id, state := range map[job.ID]job.State{"abandoned": job.Queued, "delayed": job.Queued, "waiting": job.Failed} {
			if rec, err := l.Get(t.Context(), id); err != nil || rec.State != state {
				t.Errorf("%s is %s, %v; want %s", id, rec.State, err, state)
			}
		}
		if _, err := l.Get(t.Context(), "old"); !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("an old record: %v", err)
		}
		for _, want := range []job.ID{"abandoned", "delayed"} {
			if c, err := l.Claim(t.Context(), ledger.Slot{Node: "n", Sheep: "a"}); err != nil || c == nil || c.ID != want || c.Spent != 0 {
				t.Errorf("claimed %+v, %v; want %s", c, err, want)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestTimersInSteps: more jobs become due at one moment than one transaction changes.
func TestTimersInSteps(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := mustOpen(t, Config{Path: filepath.Join(t.TempDir(), "ledger.db")})
		const n = 3*timerBatch + 1
		at := time.Now().Add(time.Hour)
		for i := range n {
			rec := numbered(i)
			rec.NotBefore = at
			if i%2 == 0 {
				rec.NotBefore, rec.WaitUntil = at.Add(time.Hour), at
			}
			if _, err := l.Create(t.Context(), rec); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Until(at) - time.Microsecond)
		synctest.Wait()
		if c, err := l.Claim(t.Context(), ledger.Slot{Node: "n", Sheep: "a"}); c != nil || err != nil {
			t.Fatalf("Claim = %+v, %v", c, err)
		}
		time.Sleep(2 * time.Microsecond)
		synctest.Wait()
		counts, err := l.Count(t.Context())
		if err != nil || counts[job.Failed] != n/2+1 {
			t.Errorf("counts are %v, %v", counts, err)
		}
		waiting, err := l.Waiting(t.Context(), 10)
		jobs := 0
		for _, w := range waiting {
			jobs += w.Jobs
		}
		if err != nil || jobs != n/2 {
			t.Errorf("%d jobs wait, %v; want %d", jobs, err, n/2)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
