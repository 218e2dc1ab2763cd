package sqlite

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/lifecycle"
)

// readStatements are the prepared reads.
type readStatements struct {
	get, attempts, lastAttempts, held, oldest, before, pruned, checkpoint *sql.Stmt
	webhook, nextDue                                                      *sql.Stmt
}

const (
	queryGet = `SELECT ` + columns + ` FROM jobs WHERE id = ?`
	// The attempt under way is read in the same statement as those that ended.
	queryAttempts = `SELECT run, number, node, sheep, began, started, ended, cause, reason, spent, gpu_memory, gpu_time, stage, load, execute, collect, log
			FROM attempts WHERE job = ?1
		UNION ALL SELECT run, attempt, node, holder, claimed_at, started_at, 0, '', '', 0, 0, 0, 0, 0, 0, 0, ''
			FROM jobs WHERE id = ?1 AND token > 0`
	// The newest attempt of each job of a JSON array of ids.
	queryLastAttempts = `SELECT a.job, a.run, a.number, a.node, a.sheep, a.began, a.started, a.ended, a.cause, a.reason, a.spent,
			a.gpu_memory, a.gpu_time, a.stage, a.load, a.execute, a.collect, a.log
		FROM json_each(?) asked CROSS JOIN attempts a ON a.job = asked.value
			AND (a.run, a.number) = (SELECT run, number FROM attempts WHERE job = asked.value ORDER BY run DESC, number DESC LIMIT 1)`
	queryHeld = `SELECT ` + columns + ` FROM jobs WHERE node = ? AND token > 0 ORDER BY token`
	// When the oldest claimable job of a model with an address was submitted.
	queryOldest = `SELECT enqueued_at FROM jobs
		WHERE ` + isClaimable + ` AND model_name = ? AND model_version = ? AND sheep = ? ORDER BY seq LIMIT 1`
	// The claimable jobs that come before one with the place ?3 and the priority ?2,
	// among those with the address ?1 and those with none, at most ?4.
	queryBefore = `SELECT count(*) FROM (
		SELECT 1 FROM jobs INDEXED BY jobs_claimable WHERE ` + isClaimable + ` AND sheep IN ('', ?1) AND priority > ?2
		UNION ALL SELECT 1 FROM jobs INDEXED BY jobs_claimable WHERE ` + isClaimable + ` AND sheep IN ('', ?1) AND priority = ?2 AND seq < ?3
		LIMIT ?4)`
	queryPruned     = `SELECT pruned FROM numbers`
	queryCheckpoint = `SELECT cursor FROM checkpoints WHERE consumer = ?`
)

func (s *readStatements) list() []statement {
	return []statement{
		{"get", &s.get, queryGet},
		{"attempts", &s.attempts, queryAttempts},
		{"last attempts", &s.lastAttempts, queryLastAttempts},
		{"held", &s.held, queryHeld},
		{"oldest", &s.oldest, queryOldest},
		{"before", &s.before, queryBefore},
		{"pruned", &s.pruned, queryPruned},
		{"checkpoint", &s.checkpoint, queryCheckpoint},
		{"webhook of a run", &s.webhook, queryJobWebhook},
		{"next message due", &s.nextDue, queryNextDue},
	}
}

func prepareReads(ctx context.Context, db *sql.DB) (*readStatements, error) {
	s := new(readStatements)
	for _, one := range s.list() {
		var err error
		if *one.into, err = db.PrepareContext(ctx, one.text); err != nil {
			s.close()
			return nil, fmt.Errorf("prepare %s: %w", one.name, err)
		}
	}
	return s, nil
}

func (s *readStatements) close() {
	for _, one := range s.list() {
		if *one.into != nil {
			(*one.into).Close()
		}
	}
}

// records reads and counts the records of jobs and their attempts.
type records struct{ *database }

// Get implements ledger.Ledger.
func (rs *records) Get(ctx context.Context, id job.ID) (job.Record, error) {
	var rec job.Record
	err := rs.call("look up job "+string(id), func() error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if r := rs.writer.rows.get(id); r != nil {
			rec = r.Record
			return nil
		}
		// A look-up takes microseconds. With a context that can end, database/sql would
		// start two goroutines for it.
		var r row
		err := r.scan(rs.read.get.QueryRowContext(context.WithoutCancel(ctx), string(id)).Scan)
		if errors.Is(err, sql.ErrNoRows) {
			return ledger.ErrNotFound
		}
		rec = r.Record
		return err
	})
	if err != nil {
		return job.Record{}, err
	}
	return rec, nil
}

