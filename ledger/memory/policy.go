package memory

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// Queued implements ledger.Ledger.
func (rs *records) Queued(ctx context.Context, tenant string, most int) (int, error) {
	n := 0
	err := rs.call(ctx, "count the queued jobs of tenant "+tenant, func() error {
		n = rs.index.queued[tenant]
		return nil
	})
	return min(n, most), err
}

// Load implements ledger.Ledger.
func (rs *records) Load(ctx context.Context) (ledger.Load, error) {
	var load ledger.Load
	err := rs.call(ctx, "look up what is held", func() error {
		load = rs.load()
		return nil
	})
	return load, err
}

// load is Load, with the lock held.
func (d *database) load() ledger.Load {
	m := d.moment()
	load := ledger.Load{Used: map[string]time.Duration{}}
	since := m.Now.Sub(d.clock.began)
	for of, sum := range d.index.heldOf {
		load.Held = append(load.Held, ledger.HeldJobs{Tenant: of.tenant, Model: of.model, Jobs: sum.jobs, Time: max(time.Duration(sum.jobs)*since-sum.claimed, 0)})
	}
	slices.SortFunc(load.Held, func(a, b ledger.HeldJobs) int {
		return cmp.Or(cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.Model.Name, b.Model.Name), cmp.Compare(a.Model.Version, b.Model.Version))
	})
	for tenant, account := range d.used {
		load.Used[tenant] = account.At(m.Age, d.cfg.Policy.HalfLife)
	}
	return load
}

// charge adds the GPU time of an attempt to its tenant's account.
func (d *database) charge(tenant string, a job.Attempt) {
	if d.cfg.Policy.Shares() {
		d.used[tenant] = d.used[tenant].Add(ledger.GPUTime(a), d.moment().Age, d.cfg.Policy.HalfLife)
	}
}
