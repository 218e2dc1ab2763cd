package postgres

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/jackc/pgx/v5"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

// records reads the records of jobs and their attempts.
type records struct{ *database }

// Get implements ledger.Ledger.
func (rs *records) Get(ctx context.Context, id job.ID) (job.Record, error) {
	return read(ctx, rs.database, "look up job "+string(id), func(ctx context.Context) (job.Record, error) {
		var r *row
		err := rs.often(ctx, rs.db, queryGet, pgx.NamedArgs{"id": text(id)}, func(rows pgx.Rows) (err error) {
			r, err = scanRow(rows, true)
			return err
		})
		if err == nil && r == nil {
			err = ledger.ErrNotFound
		}
		if err != nil {
			return job.Record{}, err
		}
		return r.Record, nil
	})
}

// Attempts implements ledger.Ledger.
func (rs *records) Attempts(ctx context.Context, id job.ID) ([]job.Attempt, error) {
	return read(ctx, rs.database, "list the attempts of job "+string(id), func(ctx context.Context) (attempts []job.Attempt, err error) {
		err = rs.query(ctx, queryAttempts, pgx.NamedArgs{"id": text(id)}, func(rows pgx.Rows) error {
			a, err := scanAttempt(rows.Scan)
			attempts = append(attempts, a)
			return err
		})
		return attempts, err
	})
}

// LastAttempts implements ledger.Ledger.
func (rs *records) LastAttempts(ctx context.Context, jobs []job.ID) (map[job.ID]job.Attempt, error) {
	ids := make([]string, len(jobs))
	for i, id := range jobs {
		ids[i] = text(string(id))
	}
	return read(ctx, rs.database, "list the last attempts of jobs", func(ctx context.Context) (map[job.ID]job.Attempt, error) {
		last := make(map[job.ID]job.Attempt, len(jobs))
		err := rs.query(ctx, queryLastAttempts, pgx.NamedArgs{"ids": ids}, func(rows pgx.Rows) error {
			var id job.ID
			a, err := scanAttempt(func(into ...any) error { return rows.Scan(append([]any{&id}, into...)...) })
			last[id] = a
			return err
		})
		return last, err
	})
}

func scanAttempt(scan func(...any) error) (job.Attempt, error) {
	var a job.Attempt
	var began, started, ended *time.Time
	var gpuTime, stage, load, execute, collect int64
	err := scan(&a.Run, &a.Number, &a.Node, &a.Sheep, &began, &started, &ended, &a.Cause, &a.Reason, &a.Spent,
		&a.Usage.GPUMemory, &gpuTime, &stage, &load, &execute, &collect, &a.Log)
	a.Began, a.Started, a.Ended = toTime(began), toTime(started), toTime(ended)
	a.Usage.GPUTime = time.Duration(gpuTime) * time.Microsecond
	a.Phases = job.Phases{
		Stage: time.Duration(stage) * time.Microsecond, Load: time.Duration(load) * time.Microsecond,
		Run: time.Duration(execute) * time.Microsecond, Collect: time.Duration(collect) * time.Microsecond,
	}
	return a, err
}

// Held implements ledger.Ledger; the oldest claim is the one made first.
func (rs *records) Held(ctx context.Context, node string) ([]ledger.Claim, error) {
	return read(ctx, rs.database, "list the jobs held by node "+node, func(ctx context.Context) ([]ledger.Claim, error) { return rs.held(ctx, queryHeld, node) })
}

func (rs *records) held(ctx context.Context, query, node string) (claims []ledger.Claim, err error) {
	err = rs.query(ctx, query, pgx.NamedArgs{"node": text(node)}, func(rows pgx.Rows) error {
		r, err := scanRow(rows, true)
		if err == nil {
			claims = append(claims, ledger.Claim{Record: r.Record, Token: r.Token})
		}
		return err
	})
	return claims, err
}

// List implements ledger.Ledger. Asked for no record at all, it answers an error of
// class errdefs.ErrInternal.
func (rs *records) List(ctx context.Context, filter ledger.Filter, cursor int64, limit int) (page []job.Record, next int64, err error) {
	if limit < 1 {
		return nil, 0, fmt.Errorf("list jobs: a page of %d records: %w", limit, errdefs.ErrInternal)
	}
	query, args := listQuery(filter, cursor, limit)
	page, err = read(ctx, rs.database, "list jobs", func(ctx context.Context) (page []job.Record, err error) {
		next = 0
		err = rs.query(ctx, query, args, func(rows pgx.Rows) error {
			r, err := scanRow(rows, false)
			switch {
			case err != nil:
				return err
			case len(page) == limit: // one more was asked for to know whether there is one
				next = r.Seq
			default:
				page = append(page, r.Record)
			}
			return nil
		})
		return page, err
	})
	if err != nil {
		return nil, 0, err
	}
	return page, next, nil
}

