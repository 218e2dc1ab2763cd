package shepherd_test

import (
	"context"
	"strings"
	"testing"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger/sqlite"
	"github.com/iterait/shepherd/shepherd"
)

// After the state directory is lost, jobs that storage says are queued or
// processing are queued again, in their old order, and run; what has ended is left
// alone, and what cannot be queued is named.
func TestRebuild(t *testing.T) {
	p := newFixture(t)
	begun, _ := p.gated()
	p.start()
	p.submit("ended", "m", "1")
	p.await("ended", job.Done)
	p.submit("wait-1", "m", "2")
	p.began(begun, "wait-1")
	p.submit("behind-b", "m", "3")
	p.submit("behind-a", "m", "4")
	for id, want := range map[job.ID]job.State{"wait-1": job.Processing, "behind-b": job.Queued, "behind-a": job.Queued} {
		p.eventually("storage has the state of "+string(id), func() bool {
			kept, err := p.store.Status(t.Context(), id)
			return err == nil && kept.State == want
		})
	}
	for id, text := range map[job.ID]string{"torn": "{", "unknown": ""} {
		if err := p.store.Init(t.Context(), id, []byte("input")); err != nil {
			t.Fatal(err)
		}
		if text != "" {
			if err := p.store.Put(t.Context(), id, job.StatusFile, strings.NewReader(text), int64(len(text))); err != nil {
				t.Fatal(err)
			}
		}
	}
	// The daemon goes with its state; what it still writes to storage while it ends
	// is not what a daemon that is killed writes, so the statuses are put back.
	before := make(map[job.ID]job.Status)
	for _, id := range []job.ID{"wait-1", "behind-b", "behind-a"} {
		before[id], _ = p.store.Status(t.Context(), id)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	p.core.Stop(ended)
	p.core = nil
	for id, status := range before {
		if err := p.store.SetStatus(t.Context(), id, status); err != nil {
			t.Fatal(err)
		}
	}
	p.ledger.Close()
	var err error
	p.ledger, err = sqlite.Open(t.Context(), sqlite.Config{Path: p.dir + "/new.db", Log: p.config.Log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.ledger.Close() })
	p.config.Ledger = p.ledger

	for _, dry := range []bool{true, false, false} {
		var queued []string
		trouble := make(map[job.ID]string)
		counts, err := shepherd.Rebuild(t.Context(), shepherd.RebuildConfig{Ledger: p.ledger, Store: p.store, DryRun: dry, Report: func(r shepherd.Rebuilt) {
			if r.Trouble != nil {
				trouble[r.ID] = r.Trouble.Error()
				return
			}
			queued = append(queued, string(r.ID)+" "+r.Model.String())
		}})
		if err != nil {
			t.Fatal(err)
		}
		want := shepherd.RebuildCounts{Queued: 3, Ended: 1, Refused: 2}
		list := "wait-1 m:v1, behind-b m:v1, behind-a m:v1"
		if known, err := p.ledger.Count(t.Context()); err != nil {
			t.Fatal(err)
		} else if n := known[job.Queued]; !dry && n != 3 || dry && n != 0 {
			t.Errorf("%d jobs are in the ledger after dry=%v", n, dry)
		}
		if len(queued) == 0 && !dry { // the second time
			want, list = shepherd.RebuildCounts{Known: 3, Ended: 1, Refused: 2}, ""
		}
		if counts != want || strings.Join(queued, ", ") != list {
			t.Errorf("dry=%v: %+v, queued %q; want %+v, %q", dry, counts, queued, want, list)
		}
		if len(trouble) != 2 || !strings.Contains(trouble["unknown"], "submit it again") || !strings.Contains(trouble["torn"], "is not the status of a job") {
			t.Errorf("dry=%v: refused %q", dry, trouble)
		}
	}
	p.handle = echo
	p.start()
	for id, text := range map[string]string{"wait-1": "2", "behind-b": "3", "behind-a": "4"} {
		p.await(id, job.Done)
		if got := p.output(id); got != text {
			t.Errorf("%s gave %q, want %q", id, got, text)
		}
	}
}
