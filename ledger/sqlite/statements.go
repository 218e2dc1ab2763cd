package sqlite

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/iterait/shepherd/ledger"
)

// statements are the prepared statements of the writer.
type statements struct {
	begin, commit, rollback *sql.Stmt

	byID, bySeq, insert, save, remove   *sql.Stmt
	heads, head, byModel, preferred     *sql.Stmt
	due, overdue, nextTimer             *sql.Stmt
	needs, dependents                   *sql.Stmt
	insertAttempt, trimAttempts         *sql.Stmt
	trimRuns, removeAttempts            *sql.Stmt
	insertEvent, oldEvents, pruneEvents *sql.Stmt
	expire, setCheckpoint, saveNumbers  *sql.Stmt
	webhooks                            webhookStatements
	uploads                             uploadStatements

	// Only with a policy that needs them, else nil; see policy.go.
	headsOf, saveUsed *sql.Stmt
}

// statement is the text of a prepared statement and the place to store it.
type statement struct {
	name string
	into **sql.Stmt
	text string
}

// isClaimable is the condition of the indexes that Claim reads.
const isClaimable = `state = 'queued' AND token = 0 AND delayed = 0`

func (s *statements) list() []statement {
	return append([]statement{
		{"begin", &s.begin, `BEGIN IMMEDIATE`},
		{"commit", &s.commit, `COMMIT`},
		{"rollback", &s.rollback, `ROLLBACK`},

		{"byID", &s.byID, `SELECT ` + columns + ` FROM jobs WHERE id = ?`},
		{"bySeq", &s.bySeq, `SELECT ` + columns + ` FROM jobs WHERE seq = ?`},
		{"insert", &s.insert, `INSERT INTO jobs (seq, id, model_name, model_version, sheep, priority, tenant, trace_parent, trace_state, limits, state,
				run, enqueued_at, not_before, wait_until, deadline, changed_at, delayed, give_up_at, keep, labels, idempotency,
				after_jobs, blocked, job_group)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING`},
		{"save", &s.save, `UPDATE jobs SET state = ?, attempt = ?, spent = ?, not_before = ?, wait_until = ?, claimed_at = ?, started_at = ?, finished_at = ?,
				changed_at = ?, holder = ?, node = ?, token = ?, cancelling = ?, delayed = ?, give_up_at = ?, ended_age = ?,
				gpu_memory = ?, gpu_time = ?, warnings = ?, failure_type = ?, failure_message = ?, failure_traceback = ?,
				kept_for = ?, remove_age = ?, removal = ?, removed_at = ?, blocked = ?
			WHERE seq = ?`},
		{"remove", &s.remove, `DELETE FROM jobs WHERE seq = ?`},

		// The first claimable job of those addressed to no sheep, and of those
		// addressed to ?1.
		{"heads", &s.heads, `
			SELECT * FROM (SELECT seq, priority, sheep, model_name, model_version FROM jobs
				WHERE ` + isClaimable + ` AND sheep = '' ORDER BY priority DESC, seq LIMIT 1)
			UNION ALL SELECT * FROM (SELECT seq, priority, sheep, model_name, model_version FROM jobs
				WHERE ` + isClaimable + ` AND sheep = ?1 ORDER BY priority DESC, seq LIMIT 1)`},
		// The first claimable job with an address.
		{"head", &s.head, `SELECT seq, priority, sheep, model_name, model_version FROM jobs
			WHERE ` + isClaimable + ` AND sheep = ? ORDER BY priority DESC, seq LIMIT 1`},
		// The first claimable job of each model, of those with the address ?1: each
		// step of the recursion searches the index by model, past all jobs of the model
		// before. (A comparison of pairs would begin with that model's first job.)
		{"byModel", &s.byModel, `
			WITH RECURSIVE head(seq, priority, name, version) AS (
				SELECT * FROM (SELECT seq, priority, model_name, model_version FROM jobs
					WHERE ` + isClaimable + ` AND sheep = ?1 ORDER BY model_name, model_version, priority DESC, seq LIMIT 1)
				UNION ALL SELECT j.seq, j.priority, j.model_name, j.model_version FROM head JOIN jobs j ON j.seq = coalesce(
					(SELECT seq FROM jobs WHERE ` + isClaimable + ` AND sheep = ?1 AND model_name = head.name AND model_version > head.version
						ORDER BY model_version, priority DESC, seq LIMIT 1),
					(SELECT seq FROM jobs WHERE ` + isClaimable + ` AND sheep = ?1 AND model_name > head.name
						ORDER BY model_name, model_version, priority DESC, seq LIMIT 1)))
			SELECT * FROM head`},
		// The oldest claimable job with an address, a priority and a model.
		{"preferred", &s.preferred, `SELECT seq FROM jobs
			WHERE ` + isClaimable + ` AND sheep = ? AND priority = ? AND model_name = ? AND model_version = ? ORDER BY seq LIMIT 1`},

		{"due", &s.due, `SELECT ` + columns + ` FROM jobs WHERE delayed = 1 AND blocked = 0 AND not_before <= ? ORDER BY not_before, seq LIMIT ?`},
		{"overdue", &s.overdue, `SELECT ` + columns + ` FROM jobs WHERE give_up_at > 0 AND give_up_at <= ? ORDER BY give_up_at, seq LIMIT ?`},
		{"nextTimer", &s.nextTimer, `SELECT coalesce((SELECT min(not_before) FROM jobs WHERE delayed = 1 AND blocked = 0), 0),
			coalesce((SELECT min(give_up_at) FROM jobs WHERE give_up_at > 0), 0)`},

		{"needs", &s.needs, `SELECT EXISTS (SELECT 1 FROM needs WHERE needed = ?)`},
		{"dependents", &s.dependents, `SELECT dependent FROM needs WHERE needed = ? ORDER BY dependent`},

		{"insertAttempt", &s.insertAttempt, `INSERT INTO attempts (job, run, number, node, sheep, began, started, ended, cause, reason, spent,
				gpu_memory, gpu_time, stage, load, execute, collect, log)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`},
		{"trimAttempts", &s.trimAttempts, `DELETE FROM attempts WHERE job = ? AND run = ? AND number <= ?`},
		{"trimRuns", &s.trimRuns, `DELETE FROM attempts WHERE job = ? AND run <= ?`},
		{"removeAttempts", &s.removeAttempts, `DELETE FROM attempts WHERE job = ?`},

		{"insertEvent", &s.insertEvent, `INSERT INTO events (id, at, age, kind, job, run, model_name, model_version, sheep, tenant, attempt, holder, node,
				state, cause, reason, delayed, enqueued_at, started_at, finished_at, failure_type, failure_message, failure_traceback)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`},
		{"oldEvents", &s.oldEvents, `SELECT id, age FROM events ORDER BY id LIMIT ?`},
		{"pruneEvents", &s.pruneEvents, `DELETE FROM events WHERE id <= ?`},

		{"expire", &s.expire, `DELETE FROM jobs WHERE seq IN (SELECT seq FROM jobs
			WHERE ended_age > 0 AND remove_age = 0 AND ended_age < ? AND NOT EXISTS (SELECT 1 FROM needs WHERE needed = id) ORDER BY ended_age, seq LIMIT ?) RETURNING id, state`},
		{"setCheckpoint", &s.setCheckpoint, `INSERT INTO checkpoints (consumer, cursor) VALUES (?, ?)
			ON CONFLICT (consumer) DO UPDATE SET cursor = excluded.cursor WHERE cursor <> excluded.cursor`},
		{"saveNumbers", &s.saveNumbers, `UPDATE numbers SET seq = ?, token = ?, event = ?, pruned = ?, age = ?, wall = ?`},
	}, append(s.webhooks.list(), s.uploads.list()...)...)
}

func prepare(ctx context.Context, conn *sql.Conn, policy ledger.Policy) (*statements, error) {
	s := new(statements)
	for _, one := range append(s.list(), s.policyStatements(policy)...) {
		var err error
		if *one.into, err = conn.PrepareContext(ctx, one.text); err != nil {
			s.close()
			return nil, fmt.Errorf("prepare %s: %w", one.name, err)
		}
	}
	return s, nil
}

func (s *statements) close() {
	for _, one := range append(s.list(), s.policyStatements(ledger.Policy{HalfLife: 1})...) {
		if *one.into != nil {
			(*one.into).Close()
		}
	}
}
