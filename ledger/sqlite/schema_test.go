package sqlite

import (
	"compress/gzip"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// TestMigrate opens a ledger of every earlier schema: its jobs are still there and can
// run.
func TestMigrate(t *testing.T) {
	for version := 1; version < len(migrations); version++ {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ledger.db")
			old, err := sql.Open("sqlite", dataSource(path))
			if err != nil {
				t.Fatal(err)
			}
			for _, script := range migrations[:version] {
				if _, err := old.Exec(script); err != nil {
					t.Fatal(err)
				}
			}
			insert := `INSERT INTO jobs (seq, id, model_name, model_version, sheep, priority, state, enqueued_at, run)
				VALUES (1, 'x', 'm', 'v', '', 3, 'queued', 1000, 1);
				UPDATE counters SET seq = 1;`
			ended := 0
			if version >= 5 {
				insert = `INSERT INTO jobs (seq, id, model_name, model_version, sheep, priority, tenant, trace_parent, trace_state, state, enqueued_at, changed_at, run, attempt)
						VALUES (1, 'x', 'm', 'v', '', 3, '', '', '', 'queued', 1000, 1000, 1, 1);
					INSERT INTO attempts (job, run, number, node, sheep, began, started, ended, cause, reason, spent, gpu_memory, gpu_time, stage, load, execute, collect)
						VALUES ('x', 1, 1, 'n', 'a', 1000, 0, 2000, 'handed-back', 'r', 0, 0, 0, 0, 0, 0, 0);
					UPDATE numbers SET seq = 1;`
				ended = 1
			}
			_, err = old.Exec(fmt.Sprintf(`%s PRAGMA application_id = %d; PRAGMA user_version = %d`, insert, applicationID, version))
			if err != nil {
				t.Fatal(err)
			}
			if err := old.Close(); err != nil {
				t.Fatal(err)
			}

			l := mustOpen(t, Config{Path: path})
			claim, err := l.Claim(t.Context(), ledger.Slot{Node: "n", Sheep: "a"})
			if err != nil || claim == nil || claim.ID != "x" || claim.Priority != 3 || claim.Usage != (job.Usage{}) {
				t.Fatalf("claimed %+v, %v", claim, err)
			}
			used := job.Usage{GPUMemory: 7}
			if _, err := l.Finish(t.Context(), "x", claim.Token, ledger.Outcome{State: job.Done, Cause: job.CauseDone, Usage: used}); err != nil {
				t.Fatal(err)
			}
			if rec, err := l.Get(t.Context(), "x"); err != nil || rec.Usage != used {
				t.Fatalf("kept %+v, %v", rec, err)
			}
			if _, err := l.ReserveUpload(t.Context(), job.Upload{ID: "x"}, time.Hour); !errors.Is(err, ledger.ErrExists) {
				t.Fatalf("the id of a job is reserved: %v", err)
			}
			if u, err := l.ReserveUpload(t.Context(), job.Upload{ID: "y"}, time.Hour); err != nil || u.Expires.Sub(u.Created) != time.Hour {
				t.Fatalf("reserved %+v, %v", u, err)
			}
			if attempts, err := l.Attempts(t.Context(), "x"); err != nil || len(attempts) != ended+1 || attempts[0].Log != "" {
				t.Fatalf("attempts %+v, %v", attempts, err)
			}
		})
	}
}

