package config

import (
	"math"
	"time"
)

// checkScheduling checks the section scheduling.
func checkScheduling(r *report, s *Scheduling) {
	r.expect(s.MaxTurn > 0, "scheduling.max_turn", "a duration longer than 0")
	r.expect(s.MaxAttempts > 0, "scheduling.max_attempts", "a whole number, 1 or more")
	r.expect(*s.StageAhead == 0 || *s.StageAhead == 1, "scheduling.stage_ahead", "0 or 1")
	r.expect(s.ShareHalfLife >= time.Minute, "scheduling.share_half_life", "a duration of a minute or longer")
	for i, m := range s.Models {
		if r.modelPattern("scheduling.models", i, m.Model) != nil && m.MaxRunning < 1 {
			r.within(r.at("scheduling.models"), i, "scheduling.models", "max_running", "expected a number of jobs, 1 or more")
		}
	}
	list := r.at("scheduling.tenants")
	if list == nil {
		return
	}
	names := map[string]bool{}
	for i, t := range s.Tenants {
		wrong := func(key, problem string) { r.within(list, i, "scheduling.tenants", key, problem) }
		switch {
		case t.Tenant != "*":
			wrong("tenant", nameProblem("tenant", t.Tenant, names))
		case names[t.Tenant]:
			wrong("tenant", "is there already")
		case i < len(s.Tenants)-1:
			wrong("tenant", "is every tenant's, so what follows has no effect; put it last")
		}
		names[t.Tenant] = true
		if t.MaxRunning < 0 {
			wrong("max_running", "expected a number of jobs, or 0 for no limit")
		}
		if t.MaxQueued < 0 {
			wrong("max_queued", "expected a number of jobs, or 0 for no limit")
		}
		switch {
		case t.Weight == nil:
		case !(*t.Weight > 0) || math.IsInf(*t.Weight, 0):
			wrong("weight", "expected a number larger than 0")
		case !s.FairShare:
			wrong("weight", "has no effect without scheduling.fair_share")
		}
	}
}
