package ledger

import (
	"time"

	"github.com/iterait/shepherd/job"
)

// Policy bounds how many jobs are held at a time, and says how tenants share the
// sheep. A ledger has one in its Config; the nodes that share a ledger have the
// same. The zero Policy bounds nothing.
//
// Claim passes over the jobs of models and tenants that are at a limit. What counts
// is the jobs that are held, on all nodes, whether they run or are prepared ahead;
// two claims at the same time do not exceed a limit together. What is held already
// stays so when a limit is lowered.
//
// With a HalfLife tenants share: of the jobs that are next by priority and preferred
// model, Claim takes one of the tenant that has the smallest Share. A tenant with no
// claimable jobs takes part in nothing, so others use what it leaves. Jobs of no
// tenant share as one more, of weight 1, and have no limit but those of models.
type Policy struct {
	// Models bound the held jobs of the models that a rule matches, all of them
	// together. All that match a model count.
	Models []ModelLimit
	// Tenants bound the jobs of tenants, each by itself. The first that matches a
	// tenant counts.
	Tenants []TenantLimit
	// HalfLife is the time after which what a tenant has used counts half; 0 says that
	// tenants do not share.
	HalfLife time.Duration
}

// ModelLimit bounds the held jobs of some models.
type ModelLimit struct {
	Models     job.Rule
	MaxRunning int
}

// TenantLimit is a tenant's limits and weight.
type TenantLimit struct {
	// Tenant is its name; AnyTenant is each that no limit before names.
	Tenant string
	// MaxRunning bounds its held jobs and MaxQueued its queued ones; 0 is no limit. A
	// ledger does not look at MaxQueued: who creates records asks Queued before.
	MaxRunning, MaxQueued int
	// Weight is its part of the sheep, relative to other tenants'; 0 stands for 1.
	Weight float64
}

// AnyTenant as a TenantLimit's Tenant matches every tenant.
const AnyTenant = "*"

// MinHeld is what a held job counts at least in its tenant's Share, so that tenants
// that begin at the same time take turns.
const MinHeld = 10 * time.Second

// Load is what a Policy goes by, at one moment.
type Load struct {
	Held []HeldJobs
	// Used is the GPU time of the attempts of each tenant that have ended, see
	// GPUTime, with what is older than a HalfLife counted half, and so on. It is empty
	// where tenants do not share.
	Used map[string]time.Duration
}

// HeldJobs are the held jobs of one tenant and model.
type HeldJobs struct {
	Tenant string
	Model  job.Model
	Jobs   int
	// Time is for how long they have been held, all together.
	Time time.Duration
}

// Merge has one entry for each tenant and model.
func Merge(held []HeldJobs) []HeldJobs {
	type kind struct {
		tenant string
		model  job.Model
	}
	place := make(map[kind]int, len(held))
	var merged []HeldJobs
	for _, h := range held {
		i, ok := place[kind{h.Tenant, h.Model}]
		if !ok {
			place[kind{h.Tenant, h.Model}] = len(merged)
			merged = append(merged, h)
			continue
		}
		merged[i].Jobs += h.Jobs
		merged[i].Time += h.Time
	}
	return merged
}

// GPUTime is what an attempt that ended has used: the time that its runner had the
// job, times its GPUs. Where that is not known, as of a sheep without GPUs or a node
// that was lost, it is the time since its start.
func GPUTime(a job.Attempt) time.Duration {
	if a.Usage.GPUTime > 0 || a.Started.IsZero() {
		return a.Usage.GPUTime
	}
	return max(a.Ended.Sub(a.Started), 0)
}

// BoundsClaims reports whether Claim has to go by the policy.
func (p Policy) BoundsClaims() bool { return p.Limits() || p.Shares() }

// Limits reports whether the policy bounds held jobs.
func (p Policy) Limits() bool {
	for _, t := range p.Tenants {
		if t.MaxRunning > 0 {
			return true
		}
	}
	return len(p.Models) > 0
}

// Shares reports whether tenants share by what they have used.
func (p Policy) Shares() bool { return p.HalfLife > 0 }

// Tenant is the limit of a tenant; one without limits, of weight 1, where none
// matches.
func (p Policy) Tenant(name string) TenantLimit {
	found := TenantLimit{Tenant: name}
	for _, t := range p.Tenants {
		if name != "" && (t.Tenant == name || t.Tenant == AnyTenant) {
			found = t
			break
		}
	}
	if found.Weight == 0 {
		found.Weight = 1
	}
	return found
}

// Limit is one that a job may have to wait for. Models is for a limit of models, and
// Tenant for one of a tenant.
type Limit struct {
	Models     string // as job.Rule.String has it
	Tenant     string
	MaxRunning int
}

// Admission is a policy at one moment.
type Admission struct {
	policy Policy
	full   []ModelLimit // that are reached
	held   map[string]int
	used   map[string]time.Duration
}

// Admit is the policy for a load.
func (p Policy) Admit(load Load) Admission {
	a := Admission{policy: p, held: map[string]int{}, used: map[string]time.Duration{}}
	for tenant, used := range load.Used {
		a.used[tenant] += used
	}
	for _, h := range load.Held {
		a.held[h.Tenant] += h.Jobs
		a.used[h.Tenant] += max(h.Time, time.Duration(h.Jobs)*MinHeld)
	}
	for _, limit := range p.Models {
		n := 0
		for _, h := range load.Held {
			if limit.Models.Matches(h.Model) {
				n += h.Jobs
			}
		}
		if n >= limit.MaxRunning {
			a.full = append(a.full, limit)
		}
	}
	return a
}

// Reached is the limit that keeps a job of the tenant and model from being claimed;
// nil where none does.
func (a Admission) Reached(tenant string, m job.Model) *Limit {
	for _, limit := range a.full {
		if limit.Models.Matches(m) {
			return &Limit{Models: limit.Models.String(), MaxRunning: limit.MaxRunning}
		}
	}
	if most := a.policy.Tenant(tenant).MaxRunning; most > 0 && a.held[tenant] >= most {
		return &Limit{Tenant: tenant, MaxRunning: most}
	}
	return nil
}

// Limited reports whether a limit applies to jobs of the tenant and model, reached or
// not.
func (a Admission) Limited(tenant string, m job.Model) bool {
	for _, limit := range a.policy.Models {
		if limit.Models.Matches(m) {
			return true
		}
	}
	return a.policy.Tenant(tenant).MaxRunning > 0
}

// Share is what the tenant has used and holds, by its weight: the tenant that has the
// smallest comes first. It is the same for all where tenants do not share.
func (a Admission) Share(tenant string) time.Duration {
	if !a.policy.Shares() {
		return 0
	}
	return time.Duration(float64(a.used[tenant]) / a.policy.Tenant(tenant).Weight)
}