// openOld opens the ledger of an earlier version in testdata, an hour after it was
// written.
func openOld(t *testing.T, name string) *Ledger {
	t.Helper()
	packed, err := os.Open(filepath.Join("testdata", name+".gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer packed.Close()
	unpacked, err := gzip.NewReader(packed)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ledger.db")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := io.Copy(file, unpacked); err != nil {
		t.Fatal(err)
	}
	made := time.UnixMicro(1795897969807424)
	begin := time.Now()
	return mustOpen(t, Config{Path: path, Now: func() time.Time { return made.Add(time.Hour + time.Since(begin)) }})
}

// TestMigrateVersion4 opens a ledger of version 4, which had no attempts and events, with
// jobs in every situation: the records are unchanged, claims are attempts under way, and
// the jobs can run.
func TestMigrateVersion4(t *testing.T) {
	l := openOld(t, "ledger-v4.db")
	at := func(micros int64) time.Time { return time.UnixMicro(1795897969000000 + micros).UTC() }
	red, blue := job.Model{Name: "red", Version: "1"}, job.Model{Name: "ns/blue"}
	trace := job.Trace{Parent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", State: "a=1"}
	want := []job.Record{
		{Seq: 1, ID: "queued", Model: red, Trace: trace, Tenant: "wool", State: job.Queued, Run: 1, EnqueuedAt: at(666795)},
		{Seq: 2, ID: "queued-addressed", Model: blue, Sheep: "a", Priority: 7, State: job.Queued, Run: 1, EnqueuedAt: at(675850)},
		{Seq: 3, ID: "held", Model: red, State: job.Queued, Run: 1, Attempt: 1, Holder: "a", Node: "node1", EnqueuedAt: at(677741)},
		{Seq: 4, ID: "processing", Model: red, Tenant: "meat", State: job.Processing, Run: 1, Attempt: 2, Spent: 1, Holder: "b", Node: "node1", EnqueuedAt: at(681367), StartedAt: at(687726)},
		{Seq: 5, ID: "put-back", Model: red, State: job.Queued, Run: 1, Attempt: 1, Spent: 1, EnqueuedAt: at(692484)},
		{Seq: 6, ID: "put-back-unspent", Model: red, State: job.Queued, Run: 1, EnqueuedAt: at(716970)},
		{Seq: 7, ID: "done", Model: red, Trace: trace, Tenant: "wool", State: job.Done, Run: 1, Attempt: 1, Spent: 1, EnqueuedAt: at(761804), StartedAt: at(768994), FinishedAt: at(771991), Usage: job.Usage{GPUMemory: 80 << 30, GPUTime: 90 * time.Minute}},
		{Seq: 8, ID: "failed", Model: red, Sheep: "b", State: job.Failed, Failure: &job.Failure{Message: "the größte failure", Type: "ValueError"}, Run: 1, Attempt: 1, Spent: 1, EnqueuedAt: at(776764), StartedAt: at(779073), FinishedAt: at(780884)},
		{Seq: 9, ID: "failed-long", Model: red, State: job.Failed, Run: 1, Attempt: 1, Spent: 1, EnqueuedAt: at(786740), StartedAt: at(788728), FinishedAt: at(790067)},
		{Seq: 10, ID: "cancelled", Model: red, State: job.Cancelled, Run: 1, EnqueuedAt: at(791351), FinishedAt: at(792231)},
		{Seq: 11, ID: "cancelled-processing", Model: red, State: job.Cancelled, Run: 1, Attempt: 1, Spent: 1, EnqueuedAt: at(793377), StartedAt: at(794118), FinishedAt: at(794881)},
		{Seq: 13, ID: "again", Model: red, State: job.Queued, Run: 2, EnqueuedAt: at(797945)},
		{Seq: 14, ID: "blue0", Model: blue, State: job.Done, Run: 1, Attempt: 1, Spent: 1, EnqueuedAt: at(798795), StartedAt: at(799626), FinishedAt: at(801094)},
		{Seq: 15, ID: "blue1", Model: blue, State: job.Done, Run: 1, Attempt: 1, Spent: 1, EnqueuedAt: at(802302), StartedAt: at(803123), FinishedAt: at(804251)},
		{Seq: 16, ID: "blue2", Model: blue, State: job.Done, Run: 1, Attempt: 1, Spent: 1, EnqueuedAt: at(805511), StartedAt: at(806485), FinishedAt: at(807424)},
	}
	records, _, err := l.List(t.Context(), ledger.Filter{}, 0, 100)
	if err != nil || len(records) != len(want) {
		t.Fatalf("%d records, %v; want %d", len(records), err, len(want))
	}
	for i, got := range records {
		if got.ID == "failed-long" {
			// Longer texts than are kept now are cut.
			whole, err := l.Get(t.Context(), got.ID)
			if err != nil {
				t.Fatal(err)
			}
			for text, most := range map[string]int{whole.Failure.Message: job.MaxMessage, whole.Failure.Traceback: job.MaxTraceback} {
				if len(text) > most || !strings.HasPrefix(text, "begin ") || !strings.HasSuffix(text, " end") || !strings.Contains(text, "[…]") {
					t.Errorf("%d bytes are kept: %.20s", len(text), text)
				}
			}
			got.Failure = nil
		}
		if !reflect.DeepEqual(got, want[i]) {
			t.Errorf("record %d:\n got %+v\nwant %+v", i, got, want[i])
		}
	}
	if rec, err := l.Get(t.Context(), "failed"); err != nil || rec.Failure.Traceback != "line 1\nline 2" {
		t.Errorf("failed: %+v, %v", rec.Failure, err)
	}
	counts, err := l.Count(t.Context())
	if err != nil || counts[job.Queued] != 6 || counts[job.Processing] != 1 || counts[job.Done] != 4 || counts[job.Failed] != 2 || counts[job.Cancelled] != 2 {
		t.Errorf("counts are %v, %v", counts, err)
	}

	// Claims are attempts under way.
	held, err := l.Held(t.Context(), "node1")
	if err != nil || len(held) != 2 || held[0].ID != "held" || held[0].Token != 1 || held[1].ID != "processing" || held[1].Token != 3 {
		t.Fatalf("held: %+v, %v", held, err)
	}
	for id, attempt := range map[job.ID]job.Attempt{
		"held":       {Run: 1, Number: 1, Node: "node1", Sheep: "a", Began: at(677741)},
		"processing": {Run: 1, Number: 2, Node: "node1", Sheep: "b", Began: at(687726), Started: at(687726)},
	} {
		if got, err := l.Attempts(t.Context(), id); err != nil || len(got) != 1 || got[0] != attempt {
			t.Errorf("attempts of %s: %+v, %v; want %+v", id, got, err, attempt)
		}
	}
	if rec, err := l.Cancel(t.Context(), "held"); err != nil || !rec.Cancelling {
		t.Errorf("cancelled %+v, %v", rec, err)
	}
	if rec, err := l.Release(t.Context(), "held", 1, ledger.Return{Cause: job.CauseInterrupted}); err != nil || rec.State != job.Cancelled {
		t.Errorf("released %+v, %v", rec, err)
	}
	if rec, err := l.Finish(t.Context(), "processing", 3, ledger.Outcome{State: job.Done, Cause: job.CauseDone}); err != nil || rec.Spent != 2 {
		t.Errorf("finished %+v, %v", rec, err)
	}

	// The others go on in their order, with numbers that were not given out.
	claimed := map[job.ID]int{}
	for _, id := range []job.ID{"queued-addressed", "queued", "put-back", "put-back-unspent", "again"} {
		c, err := l.Claim(t.Context(), ledger.Slot{Node: "node1", Sheep: "a"})
		if err != nil || c == nil || c.ID != id || c.Token <= 13 {
			t.Fatalf("claimed %+v, %v; want %s", c, err, id)
		}
		claimed[id] = c.Attempt
	}
	if want := map[job.ID]int{"queued-addressed": 1, "queued": 1, "put-back": 2, "put-back-unspent": 1, "again": 1}; !reflect.DeepEqual(claimed, want) {
		t.Errorf("attempts are %v, want %v", claimed, want)
	}
	rec, err := l.Create(t.Context(), job.Record{ID: "done", Model: red})
	if err != nil || rec.Run != 2 || rec.Seq <= 16 || rec.Tenant != "wool" {
		t.Errorf("the next run is %+v, %v", rec, err)
	}
	if _, _, err := l.Events(t.Context(), "40", ledger.EventFilter{}, 10); err == nil {
		t.Error("events that only the earlier version's memory had are not known to be gone")
	}
	events, _, err := l.Events(t.Context(), "41", ledger.EventFilter{}, 100)
	if err != nil || len(events) != 9 {
		t.Errorf("%d events since, %v", len(events), err)
	}
}
