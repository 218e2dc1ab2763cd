package bench

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	_ "modernc.org/sqlite"
)

// BenchmarkSubmit submits jobs, whose inputs are in storage, to a busy sheep by 64
// clients, in turns with a loop that only makes a row with the request durable in SQLite,
// for 64 callers that share commits, and with the same requests to a handler of net/http that
// does nothing: the more of those two a submission takes together, the less is its own.
func BenchmarkSubmit(b *testing.B) {
	null, _ := startNull(b)
	w := newWorld(b, null, "access-key", "secret-key")
	w.start()
	must(b, w.submitTo("busy", "hold:v1", "sheep"))
	group := newGroupCommit(b)
	const clients, rounds, jobs = 64, 7, 2000
	var rate, alone, ratio, empty, both []float64
	var took []time.Duration
	var cpu time.Duration
	nothing := *w
	nothing.api = null
	for round := range rounds + 1 {
		if round == 1 { // the one before warmed up
			rate, alone, ratio, empty, both, took, cpu = nil, nil, nil, nil, nil, nil, 0
		}
		each := make([]time.Duration, jobs)
		used, began := cpuTime(b, w.daemon.Process.Pid), time.Now()
		together(b, clients, jobs, func(i int) error {
			began := time.Now()
			err := w.submit(fmt.Sprintf("job-%d-%d", round, i), "noop:v1", "")
			each[i] = time.Since(began)
			return err
		})
		middle := time.Now()
		cpu += cpuTime(b, w.daemon.Process.Pid) - used
		together(b, clients, jobs, func(i int) error {
			return group.insert(b.Context(), fmt.Sprintf("job-%d-%d", round, i), `{"model": {"name": "noop", "version": "v1"}}`)
		})
		end := time.Now()
		together(b, clients, jobs, func(i int) error {
			return nothing.submit(fmt.Sprintf("job-%d-%d", round, i), "noop:v1", "")
		})
		served := time.Since(end)
		rate = append(rate, jobs/middle.Sub(began).Seconds())
		alone = append(alone, jobs/end.Sub(middle).Seconds())
		empty = append(empty, jobs/served.Seconds())
		ratio = append(ratio, 100*rate[len(rate)-1]/alone[len(alone)-1])
		both = append(both, 100*(end.Sub(middle)+served).Seconds()/middle.Sub(began).Seconds())
		took = append(took, each...)
	}
	slices.Sort(took)
	noteSpread(b, "submissions of 64 clients", rate, "jobs/s")
	noteSpread(b, "rows by SQLite alone for 64 callers", alone, "rows/s")
	noteSpread(b, "requests of 64 clients that net/http answers alone", empty, "requests/s")
	note(b, "time of net/http and SQLite alone, of a submission's", median(both), "%")
	hopedAtLeast(b, "submissions of 64 clients, of the rows", median(ratio), "%", 70)
	note(b, "CPU time of the daemon for a submission", ms(cpu)/(rounds*jobs), "ms/job")
	note(b, "submission, median", ms(median(took)), "ms")
	atMost(b, "submission, 99th percentile of the median", float64(took[len(took)*99/100])/float64(median(took)), "times", 10)
}

// groupCommit makes rows durable in SQLite: each commit has all rows that wait.
type groupCommit struct{ rows chan *row }

type row struct {
	id, text string
	done     chan error
}

func newGroupCommit(b *testing.B) *groupCommit {
	b.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(b.TempDir(), "rows.db")+"?_txlock=immediate&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)")
	must(b, err)
	db.SetMaxOpenConns(1)
	_, err = db.Exec(`CREATE TABLE rows (id TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID`)
	must(b, err)
	g := &groupCommit{rows: make(chan *row, 256)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for first := range g.rows {
			batch := []*row{first}
			for len(g.rows) > 0 && len(batch) < cap(g.rows) {
				batch = append(batch, <-g.rows)
			}
			err := insertAll(db, batch)
			for _, r := range batch {
				r.done <- err
			}
		}
	}()
	b.Cleanup(func() {
		close(g.rows)
		<-ended
		must(b, db.Close())
	})
	return g
}

func (g *groupCommit) insert(ctx context.Context, id, text string) error {
	r := &row{id, text, make(chan error, 1)}
	select {
	case g.rows <- r:
		return <-r.done
	case <-ctx.Done():
		return ctx.Err()
	}
}

func insertAll(db *sql.DB, batch []*row) error {
	tx, err := db.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // it is committed by then
	for _, r := range batch {
		if _, err := tx.Exec(`INSERT INTO rows VALUES (?, ?)`, r.id, r.text); err != nil {
			return err
		}
	}
	return tx.Commit()
}
