package postgres

import (
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// group is the claimable jobs of one address, tenant and model, and the share of the
// tenant.
type group struct {
	sheep, tenant string
	model         job.Model
	share         time.Duration
}

// bounds reads the groups of claimable jobs with the given addresses, and the load.
func (l *Ledger) bounds(ctx context.Context, db querier, addresses []string) (groups []group, load ledger.Load, err error) {
	policy := l.cfg.Policy
	if policy.Shares() {
		load.Used = map[string]time.Duration{}
	}
	args := pgx.NamedArgs{"addresses": addresses, "half_life": float64(policy.HalfLife.Microseconds())}
	err = l.often(ctx, db, queryBounds, args, func(rows pgx.Rows) error {
		var what string
		var g group
		var jobs int
		var micros int64
		if err := rows.Scan(&what, &g.sheep, &g.tenant, &g.model.Name, &g.model.Version, &jobs, &micros); err != nil {
			return err
		}
		took := time.Duration(micros) * time.Microsecond
		switch what {
		case "group":
			groups = append(groups, g)
		case "held":
			load.Held = append(load.Held, ledger.HeldJobs{Tenant: g.tenant, Model: g.model, Jobs: jobs, Time: max(took, 0)})
		case "used":
			load.Used[g.tenant] = took
		}
		return nil
	})
	return groups, load, err
}

// admitted are the groups of which the slot may claim a job at this moment; limited
// says that a limit applies to one of them.
func (l *Ledger) admitted(ctx context.Context, db querier, slot ledger.Slot) (open []group, limited bool, err error) {
	groups, load, err := l.bounds(ctx, db, texts(slices.Concat(slot.Owned(), slot.Opened())))
	if err != nil {
		return nil, false, err
	}
	admission := l.cfg.Policy.Admit(load)
	for _, g := range groups {
		_, own := slot.Answers(g.sheep)
		if slot.Only == "" && !own && slices.Contains(slot.Except, g.model) || admission.Reached(g.tenant, g.model) != nil {
			continue
		}
		g.share = admission.Share(g.tenant)
		limited = limited || admission.Limited(g.tenant, g.model)
		open = append(open, g)
	}
	return open, limited, nil
}

// groupArgs are the arguments of boundedClaimQuery for the groups.
func groupArgs(groups []group) pgx.NamedArgs {
	n := len(groups)
	sheep, tenants, names, versions, shares := make([]string, n), make([]string, n), make([]string, n), make([]string, n), make([]int64, n)
	for i, g := range groups {
		sheep[i], tenants[i], names[i], versions[i], shares[i] = g.sheep, g.tenant, g.model.Name, g.model.Version, g.share.Microseconds()
	}
	return pgx.NamedArgs{"g_sheep": sheep, "g_tenants": tenants, "g_names": names, "g_versions": versions, "g_shares": shares}
}

// tryBounded tries to make a claim as the policy allows, under a key. Where limits
// apply to jobs that it may take, it makes sure that no other claim takes what is left
// of them: it locks the others out, looks again, and claims.
func (l *Ledger) tryBounded(ctx context.Context, slot ledger.Slot, key string) (claimed, error) {
	groups, limited, err := l.admitted(ctx, l.db, slot)
	if err != nil || len(groups) == 0 {
		return claimed{leased: true}, err
	}
	if !limited {
		return l.claimOfGroups(ctx, l.db, slot, key, groups)
	}
	select {
	case l.claiming <- struct{}{}:
		defer func() { <-l.claiming }()
	case <-ctx.Done():
		return claimed{}, ctx.Err()
	}
	made := claimed{leased: true}
	err = l.transact(ctx, func(tx pgx.Tx) error {
		l.statements.Add(1)
		if _, err := tx.Exec(ctx, queryClaimLock); err != nil {
			return err
		}
		groups, _, err := l.admitted(ctx, tx, slot)
		if err != nil || len(groups) == 0 {
			return err
		}
		made, err = l.claimOfGroups(ctx, tx, slot, key, groups)
		return err
	})
	return made, err
}

func (l *Ledger) claimOfGroups(ctx context.Context, db querier, slot ledger.Slot, key string, groups []group) (claimed, error) {
	args := claimArgs(slot)
	add(args, groupArgs(groups))
	return l.runClaim(ctx, db, boundedClaimQuery(slot), slot, key, args)
}

// Queued implements ledger.Ledger.
func (l *Ledger) Queued(ctx context.Context, tenant string, most int) (int, error) {
	return read(ctx, l.database, "count the queued jobs of tenant "+tenant, func(ctx context.Context) (n int, err error) {
		_, err = l.queryOne(ctx, queryQueued, pgx.NamedArgs{"tenant": text(tenant), "most": most}, &n)
		return n, err
	})
}

// Load implements ledger.Ledger.
func (l *Ledger) Load(ctx context.Context) (ledger.Load, error) {
	return read(ctx, l.database, "look up what is held", func(ctx context.Context) (ledger.Load, error) {
		_, load, err := l.bounds(ctx, l.db, []string{})
		return load, err
	})
}