// listQuery asks for a page and the record after it. Each field of the filter has an
// index in the order of places. Several states are found by one search for each.
func listQuery(filter ledger.Filter, cursor int64, limit int) (string, pgx.NamedArgs) {
	from, seq := `shepherd.jobs j`, `j.seq`
	labels := slices.Sorted(maps.Keys(filter.Labels))
	indexed := len(labels) > 0
	if indexed {
		from, seq = `shepherd.labels l JOIN shepherd.jobs j ON j.seq = l.seq`, `l.seq`
	}
	where, order, merged := seq+` >= @cursor`, ` ORDER BY `+seq, ` ORDER BY j.seq`
	if filter.Newest {
		where, order, merged = seq+` <= @cursor`, ` ORDER BY `+seq+` DESC`, ` ORDER BY j.seq DESC`
		if cursor == 0 {
			cursor = math.MaxInt64
		}
	}
	args := pgx.NamedArgs{"cursor": cursor, "limit": limit + 1}
	for i, key := range labels {
		name, value := fmt.Sprint("label", i), fmt.Sprint("label_value", i)
		if i == 0 {
			where += ` AND l.key = @` + name + ` AND l.value = @` + value
		} else {
			where += ` AND EXISTS (SELECT FROM shepherd.labels o WHERE o.key = @` + name + ` AND o.value = @` + value + ` AND o.seq = j.seq)`
		}
		args[name], args[value] = text(key), text(filter.Labels[key])
	}
	if filter.Prefix != "" {
		where += ` AND starts_with(j.id, @prefix)`
		args["prefix"] = text(filter.Prefix)
	}
	if !filter.Since.IsZero() {
		where += ` AND j.enqueued_at >= @since`
		args["since"] = filter.Since.Add(time.Microsecond - 1).Truncate(time.Microsecond) // times are kept in whole microseconds
	}
	if !filter.Before.IsZero() {
		where += ` AND j.enqueued_at < @before`
		args["before"] = filter.Before.Add(time.Microsecond - 1).Truncate(time.Microsecond)
	}
	if filter.Group != "" {
		where += ` AND j.job_group = @job_group AND j.job_group > ''`
		args["job_group"], indexed = text(filter.Group), true
	}
	if filter.Tenant != "" {
		where += ` AND j.tenant = @tenant AND j.tenant > ''`
		args["tenant"], indexed = text(filter.Tenant), true
	}
	if filter.Sheep != "" {
		where += ` AND j.sheep = @sheep AND j.sheep > ''`
		args["sheep"], indexed = text(filter.Sheep), true
	}
	if !filter.Model.IsZero() {
		where += ` AND j.model_name = @model_name AND j.model_version = @model_version`
		args["model_name"], args["model_version"], indexed = text(filter.Model.Name), text(filter.Model.Version), true
	}
	page := func(where string) string {
		return `SELECT ` + listColumns + ` FROM ` + from + ` WHERE ` + where + order + ` LIMIT @limit`
	}
	states := slices.Compact(slices.Sorted(slices.Values(filter.States)))
	if len(states) == 0 {
		return page(where), args
	}
	if indexed {
		names := make([]string, len(states))
		for i, state := range states {
			names[i] = text(state)
		}
		args["states"] = names
		return page(where + ` AND j.state = ANY(@states::text[])`), args
	}
	arms := make([]string, len(states))
	for i, state := range states {
		name := fmt.Sprint("state", i)
		arms[i] = `(` + page(where+` AND j.state = @`+name) + `)`
		args[name] = text(state)
	}
	if len(arms) == 1 {
		return page(where + ` AND j.state = @state0`), args
	}
	return `SELECT * FROM (` + strings.Join(arms, ` UNION ALL `) + `) j` + merged + ` LIMIT @limit`, args
}

// Position implements ledger.Ledger.
func (rs *records) Position(ctx context.Context, id job.ID, most int) (int, error) {
	return read(ctx, rs.database, "look up the position of job "+string(id), func(ctx context.Context) (int, error) {
		var r *row
		err := rs.query(ctx, queryGet, pgx.NamedArgs{"id": text(id)}, func(rows pgx.Rows) (err error) {
			r, err = scanRow(rows, true)
			return err
		})
		switch {
		case err != nil:
			return 0, err
		case r == nil:
			return 0, ledger.ErrNotFound
		case !r.Claimable():
			return 0, nil
		}
		var before int
		_, err = rs.queryOne(ctx, queryBefore, pgx.NamedArgs{"sheep": text(r.Sheep), "priority": r.Priority, "seq": r.Seq, "most": most - 1}, &before)
		return before + 1, err
	})
}

// Count implements ledger.Ledger. It has every state, also those of no record.
func (rs *records) Count(ctx context.Context) (ledger.Counts, error) {
	return read(ctx, rs.database, "count jobs", func(ctx context.Context) (ledger.Counts, error) {
		counts := ledger.Counts{}
		for _, state := range []job.State{job.Queued, job.Processing, job.Done, job.Failed, job.Cancelled} {
			counts[state] = 0
		}
		err := rs.query(ctx, queryCount, nil, func(rows pgx.Rows) error {
			var state job.State
			var n int
			err := rows.Scan(&state, &n)
			counts[state] = n
			return err
		})
		return counts, err
	})
}

// Waiting implements ledger.Ledger.
func (rs *records) Waiting(ctx context.Context, most int) ([]ledger.Waiting, error) {
	return read(ctx, rs.database, "look up the waiting jobs", func(ctx context.Context) (list []ledger.Waiting, err error) {
		err = rs.often(ctx, rs.db, queryWaiting, pgx.NamedArgs{"most": most}, func(rows pgx.Rows) error {
			var w ledger.Waiting
			var oldest *time.Time
			err := rows.Scan(&w.Model.Name, &w.Model.Version, &w.Sheep, &w.Jobs, &oldest, &w.Rest, nil)
			w.Oldest = toTime(oldest)
			list = append(list, w)
			return err
		})
		return list, err
	})
}
