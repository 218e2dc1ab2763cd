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
func (l *Ledger) Queued(ctx context.Context, tenant string, most int) (int, error) {
	n := 0
	err := l.call(ctx, "count the queued jobs of tenant "+tenant, func() error {
		n = l.index.queued[tenant]
		return nil
	})
	return min(n, most), err
}

// Load implements ledger.Ledger.
func (l *Ledger) Load(ctx context.Context) (ledger.Load, error) {
	var load ledger.Load
	err := l.call(ctx, "look up what is held", func() error {
		load = l.load()
		return nil
	})
	return load, err
}

// load is Load, with the lock held.
func (l *Ledger) load() ledger.Load {
	m := l.moment()
	load := ledger.Load{Used: map[string]time.Duration{}}
	since := m.Now.Sub(l.began)
	for of, sum := range l.index.heldOf {
		load.Held = append(load.Held, ledger.HeldJobs{Tenant: of.tenant, Model: of.model, Jobs: sum.jobs, Time: max(time.Duration(sum.jobs)*since-sum.claimed, 0)})
	}
	slices.SortFunc(load.Held, func(a, b ledger.HeldJobs) int {
		return cmp.Or(cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.Model.Name, b.Model.Name), cmp.Compare(a.Model.Version, b.Model.Version))
	})
	for tenant, account := range l.used {
		load.Used[tenant] = account.At(m.Age, l.cfg.Policy.HalfLife)
	}
	return load
}

// charge adds what an attempt has used to its tenant's account.
func (l *Ledger) charge(tenant string, a job.Attempt) {
	if l.cfg.Policy.Shares() {
		l.used[tenant] = l.used[tenant].Add(ledger.GPUTime(a), l.moment().Age, l.cfg.Policy.HalfLife)
	}
}
