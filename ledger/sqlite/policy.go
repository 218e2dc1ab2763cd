package sqlite

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"slices"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/lifecycle"
)

// A ledger that is opened with a policy has an index for claims and, where tenants share,
// a table of what each has used at an age of the ledger. Without a policy the index is
// dropped.
const (
	createPolicyIndex = `CREATE INDEX IF NOT EXISTS jobs_claimable_by_tenant ON jobs (sheep, tenant, model_name, model_version, priority DESC)
		WHERE state = 'queued' AND token = 0 AND delayed = 0`
	dropPolicyIndex = `DROP INDEX IF EXISTS jobs_claimable_by_tenant`
	createUsed      = `CREATE TABLE IF NOT EXISTS used (
		tenant TEXT PRIMARY KEY,
		used   INTEGER NOT NULL, -- GPU time in microseconds
		age    INTEGER NOT NULL
	) STRICT, WITHOUT ROWID`

	queryCountGroups = `SELECT sheep, tenant, model_name, model_version, count(*) FROM jobs
		WHERE state = 'queued' AND token = 0 AND delayed = 0 GROUP BY sheep, tenant, model_name, model_version`
	queryCountQueued = `SELECT tenant, count(*) FROM jobs WHERE state = 'queued' GROUP BY tenant`
	queryAllHeld     = `SELECT id, tenant, model_name, model_version, claimed_at FROM jobs WHERE token > 0`
	queryUsed        = `SELECT tenant, used, age FROM used`
)

// policyStatements are the statements that are used only with a policy.
func (s *statements) policyStatements(policy ledger.Policy) []statement {
	var list []statement
	if policy.BoundsClaims() {
		// The first claimable job of each of the groups, which are a JSON list of lists
		// of address, tenant, name and version of a model.
		list = append(list, statement{"headsOf", &s.headsOf, `SELECT j.seq, j.priority, j.sheep, j.model_name, j.model_version, j.tenant
			FROM json_each(?1) g CROSS JOIN jobs j ON j.seq = (SELECT seq FROM jobs WHERE ` + isClaimable + `
				AND sheep = g.value ->> 0 AND tenant = g.value ->> 1 AND model_name = g.value ->> 2 AND model_version = g.value ->> 3
				ORDER BY priority DESC, seq LIMIT 1)`})
	}
	if policy.Shares() {
		list = append(list, statement{"saveUsed", &s.saveUsed, `INSERT INTO used (tenant, used, age) VALUES (?, ?, ?)
			ON CONFLICT (tenant) DO UPDATE SET used = excluded.used, age = excluded.age`})
	}
	return list
}

// preparePolicy creates the index and the table that the policy needs.
func preparePolicy(ctx context.Context, conn *sql.Conn, policy ledger.Policy) error {
	script := dropPolicyIndex
	if policy.BoundsClaims() {
		script = createPolicyIndex
	}
	if policy.Shares() {
		script += ";" + createUsed
	}
	_, err := conn.ExecContext(ctx, script)
	return err
}

// heldJob is a job that is held.
type heldJob struct {
	tenant string
	model  job.Model
	since  time.Time
}

// loadPolicy reads the queued and held jobs and the state of the policy.
func (t *tally) loadPolicy(ctx context.Context, conn *sql.Conn, policy ledger.Policy) error {
	err := eachRow(ctx, conn, queryCountQueued, func(scan func(...any) error) error {
		var tenant string
		var n int
		err := scan(&tenant, &n)
		t.queued[tenant] = n
		return err
	})
	if err != nil {
		return err
	}
	err = eachRow(ctx, conn, queryAllHeld, func(scan func(...any) error) error {
		var id job.ID
		var h heldJob
		var since int64
		err := scan(&id, &h.tenant, &h.model.Name, &h.model.Version, &since)
		h.since = toTime(since)
		t.held[id] = h
		return err
	})
	if err != nil {
		return err
	}
	if policy.BoundsClaims() {
		t.groups = map[group]int{}
		err := eachRow(ctx, conn, queryCountGroups, func(scan func(...any) error) error {
			var g group
			var n int
			err := scan(&g.sheep, &g.tenant, &g.model.Name, &g.model.Version, &n)
			t.groups[g] = n
			return err
		})
		if err != nil {
			return err
		}
	}
	if !policy.Shares() {
		return nil
	}
	return eachRow(ctx, conn, queryUsed, func(scan func(...any) error) error {
		var tenant string
		var a lifecycle.Account
		var used int64
		err := scan(&tenant, &used, &a.Age)
		a.Used = time.Duration(used) * time.Microsecond
		t.used[tenant] = a
		return err
	})
}

