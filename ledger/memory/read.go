package memory

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// records reads and counts the records of jobs and their attempts.
type records struct{ *database }

// Get implements ledger.Ledger.
func (rs *records) Get(ctx context.Context, id job.ID) (job.Record, error) {
	var rec job.Record
	err := rs.call(ctx, "look up job "+string(id), func() error {
		r := rs.find(id)
		if r == nil {
			return ledger.ErrNotFound
		}
		rec = r.copy()
		return nil
	})
	return rec, err
}

// Attempts implements ledger.Ledger.
func (rs *records) Attempts(ctx context.Context, id job.ID) ([]job.Attempt, error) {
	var attempts []job.Attempt
	err := rs.call(ctx, "list the attempts of job "+string(id), func() error {
		attempts = slices.Clone(rs.attempts[id])
		if r := rs.find(id); r != nil && r.Token != 0 {
			attempts = append(attempts, r.attempt())
		}
		return nil
	})
	return attempts, err
}

// LastAttempts implements ledger.Ledger.
func (rs *records) LastAttempts(ctx context.Context, jobs []job.ID) (map[job.ID]job.Attempt, error) {
	last := make(map[job.ID]job.Attempt, len(jobs))
	err := rs.call(ctx, "list the last attempts of jobs", func() error {
		for _, id := range jobs {
			if ended := rs.attempts[id]; len(ended) > 0 {
				last[id] = ended[len(ended)-1]
			}
		}
		return nil
	})
	return last, err
}

// Held implements ledger.Ledger.
func (rs *records) Held(ctx context.Context, node string) ([]ledger.Claim, error) {
	var claims []ledger.Claim
	err := rs.call(ctx, "list the jobs held by node "+node, func() error {
		for r := range rs.index.held {
			if r.Node == node {
				claims = append(claims, ledger.Claim{Record: r.copy(), Token: r.Token})
			}
		}
		return nil
	})
	slices.SortFunc(claims, func(a, b ledger.Claim) int { return cmp.Compare(a.Token, b.Token) })
	return claims, err
}

// List implements ledger.Ledger. Asked for no record at all, it answers an error
// of class errdefs.ErrInternal.
func (rs *records) List(ctx context.Context, filter ledger.Filter, cursor int64, limit int) ([]job.Record, int64, error) {
	if limit < 1 {
		return nil, 0, fmt.Errorf("list jobs: a page of %d records: %w", limit, errdefs.ErrInternal)
	}
	var page []job.Record
	var next int64
	err := rs.call(ctx, "list jobs", func() error {
		for i := range rs.jobs {
			r := rs.jobs[i]
			if filter.Newest {
				r = rs.jobs[len(rs.jobs)-1-i]
			}
			if cursor != 0 && (filter.Newest && r.Seq > cursor || !filter.Newest && r.Seq < cursor) || !matches(r, filter) {
				continue
			}
			if len(page) == limit {
				next = r.Seq
				break
			}
			rec := r.copy()
			if rec.Failure != nil {
				listed := *rec.Failure
				listed.Traceback = ""
				rec.Failure = &listed
			}
			page = append(page, rec)
		}
		return nil
	})
	return page, next, err
}

func matches(r *record, filter ledger.Filter) bool {
	return (len(filter.States) == 0 || slices.Contains(filter.States, r.State)) &&
		(filter.Sheep == "" || filter.Sheep == r.Sheep) &&
		(filter.Model.IsZero() || filter.Model == r.Model) &&
		(filter.Tenant == "" || filter.Tenant == r.Tenant) &&
		(filter.Group == "" || filter.Group == r.Group) &&
		r.Labels.Match(filter.Labels) &&
		strings.HasPrefix(string(r.ID), string(filter.Prefix)) &&
		!r.EnqueuedAt.Before(filter.Since) &&
		(filter.Before.IsZero() || r.EnqueuedAt.Before(filter.Before))
}

// Position implements ledger.Ledger.
func (rs *records) Position(ctx context.Context, id job.ID, most int) (int, error) {
	position := 0
	err := rs.call(ctx, "look up the position of job "+string(id), func() error {
		r := rs.find(id)
		switch {
		case r == nil:
			return ledger.ErrNotFound
		case !r.Claimable():
			return nil
		}
		position = 1
		for _, other := range rs.jobs {
			if other.Claimable() && (other.Sheep == "" || other.Sheep == r.Sheep) &&
				(other.Priority > r.Priority || other.Priority == r.Priority && other.Seq < r.Seq) {
				position++
			}
		}
		position = min(position, most)
		return nil
	})
	return position, err
}

// Count implements ledger.Ledger. It has every state, also those of no record.
func (rs *records) Count(ctx context.Context) (ledger.Counts, error) {
	counts := ledger.Counts{job.Queued: 0, job.Processing: 0, job.Done: 0, job.Failed: 0, job.Cancelled: 0}
	err := rs.call(ctx, "count jobs", func() error {
		for state, n := range rs.index.counts {
			counts[state] = n
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return counts, nil
}

// Waiting implements ledger.Ledger.
func (rs *records) Waiting(ctx context.Context, most int) ([]ledger.Waiting, error) {
	type kind struct {
		model   job.Model
		address string
	}
	groups := make(map[kind]ledger.Waiting)
	oldest := make(map[kind]int64)
	err := rs.call(ctx, "look up the waiting jobs", func() error {
		for key, g := range rs.index.waiting {
			of, r := kind{key.model, key.address}, g.oldest()
			w, ok := groups[of]
			if !ok || r.Seq < oldest[of] {
				oldest[of] = r.Seq
				w.Model, w.Sheep, w.Oldest = key.model, key.address, r.EnqueuedAt
			}
			w.Jobs += g.jobs
			groups[of] = w
		}
		return nil
	})
	list := slices.Collect(maps.Values(groups))
	slices.SortFunc(list, inOrder)
	if len(list) > most {
		rest := ledger.Waiting{Rest: true}
		for _, w := range list[max(most-1, 0):] { // the rest is one entry
			rest.Jobs += w.Jobs
		}
		list = append(list[:max(most-1, 0)], rest)
	}
	return list, err
}
