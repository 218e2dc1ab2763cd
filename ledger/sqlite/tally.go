package sqlite

import (
	"cmp"
	"context"
	"database/sql"
	"slices"
	"sync"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// group is what claimable jobs are counted by.
type group struct {
	model job.Model
	sheep string // that they are addressed to
}

// tally counts the records in each state, and the claimable jobs of each model
// and address. It holds what is committed.
type tally struct {
	mu        sync.Mutex
	states    ledger.Counts
	claimable map[string]map[job.Model]int // by address
	retained  int                          // records that stay until their files are removed
}

// loadTally counts what is in the file.
func loadTally(ctx context.Context, conn *sql.Conn) (*tally, error) {
	t := &tally{states: ledger.Counts{}, claimable: map[string]map[job.Model]int{}}
	for _, state := range states() {
		t.states[state] = 0
	}
	err := eachRow(ctx, conn, `SELECT state, count(*) FROM jobs GROUP BY state`, func(scan func(...any) error) error {
		var state job.State
		var n int
		err := scan(&state, &n)
		t.states[state] = n
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := conn.QueryRowContext(ctx, queryCountRetained).Scan(&t.retained); err != nil {
		return nil, err
	}
	return t, eachRow(ctx, conn, queryCountClaimable, func(scan func(...any) error) error {
		var g group
		var n int
		err := scan(&g.model.Name, &g.model.Version, &g.sheep, &n)
		t.addClaimable(g, n)
		return err
	})
}

const queryCountClaimable = `SELECT model_name, model_version, sheep, count(*) FROM jobs
	WHERE state = 'queued' AND token = 0 AND delayed = 0 GROUP BY model_name, model_version, sheep`

const queryCountRetained = `SELECT count(*) FROM jobs WHERE remove_age > 0`

func eachRow(ctx context.Context, conn *sql.Conn, query string, each func(scan func(...any) error) error) error {
	rows, err := conn.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := each(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}

// states are all that a record can be in.
func states() []job.State {
	return []job.State{job.Queued, job.Processing, job.Done, job.Failed, job.Cancelled}
}

func (t *tally) add(states ledger.Counts, claimable map[group]int, retained int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.retained += retained
	for state, n := range states {
		t.states[state] += n
	}
	for g, n := range claimable {
		t.addClaimable(g, n)
	}
}

// addClaimable is called with the lock held, or before the tally is shared.
func (t *tally) addClaimable(g group, n int) {
	models := t.claimable[g.sheep]
	if models == nil {
		models = map[job.Model]int{}
		t.claimable[g.sheep] = models
	}
	if models[g.model] += n; models[g.model] == 0 {
		delete(models, g.model)
		if len(models) == 0 {
			delete(t.claimable, g.sheep)
		}
	}
}

// counts returns the number of records in each state.
func (t *tally) counts() ledger.Counts {
	t.mu.Lock()
	defer t.mu.Unlock()
	counts := make(ledger.Counts, len(t.states))
	for state, n := range t.states {
		counts[state] = n
	}
	return counts
}

// expirable returns the number of records in a final state that no files keep.
func (t *tally) expirable() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.states[job.Done] + t.states[job.Failed] + t.states[job.Cancelled] - t.retained
}

// anyFor reports whether there is a claimable job for the slot.
func (t *tally) anyFor(slot ledger.Slot) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.claimable[slot.Sheep]) > 0 {
		return true
	}
	models := t.claimable[""]
	if slot.Addressed || len(models) == 0 {
		return false
	}
	if slot.Only != "" || len(models) > len(slot.Except) {
		return true
	}
	for model := range models {
		if !slices.Contains(slot.Except, model) {
			return true
		}
	}
	return false
}

// waiting returns the groups with most jobs, at most so many entries, and how
// many jobs are in none of them. Oldest is not set.
func (t *tally) waiting(most int) (list []ledger.Waiting, rest int) {
	t.mu.Lock()
	for sheep, models := range t.claimable {
		for model, n := range models {
			list = append(list, ledger.Waiting{Model: model, Sheep: sheep, Jobs: n})
		}
	}
	t.mu.Unlock()
	slices.SortFunc(list, func(a, b ledger.Waiting) int {
		return cmp.Or(cmp.Compare(b.Jobs, a.Jobs), cmp.Compare(a.Model.Name, b.Model.Name),
			cmp.Compare(a.Model.Version, b.Model.Version), cmp.Compare(a.Sheep, b.Sheep))
	})
	if len(list) <= most {
		return list, 0
	}
	most = max(most-1, 0) // the rest is one entry
	for _, w := range list[most:] {
		rest += w.Jobs
	}
	return list[:most], rest
}