// load returns the input of a policy, including the changes of the transaction, which may
// be nil.
func (t *tally) load(made *tx, halfLife time.Duration, now time.Time, age int64) ledger.Load {
	t.mu.Lock()
	defer t.mu.Unlock()
	load := ledger.Load{}
	add := func(h heldJob) {
		load.Held = append(load.Held, ledger.HeldJobs{Tenant: h.tenant, Model: h.model, Jobs: 1, Time: max(now.Sub(h.since), 0)})
	}
	for id, h := range t.held {
		if made != nil {
			if _, changed := made.claims[id]; changed {
				continue
			}
		}
		add(h)
	}
	if made != nil {
		for _, h := range made.claims {
			if h != nil {
				add(*h)
			}
		}
	}
	load.Held = ledger.Merge(load.Held)
	if halfLife > 0 {
		load.Used = map[string]time.Duration{}
		for tenant, a := range t.used {
			load.Used[tenant] = a.At(age, halfLife)
		}
		if made != nil {
			for tenant, a := range made.used {
				load.Used[tenant] = a.At(age, halfLife)
			}
		}
	}
	return load
}

// admission is the policy at this point of the transaction.
func (t *tx) admission() ledger.Admission {
	policy := t.w.cfg.Policy
	if !policy.BoundsClaims() {
		return policy.Admit(ledger.Load{})
	}
	return policy.Admit(t.w.tally.load(t, policy.HalfLife, t.now, t.age))
}

// chooseBounded returns the job that the slot gets where a policy bounds claims, nil for
// none: the first, by the scheduling order, of the first jobs of all groups.
func (t *tx) chooseBounded(slot ledger.Slot) (*row, error) {
	admission := t.admission()
	var groups [][4]string
	for _, g := range t.groups() {
		may, own := slot.Answers(g.sheep)
		if may && (own || !slices.Contains(slot.Except, g.model)) && admission.Reached(g.tenant, g.model) == nil {
			groups = append(groups, [4]string{g.sheep, g.tenant, g.model.Name, g.model.Version})
		}
	}
	if len(groups) == 0 {
		return nil, nil
	}
	encoded, err := json.Marshal(groups)
	if err != nil {
		return nil, err
	}
	var first head
	var tenant string
	before := func(h head, of string) bool {
		mine, theirs := h.model == slot.Prefer, first.model == slot.Prefer
		switch {
		case first.seq == 0:
			return true
		case h.priority != first.priority || mine != theirs:
			return h.priority > first.priority || h.priority == first.priority && mine
		}
		return cmp.Or(cmp.Compare(admission.Share(of), admission.Share(tenant)), cmp.Compare(h.seq, first.seq)) < 0
	}
	err = t.query(func(scan func(...any) error) error {
		var h head
		var of string
		if err := scan(&h.seq, &h.priority, &h.sheep, &h.model.Name, &h.model.Version, &of); err != nil {
			return err
		}
		if before(h, of) {
			first, tenant = h, of
		}
		return nil
	}, t.stmts.headsOf, string(encoded))
	if err != nil || first.seq == 0 {
		return nil, err
	}
	return t.bySeq(first.seq)
}

// groups returns the groups with claimable jobs, including the changes of the transaction.
func (t *tx) groups() []group {
	t.w.tally.mu.Lock()
	defer t.w.tally.mu.Unlock()
	var groups []group
	for g, n := range t.w.tally.groups {
		if n+t.claimable[g] > 0 {
			groups = append(groups, g)
		}
	}
	for g, n := range t.claimable {
		if _, counted := t.w.tally.groups[g]; !counted && n > 0 {
			groups = append(groups, g)
		}
	}
	return groups
}

// charge adds the GPU time of an attempt that ended to its tenant's account.
func (t *tx) charge(tenant string, ended job.Attempt) error {
	policy := t.w.cfg.Policy
	if !policy.Shares() {
		return nil
	}
	a, changed := t.used[tenant]
	if !changed {
		t.w.tally.mu.Lock()
		a = t.w.tally.used[tenant]
		t.w.tally.mu.Unlock()
	}
	a = a.Add(ledger.GPUTime(ended), t.age, policy.HalfLife)
	if t.used == nil {
		t.used = map[string]lifecycle.Account{}
	}
	t.used[tenant] = a
	_, err := t.exec(t.stmts.saveUsed, tenant, a.Used.Microseconds(), a.Age)
	return err
}