// Attempts implements ledger.Ledger.
func (rs *records) Attempts(ctx context.Context, id job.ID) ([]job.Attempt, error) {
	var attempts []job.Attempt
	err := rs.call("list the attempts of job "+string(id), func() error {
		rows, err := rs.read.attempts.QueryContext(ctx, string(id))
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			a, err := scanAttempt(rows.Scan)
			if err != nil {
				return err
			}
			attempts = append(attempts, a)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(attempts, func(a, b job.Attempt) int {
		return cmp.Or(cmp.Compare(a.Run, b.Run), cmp.Compare(a.Number, b.Number))
	})
	return attempts, nil
}

// LastAttempts implements ledger.Ledger.
func (rs *records) LastAttempts(ctx context.Context, jobs []job.ID) (map[job.ID]job.Attempt, error) {
	last := make(map[job.ID]job.Attempt, len(jobs))
	err := rs.call("list the last attempts of jobs", func() error {
		asked, err := json.Marshal(jobs)
		if err != nil {
			return err
		}
		rows, err := rs.read.lastAttempts.QueryContext(ctx, string(asked))
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var id job.ID
			a, err := scanAttempt(func(into ...any) error { return rows.Scan(append([]any{&id}, into...)...) })
			if err != nil {
				return err
			}
			last[id] = a
		}
		return rows.Err()
	})
	if err != nil {
		return nil, err
	}
	return last, nil
}

func scanAttempt(scan func(...any) error) (job.Attempt, error) {
	var a job.Attempt
	var began, started, ended, gpuTime, stage, load, execute, collect int64
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
	var claims []ledger.Claim
	err := rs.call("list the jobs held by node "+node, func() error {
		rows, err := rs.read.held.QueryContext(ctx, node)
		if err != nil {
			return err
		}
		found, err := scanAll(rows, true)
		for _, r := range found {
			claims = append(claims, ledger.Claim{Record: r.Record, Token: r.Token})
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return claims, nil
}

// List implements ledger.Ledger. Asked for no record at all, it answers an
// error of class errdefs.ErrInternal.
func (rs *records) List(ctx context.Context, filter ledger.Filter, cursor int64, limit int) ([]job.Record, int64, error) {
	if limit < 1 {
		return nil, 0, fmt.Errorf("list jobs: a page of %d records: %w", limit, errdefs.ErrInternal)
	}
	var page []job.Record
	var next int64
	query, args := listQuery(filter, cursor, limit)
	err := rs.call("list jobs", func() error {
		rows, err := rs.reads.QueryContext(ctx, query, args...)
		if err != nil {
			return err
		}
		found, err := scanAll(rows, false)
		for i, r := range found {
			if i == limit { // the query asks for one more than the page
				next = r.Seq
				break
			}
			page = append(page, r.Record)
		}
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	return page, next, nil
}

// listQuery is the query of a page and the record after it. It uses the index of one of
// the filter's fields, in the order of seq, and compares the others. Several states take
// one search each, which SQLite merges.
func listQuery(filter ledger.Filter, cursor int64, limit int) (string, []any) {
	seq, from := `seq`, `jobs`
	labels := slices.Sorted(maps.Keys(filter.Labels))
	indexed := len(labels) > 0
	if indexed {
		seq, from = `label_seq`, `labels CROSS JOIN jobs ON seq = label_seq`
	}
	where, order := seq+` >= ?`, ` ORDER BY `+seq
	if filter.Newest {
		where, order = seq+` <= ?`, ` ORDER BY `+seq+` DESC`
		if cursor == 0 {
			cursor = math.MaxInt64
		}
	}
	args := []any{cursor}
	and := func(condition string, values ...any) {
		where += ` AND ` + condition
		args = append(args, values...)
	}
	for i, key := range labels {
		if i == 0 {
			and(`label_key = ? AND label_value = ?`, key, filter.Labels[key])
			continue
		}
		and(`EXISTS (SELECT 1 FROM labels AS other WHERE other.label_key = ? AND other.label_value = ? AND other.label_seq = jobs.seq)`, key, filter.Labels[key])
	}
	// SQLite uses no index for a comparison of +column.
	compare := func(plain, condition string, values ...any) {
		if indexed {
			condition = plain
		}
		indexed = true
		and(condition, values...)
	}
	if filter.Group != "" {
		compare(`+job_group = ?`, `job_group = ? AND job_group > ''`, filter.Group)
	}
	if filter.Tenant != "" {
		compare(`+tenant = ?`, `tenant = ? AND tenant > ''`, filter.Tenant)
	}
	if filter.Sheep != "" {
		compare(`+sheep = ?`, `sheep = ? AND sheep > ''`, filter.Sheep)
	}
	if !filter.Model.IsZero() {
		compare(`+model_name = ? AND +model_version = ?`, `model_name = ? AND model_version = ?`, filter.Model.Name, filter.Model.Version)
	}
	if filter.Prefix != "" {
		and(`substr(id, 1, ?) = ?`, len(filter.Prefix), string(filter.Prefix))
	}
	if !filter.Since.IsZero() {
		and(`enqueued_at >= ?`, fromTime(lifecycle.KeptTime(filter.Since.Add(time.Microsecond-1)))) // times are kept in whole microseconds
	}
	if !filter.Before.IsZero() {
		and(`enqueued_at < ?`, fromTime(lifecycle.KeptTime(filter.Before.Add(time.Microsecond-1))))
	}
	states := slices.Compact(slices.Sorted(slices.Values(filter.States)))
	switch {
	case len(states) == 0:
	case indexed:
		and(`+state IN (?` + strings.Repeat(`, ?`, len(states)-1) + `)`)
		for _, state := range states {
			args = append(args, string(state))
		}
	default:
		var arms []string
		var all []any
		for _, state := range states {
			arms = append(arms, `SELECT `+listColumns+` FROM `+from+` WHERE `+where+` AND state = ?`)
			all = append(append(all, args...), string(state))
		}
		return strings.Join(arms, ` UNION ALL `) + order + ` LIMIT ?`, append(all, limit+1)
	}
	return `SELECT ` + listColumns + ` FROM ` + from + ` WHERE ` + where + order + ` LIMIT ?`, append(args, limit+1)
}

// Position implements ledger.Ledger.
func (rs *records) Position(ctx context.Context, id job.ID, most int) (int, error) {
	var position int
	err := rs.call("look up the position of job "+string(id), func() error {
		if err := ctx.Err(); err != nil {
			return err
		}
		r := rs.writer.rows.get(id)
		if r == nil {
			r = new(row)
			err := r.scan(rs.read.get.QueryRowContext(context.WithoutCancel(ctx), string(id)).Scan)
			if errors.Is(err, sql.ErrNoRows) {
				return ledger.ErrNotFound
			}
			if err != nil {
				return err
			}
		}
		if !r.Claimable() {
			return nil
		}
		var before int
		if err := rs.read.before.QueryRowContext(ctx, r.Sheep, r.Priority, r.Seq, most-1).Scan(&before); err != nil {
			return err
		}
		position = before + 1
		return nil
	})
	return position, err
}

func scanAll(rows *sql.Rows, whole bool) ([]row, error) {
	defer rows.Close()
	var found []row
	for rows.Next() {
		var r row
		if err := r.scanRecord(rows.Scan, whole); err != nil {
			return nil, err
		}
		found = append(found, r)
	}
	return found, rows.Err()
}

// Waiting implements ledger.Ledger. The numbers are in memory; the oldest job of each
// model and address is found by an index.
func (rs *records) Waiting(ctx context.Context, most int) ([]ledger.Waiting, error) {
	var list []ledger.Waiting
	err := rs.call("look up the waiting jobs", func() error {
		if err := ctx.Err(); err != nil {
			return err
		}
		var rest int
		list, rest = rs.writer.tally.waiting(most)
		for i := range list {
			var at int64
			w := &list[i]
			err := rs.read.oldest.QueryRowContext(ctx, w.Model.Name, w.Model.Version, w.Sheep).Scan(&at)
			if err != nil && !errors.Is(err, sql.ErrNoRows) {
				return err
			}
			w.Oldest = toTime(at)
		}
		// Jobs without an oldest one were claimed since they were counted.
		list = slices.DeleteFunc(list, func(w ledger.Waiting) bool { return w.Oldest.IsZero() })
		if rest > 0 {
			list = append(list, ledger.Waiting{Jobs: rest, Rest: true})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

// Count implements ledger.Ledger. It has every state, also those of no record.
func (rs *records) Count(ctx context.Context) (ledger.Counts, error) {
	var counts ledger.Counts
	err := rs.call("count jobs", func() error {
		counts = rs.writer.tally.counts()
		return ctx.Err()
	})
	if err != nil {
		return nil, err
	}
	return counts, nil
}

// Queued implements ledger.Ledger.
func (rs *records) Queued(ctx context.Context, tenant string, most int) (int, error) {
	n := 0
	err := rs.call("count the queued jobs of tenant "+tenant, func() error {
		n = min(rs.writer.tally.queuedOf(tenant), most)
		return ctx.Err()
	})
	return n, err
}

// Load implements ledger.Ledger.
func (rs *records) Load(ctx context.Context) (ledger.Load, error) {
	var load ledger.Load
	err := rs.call("look up what is held", func() error {
		w := rs.writer
		load = w.tally.load(nil, w.cfg.Policy.HalfLife, w.now(), w.clock.now())
		return ctx.Err()
	})
	return load, err
}
