package sqlite

import (
	"context"
	"database/sql"
	"fmt"
)

// statements are all that the writer runs, prepared once.
type statements struct {
	begin, commit, rollback *sql.Stmt

	byID, bySeq, insert, save, remove *sql.Stmt

	heads, loaded                    *sql.Stmt
	overtakesOfAny, overtakesBySheep *sql.Stmt
	exhausted, overtake, bump, prune *sql.Stmt

	expire, saveCounters *sql.Stmt
}

// statement is a place for a prepared statement and its text.
type statement struct {
	name string
	into **sql.Stmt
	text string
}

func (s *statements) list() []statement {
	return []statement{
		{"begin", &s.begin, `BEGIN IMMEDIATE`},
		{"commit", &s.commit, `COMMIT`},
		{"rollback", &s.rollback, `ROLLBACK`},

		{"byID", &s.byID, `SELECT ` + columns + ` FROM jobs WHERE id = ?`},
		{"bySeq", &s.bySeq, `SELECT ` + columns + ` FROM jobs WHERE seq = ?`},
		{"insert", &s.insert, `INSERT INTO jobs (seq, id, model_name, model_version, sheep, priority, trace_parent, trace_state, tenant, state, enqueued_at, run)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`},
		{"save", &s.save, `UPDATE jobs SET state = ?, failure_message = ?, failure_type = ?, failure_traceback = ?,
			started_at = ?, finished_at = ?, attempt = ?, holder = ?, node = ?, token = ?, put_back = ?, overtaken = ?,
			gpu_memory = ?, gpu_time = ?
			WHERE seq = ?`},
		{"remove", &s.remove, `DELETE FROM jobs WHERE seq = ?`},

		// The first waiting job of each kind that a sheep may run.
		{"heads", &s.heads, `
			SELECT * FROM (SELECT seq, priority, sheep = '', put_back FROM jobs
				WHERE state = 'queued' AND token = 0 AND sheep = '' AND put_back = 0 ORDER BY priority DESC, seq LIMIT 1)
			UNION ALL SELECT * FROM (SELECT seq, priority, sheep = '', put_back FROM jobs
				WHERE state = 'queued' AND token = 0 AND sheep = '' AND put_back = 1 ORDER BY priority DESC, seq LIMIT 1)
			UNION ALL SELECT * FROM (SELECT seq, priority, sheep = '', put_back FROM jobs
				WHERE state = 'queued' AND token = 0 AND sheep = ?1 AND put_back = 0 ORDER BY priority DESC, seq LIMIT 1)
			UNION ALL SELECT * FROM (SELECT seq, priority, sheep = '', put_back FROM jobs
				WHERE state = 'queued' AND token = 0 AND sheep = ?1 AND put_back = 1 ORDER BY priority DESC, seq LIMIT 1)`},
		// The oldest waiting job of a priority and model, among those addressed to
		// ?1 and those addressed to ?2.
		{"loaded", &s.loaded, `SELECT min(seq) FROM (
			SELECT * FROM (SELECT seq FROM jobs WHERE state = 'queued' AND token = 0
				AND sheep = ?1 AND priority = ?3 AND model_name = ?4 AND model_version = ?5 ORDER BY seq LIMIT 1)
			UNION ALL SELECT * FROM (SELECT seq FROM jobs WHERE state = 'queued' AND token = 0
				AND sheep = ?2 AND priority = ?3 AND model_name = ?4 AND model_version = ?5 ORDER BY seq LIMIT 1))`},

		// How often a job was overtaken, counted no further than the bound.
		{"overtakesOfAny", &s.overtakesOfAny, `SELECT count(*) FROM (SELECT 1 FROM overtakes
			WHERE addressed = 0 AND priority = ? AND seq > ? LIMIT ?)`},
		{"overtakesBySheep", &s.overtakesBySheep, `SELECT count(*) FROM (SELECT 1 FROM overtakes
			WHERE sheep = ? AND priority = ? AND seq > ? LIMIT ?)`},
		// The oldest job put back that may be overtaken no more.
		{"exhausted", &s.exhausted, `SELECT min(seq) FROM (
			SELECT * FROM (SELECT seq FROM jobs WHERE state = 'queued' AND token = 0
				AND sheep = ?1 AND put_back = 1 AND priority = ?3 AND overtaken >= ?4 ORDER BY seq LIMIT 1)
			UNION ALL SELECT * FROM (SELECT seq FROM jobs WHERE state = 'queued' AND token = 0
				AND sheep = ?2 AND put_back = 1 AND priority = ?3 AND overtaken >= ?4 ORDER BY seq LIMIT 1))`},
		{"overtake", &s.overtake, `INSERT INTO overtakes (priority, seq, sheep, addressed) VALUES (?, ?, ?, ?)`},
		{"bump", &s.bump, `UPDATE jobs SET overtaken = overtaken + 1 WHERE state = 'queued' AND token = 0
			AND sheep IN (?1, ?2) AND put_back = 1 AND priority = ?3 AND seq < ?4`},
		{"prune", &s.prune, `DELETE FROM overtakes WHERE NOT EXISTS (SELECT 1 FROM jobs
			WHERE jobs.state = 'queued' AND jobs.token = 0 AND jobs.sheep IN ('', overtakes.sheep)
			AND jobs.put_back = 0 AND jobs.priority = overtakes.priority AND jobs.seq < overtakes.seq)`},

		{"expire", &s.expire, `DELETE FROM jobs WHERE seq IN (SELECT seq FROM jobs
			WHERE finished_at > 0 AND finished_at < ? ORDER BY finished_at, seq LIMIT ?) RETURNING state`},
		{"saveCounters", &s.saveCounters, `UPDATE counters SET seq = ?, token = ?, event = ?`},
	}
}

func prepare(ctx context.Context, conn *sql.Conn) (*statements, error) {
	s := new(statements)
	for _, one := range s.list() {
		var err error
		if *one.into, err = conn.PrepareContext(ctx, one.text); err != nil {
			s.close()
			return nil, fmt.Errorf("prepare %s: %w", one.name, err)
		}
	}
	return s, nil
}

func (s *statements) close() {
	for _, one := range s.list() {
		if *one.into != nil {
			(*one.into).Close()
		}
	}
}
