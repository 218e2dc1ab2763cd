package memory

import (
	"context"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// Queued implements ledger.Ledger.
func (l *Ledger) Queued(ctx context.Context, tenant string, most int) (int, error) {
	n := 0
	err := l.call(ctx, "count the queued jobs of tenant "+tenant, func() error {
		for _, r := range l.jobs {
			if r.Tenant == tenant && r.State == job.Queued {
				n++
			}
		}
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
	for _, r := range l.jobs {
		if r.Token != 0 {
			load.Held = append(load.Held, ledger.HeldJobs{Tenant: r.Tenant, Model: r.Model, Jobs: 1, Time: max(m.Now.Sub(r.ClaimedAt), 0)})
		}
	}
	load.Held = ledger.Merge(load.Held)
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
