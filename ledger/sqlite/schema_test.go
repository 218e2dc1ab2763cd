package sqlite

import (
	"database/sql"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// TestMigrate opens a ledger of every earlier schema: the jobs in it are still
// there, and go on.
func TestMigrate(t *testing.T) {
	for version := 1; version < len(migrations); version++ {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ledger.db")
			old, err := sql.Open("sqlite", source(path))
			if err != nil {
				t.Fatal(err)
			}
			for _, script := range migrations[:version] {
				if _, err := old.Exec(script); err != nil {
					t.Fatal(err)
				}
			}
			_, err = old.Exec(fmt.Sprintf(`INSERT INTO jobs (seq, id, model_name, model_version, sheep, priority, state, enqueued_at, run)
				VALUES (1, 'x', 'm', 'v', '', 3, 'queued', 1000, 1);
				UPDATE counters SET seq = 1; PRAGMA application_id = %d; PRAGMA user_version = %d`, applicationID, version))
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
		})
	}
}
