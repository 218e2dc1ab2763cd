package sqlite

import (
	"cmp"
	"context"
	"database/sql"
	"maps"
	"slices"
	"sync"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/lifecycle"
)

// group is the key by which claimable jobs are counted.
type group struct {
	model job.Model
	sheep string // that they are addressed to
	// tenant is told apart only where a policy bounds what is claimed.
	tenant string
}

// tally counts the records in each state, the claimable jobs of each model and address,
// and the queued jobs of each tenant, and lists the held jobs. It has the changes of
// committed transactions.
type tally struct {
	mu        sync.Mutex
	states    ledger.Counts
	claimable map[string]map[job.Model]int // by address
	queued    map[string]int               // by tenant
	retained  int                          // records that stay until their files are removed
	blocked   int                          // records that wait for others
	uploads   int                          // reservations
	held      map[job.ID]heldJob

	// Only where a policy bounds claims.
	groups map[group]int                // claimable jobs
	used   map[string]lifecycle.Account // by tenant, where they share
}

// tallyChange is the difference that one transaction makes to the tally.
type tallyChange struct {
	states    ledger.Counts
	claimable map[group]int
	queued    map[string]int // by tenant
	retained  int
	blocked   int
	uploads   int
	claims    map[job.ID]*heldJob          // that began, or nil for those that ended
	used      map[string]lifecycle.Account // of tenants, that changed
}

func newTallyChange() tallyChange {
	return tallyChange{states: ledger.Counts{}, claimable: map[group]int{}, queued: map[string]int{}, claims: map[job.ID]*heldJob{}}
}

// countNew counts a record that was inserted.
func (c *tallyChange) countNew(r *row) {
	c.states[r.State]++
	c.count(r)
}

// countChanged counts a record that was written again.
func (c *tallyChange) countChanged(r *row) {
	c.states[r.stored.state]--
	c.states[r.State]++
	if now := r.retained(); now != r.stored.retained {
		c.retained += plusOrMinus(now)
		r.stored.retained = now
	}
	c.count(r)
}

// countRemoved counts a record that was removed, which was not claimable.
func (c *tallyChange) countRemoved(r *row) {
	c.states[r.State]--
	if r.stored.retained {
		c.retained--
	}
}

// count adds the difference between a record and its stored values, and updates these.
func (c *tallyChange) count(r *row) {
	if now := r.Claimable(); now != r.stored.claimable {
		c.claimable[r.group()] += plusOrMinus(now)
		r.stored.claimable = now
	}
	if now := r.State == job.Queued; now != (r.stored.state == job.Queued) {
		c.queued[r.Tenant] += plusOrMinus(now)
	}
	if now := r.Token != 0; now != r.stored.held {
		if c.claims[r.ID] = nil; now {
			c.claims[r.ID] = &heldJob{r.Tenant, r.Model, r.ClaimedAt}
		}
		r.stored.held = now
	}
	if now := r.Blocked; now != r.stored.blocked {
		c.blocked += plusOrMinus(now)
		r.stored.blocked = now
	}
	r.stored.state = r.State
}

// plusOrMinus is the change of a count by a record that now belongs to it, or no longer
// does.
func plusOrMinus(now bool) int {
	if now {
		return 1
	}
	return -1
}

// loadTally counts the records in the file.
func loadTally(ctx context.Context, conn *sql.Conn, policy ledger.Policy) (*tally, error) {
	t := &tally{
		states: ledger.Counts{}, claimable: map[string]map[job.Model]int{}, queued: map[string]int{}, held: map[job.ID]heldJob{}, used: map[string]lifecycle.Account{},
	}
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
	if err := conn.QueryRowContext(ctx, queryCountBlocked).Scan(&t.blocked); err != nil {
		return nil, err
	}
	if err := conn.QueryRowContext(ctx, queryCountUploads).Scan(&t.uploads); err != nil {
		return nil, err
	}
	err = eachRow(ctx, conn, queryCountClaimable, func(scan func(...any) error) error {
		var g group
		var n int
		err := scan(&g.model.Name, &g.model.Version, &g.sheep, &n)
		t.addClaimable(g, n)
		return err
	})
	if err != nil {
		return nil, err
	}
	return t, t.loadPolicy(ctx, conn, policy)
}

const queryCountClaimable = `SELECT model_name, model_version, sheep, count(*) FROM jobs
	WHERE state = 'queued' AND token = 0 AND delayed = 0 GROUP BY model_name, model_version, sheep`

const queryCountBlocked = `SELECT count(*) FROM jobs WHERE blocked = 1`

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

// add adds the difference that a committed transaction makes.
func (t *tally) add(made tallyChange) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.retained += made.retained
	t.blocked += made.blocked
	t.uploads += made.uploads
	for state, n := range made.states {
		t.states[state] += n
	}
	for g, n := range made.claimable {
		t.addClaimable(g, n)
		if t.groups != nil {
			addTo(t.groups, g, n)
		}
	}
	for tenant, n := range made.queued {
		addTo(t.queued, tenant, n)
	}
	for id, h := range made.claims {
		if delete(t.held, id); h != nil {
			t.held[id] = *h
		}
	}
	maps.Copy(t.used, made.used)
}

// addTo adds to a count, and deletes it when it is 0.
func addTo[K comparable](counts map[K]int, key K, n int) {
	if counts[key] += n; counts[key] == 0 {
		delete(counts, key)
	}
}

// addClaimable is called with the lock held, or before the tally is shared.
func (t *tally) addClaimable(g group, n int) {
	models := t.claimable[g.sheep]
	if models == nil {
		models = map[job.Model]int{}
		t.claimable[g.sheep] = models
	}
	if addTo(models, g.model, n); len(models) == 0 {
		delete(t.claimable, g.sheep)
	}
}

// anyBlocked reports whether there are blocked records.
func (t *tally) anyBlocked() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.blocked > 0
}

// uploadCount is how many reservations there are.
func (t *tally) uploadCount() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.uploads
}

// queuedOf returns the number of queued records of a tenant.
func (t *tally) queuedOf(tenant string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.queued[tenant]
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

// expirable returns the number of records in a final state that do not wait for the
// removal of their files.
func (t *tally) expirable() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.states[job.Done] + t.states[job.Failed] + t.states[job.Cancelled] - t.retained
}

// anyFor reports whether there is a claimable job for the slot.
func (t *tally) anyFor(slot ledger.Slot) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.claimable[slot.Sheep]) > 0 || !slot.Addressed && t.anyOpen("", slot) {
		return true
	}
	for _, address := range slot.Own {
		if len(t.claimable[address]) > 0 {
			return true
		}
	}
	return !slot.Addressed && slices.ContainsFunc(slot.Open, func(address string) bool { return t.anyOpen(address, slot) })
}

// anyOpen reports whether there is a claimable job with the address whose model the slot
// does not except. The lock is held.
func (t *tally) anyOpen(address string, slot ledger.Slot) bool {
	models := t.claimable[address]
	if len(models) > 0 && slot.Only != "" || len(models) > len(slot.Except) {
		return true
	}
	for model := range models {
		if !slices.Contains(slot.Except, model) {
			return true
		}
	}
	return false
}

// waiting returns up to most groups, those with most jobs first, and the number of jobs in
// the others. Oldest is not set.
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
