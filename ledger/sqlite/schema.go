package sqlite

import (
	"context"
	"database/sql"
	"fmt"
)

// applicationID marks the file as a ledger of shepherd ("shpl"), for file(1) and so that
// the database of another program is refused.
const applicationID = 0x7368706c

// migrations[n] takes a ledger from schema n to schema n+1. The schema's number
// is the file's user_version. A migration that was released is never edited.
//
// One file with one owner needs no migration library, which would only add start-up time
// and memory.
var migrations = []string{
	// One row per record. Times are microseconds since 1970, 0 for not yet.
	// A record is waiting when it can be claimed: queued and held by nobody,
	// which is token 0. The partial indexes over waiting rows are what Claim
	// reads, so its cost depends neither on the history nor on held jobs.
	`CREATE TABLE jobs (
		seq               INTEGER PRIMARY KEY,
		id                TEXT NOT NULL UNIQUE,
		model_name        TEXT NOT NULL,
		model_version     TEXT NOT NULL,
		sheep             TEXT NOT NULL,
		priority          INTEGER NOT NULL,
		state             TEXT NOT NULL,
		failure_message   TEXT NOT NULL DEFAULT '',
		failure_type      TEXT NOT NULL DEFAULT '',
		failure_traceback TEXT NOT NULL DEFAULT '',
		enqueued_at       INTEGER NOT NULL,
		started_at        INTEGER NOT NULL DEFAULT 0,
		finished_at       INTEGER NOT NULL DEFAULT 0,
		run               INTEGER NOT NULL,
		attempt           INTEGER NOT NULL DEFAULT 0,
		holder            TEXT NOT NULL DEFAULT '',
		node              TEXT NOT NULL DEFAULT '',
		token             INTEGER NOT NULL DEFAULT 0,
		-- put_back says that the job was held before; overtaken is then how often
		-- it has been overtaken (see claim.go).
		put_back          INTEGER NOT NULL DEFAULT 0,
		overtaken         INTEGER NOT NULL DEFAULT 0
	) STRICT;
	CREATE INDEX jobs_waiting ON jobs (sheep, put_back, priority DESC, seq)
		WHERE state = 'queued' AND token = 0;
	CREATE INDEX jobs_waiting_for_model ON jobs (sheep, priority, model_name, model_version, seq)
		WHERE state = 'queued' AND token = 0;
	CREATE INDEX jobs_held ON jobs (node, token) WHERE token > 0;
	CREATE INDEX jobs_ended ON jobs (finished_at, seq) WHERE finished_at > 0;
	CREATE INDEX jobs_by_state ON jobs (state, seq);

	-- One row per claim that overtook an older job of the same priority: seq is
	-- the claimed job's place, sheep who claimed it, addressed whether the slot
	-- took only jobs addressed to it.
	CREATE TABLE overtakes (
		priority  INTEGER NOT NULL,
		seq       INTEGER NOT NULL,
		sheep     TEXT NOT NULL,
		addressed INTEGER NOT NULL
	) STRICT;
	CREATE INDEX overtakes_of_any ON overtakes (priority, seq) WHERE addressed = 0;
	CREATE INDEX overtakes_by_sheep ON overtakes (sheep, priority, seq);

	-- The last place, token and event given out: none is given out twice.
	CREATE TABLE counters (
		only  INTEGER PRIMARY KEY CHECK (only = 1),
		seq   INTEGER NOT NULL,
		token INTEGER NOT NULL,
		event INTEGER NOT NULL
	) STRICT;
	INSERT INTO counters VALUES (1, 0, 0, 0);`,

	// What a run that ended used of GPUs: bytes, and microseconds times GPUs.
	`ALTER TABLE jobs ADD COLUMN gpu_memory INTEGER NOT NULL DEFAULT 0;
	ALTER TABLE jobs ADD COLUMN gpu_time INTEGER NOT NULL DEFAULT 0;`,

	// The trace that a job belongs to.
	`ALTER TABLE jobs ADD COLUMN trace_parent TEXT NOT NULL DEFAULT '';
	ALTER TABLE jobs ADD COLUMN trace_state TEXT NOT NULL DEFAULT '';`,

	// Whose a job is. A tenant lists its own jobs by the index.
	`ALTER TABLE jobs ADD COLUMN tenant TEXT NOT NULL DEFAULT '';
	CREATE INDEX jobs_of_tenant ON jobs (tenant, seq) WHERE tenant > '';`,

	// Attempts, events and times. Times are microseconds since 1970, 0 for none.
	// The texts that can be long are the last columns of a row, so that reading
	// the others reads none of their pages.
	`CREATE TABLE jobs_5 (
		seq               INTEGER PRIMARY KEY,
		id                TEXT NOT NULL UNIQUE,
		model_name        TEXT NOT NULL,
		model_version     TEXT NOT NULL,
		sheep             TEXT NOT NULL,
		priority          INTEGER NOT NULL,
		tenant            TEXT NOT NULL,
		trace_parent      TEXT NOT NULL,
		trace_state       TEXT NOT NULL,
		limits            TEXT NOT NULL DEFAULT '', -- JSON of job.Limits, '' for none
		state             TEXT NOT NULL,
		run               INTEGER NOT NULL,
		attempt           INTEGER NOT NULL DEFAULT 0,
		spent             INTEGER NOT NULL DEFAULT 0,
		enqueued_at       INTEGER NOT NULL,
		not_before        INTEGER NOT NULL DEFAULT 0,
		wait_until        INTEGER NOT NULL DEFAULT 0,
		deadline          INTEGER NOT NULL DEFAULT 0,
		claimed_at        INTEGER NOT NULL DEFAULT 0, -- when the attempt under way began
		started_at        INTEGER NOT NULL DEFAULT 0,
		finished_at       INTEGER NOT NULL DEFAULT 0,
		changed_at        INTEGER NOT NULL,           -- when the row changed last
		holder            TEXT NOT NULL DEFAULT '',
		node              TEXT NOT NULL DEFAULT '',
		token             INTEGER NOT NULL DEFAULT 0, -- of the claim that holds the job, 0 for none
		cancelling        INTEGER NOT NULL DEFAULT 0,
		delayed           INTEGER NOT NULL DEFAULT 0, -- queued, and not_before has not come
		give_up_at        INTEGER NOT NULL DEFAULT 0, -- when the job fails if nobody holds it then
		ended_age         INTEGER NOT NULL DEFAULT 0, -- the ledger's age (see age.go) when the run ended
		gpu_memory        INTEGER NOT NULL DEFAULT 0,
		gpu_time          INTEGER NOT NULL DEFAULT 0,
		warnings          TEXT NOT NULL DEFAULT '',   -- JSON of a list, '' for none
		failure_type      TEXT NOT NULL DEFAULT '',
		failure_message   TEXT NOT NULL DEFAULT '',
		failure_traceback TEXT NOT NULL DEFAULT ''
	) STRICT;
	INSERT INTO jobs_5 (seq, id, model_name, model_version, sheep, priority, tenant, trace_parent, trace_state, state,
			run, attempt, spent, enqueued_at, claimed_at, started_at, finished_at, changed_at, holder, node, token,
			ended_age, gpu_memory, gpu_time, failure_type, failure_message, failure_traceback)
		SELECT seq, id, model_name, model_version, sheep, priority, tenant, trace_parent, trace_state, state,
			-- The attempt under way is not spent yet.
			run, attempt, max(attempt - (token > 0), 0), enqueued_at,
			-- When a job was claimed ahead was not recorded.
			iif(token = 0, 0, max(enqueued_at, started_at)), started_at, finished_at,
			max(enqueued_at, started_at, finished_at), holder, node, token,
			finished_at, gpu_memory, gpu_time,
			-- Shorter than job.Clip's bounds, whatever the characters.
			substr(failure_type, 1, 64),
			iif(octet_length(failure_message) <= 8192, failure_message, substr(failure_message, 1, 500) || char(10) || '[…]' || char(10) || substr(failure_message, -1500)),
			iif(octet_length(failure_traceback) <= 16384, failure_traceback, substr(failure_traceback, 1, 1000) || char(10) || '[…]' || char(10) || substr(failure_traceback, -3000))
		FROM jobs;
	DROP TABLE jobs;
	ALTER TABLE jobs_5 RENAME TO jobs;

	-- A job is claimable when it is queued, held by nobody and not delayed. Claim
	-- reads the indexes of such jobs alone, so its cost depends neither on the
	-- history nor on the jobs that are held or delayed. Every index ends with seq.
	CREATE INDEX jobs_claimable ON jobs (sheep, priority DESC)
		WHERE state = 'queued' AND token = 0 AND delayed = 0;
	CREATE INDEX jobs_claimable_by_model ON jobs (sheep, model_name, model_version, priority DESC)
		WHERE state = 'queued' AND token = 0 AND delayed = 0;
	CREATE INDEX jobs_claimable_by_age ON jobs (model_name, model_version, sheep)
		WHERE state = 'queued' AND token = 0 AND delayed = 0;
	CREATE INDEX jobs_delayed ON jobs (not_before) WHERE delayed = 1;
	CREATE INDEX jobs_given_up ON jobs (give_up_at) WHERE give_up_at > 0;
	CREATE INDEX jobs_held ON jobs (node, token) WHERE token > 0;
	CREATE INDEX jobs_ended ON jobs (ended_age) WHERE ended_age > 0;
	CREATE INDEX jobs_of_state ON jobs (state);
	CREATE INDEX jobs_of_model ON jobs (model_name, model_version);
	CREATE INDEX jobs_of_sheep ON jobs (sheep) WHERE sheep > '';
	CREATE INDEX jobs_of_tenant ON jobs (tenant) WHERE tenant > '';

	-- One row per attempt that ended. The one under way is in its job's row.
	CREATE TABLE attempts (
		job        TEXT NOT NULL,
		run        INTEGER NOT NULL,
		number     INTEGER NOT NULL,
		node       TEXT NOT NULL,
		sheep      TEXT NOT NULL,
		began      INTEGER NOT NULL,
		started    INTEGER NOT NULL,
		ended      INTEGER NOT NULL,
		cause      TEXT NOT NULL,
		reason     TEXT NOT NULL,
		spent      INTEGER NOT NULL,
		gpu_memory INTEGER NOT NULL,
		gpu_time   INTEGER NOT NULL,
		stage      INTEGER NOT NULL,
		load       INTEGER NOT NULL,
		execute    INTEGER NOT NULL,
		collect    INTEGER NOT NULL,
		PRIMARY KEY (job, run, number)
	) STRICT, WITHOUT ROWID;

	-- One row per change of a job. The last columns are the run's final status, of
	-- an event that has one.
	CREATE TABLE events (
		id                INTEGER PRIMARY KEY,
		at                INTEGER NOT NULL,
		age               INTEGER NOT NULL, -- of the ledger (see age.go)
		kind              TEXT NOT NULL,
		job               TEXT NOT NULL,
		run               INTEGER NOT NULL,
		model_name        TEXT NOT NULL,
		model_version     TEXT NOT NULL,
		sheep             TEXT NOT NULL, -- that the job is addressed to
		tenant            TEXT NOT NULL,
		attempt           INTEGER NOT NULL,
		holder            TEXT NOT NULL,
		node              TEXT NOT NULL,
		state             TEXT NOT NULL,
		cause             TEXT NOT NULL,
		reason            TEXT NOT NULL,
		delayed           INTEGER NOT NULL,
		enqueued_at       INTEGER NOT NULL,
		started_at        INTEGER NOT NULL,
		finished_at       INTEGER NOT NULL,
		failure_type      TEXT NOT NULL,
		failure_message   TEXT NOT NULL,
		failure_traceback TEXT NOT NULL
	) STRICT;
	CREATE INDEX events_of_job ON events (job);
	CREATE INDEX events_of_tenant ON events (tenant) WHERE tenant > '';

	-- How far each consumer of events has come.
	CREATE TABLE checkpoints (
		consumer TEXT PRIMARY KEY,
		cursor   TEXT NOT NULL
	) STRICT, WITHOUT ROWID;

	-- Numbers up to these may have been given out: none is given out twice.
	-- pruned is the last event that was removed, age the ledger's at the time wall.
	CREATE TABLE numbers (
		only   INTEGER PRIMARY KEY CHECK (only = 1),
		seq    INTEGER NOT NULL,
		token  INTEGER NOT NULL,
		event  INTEGER NOT NULL,
		pruned INTEGER NOT NULL,
		age    INTEGER NOT NULL,
		wall   INTEGER NOT NULL
	) STRICT;
	INSERT INTO numbers SELECT 1, seq, token, event, event, 0, 0 FROM counters;
	DROP TABLE counters;
	DROP TABLE overtakes;`,

	// Where the lines are that the runner wrote during an attempt.
	`ALTER TABLE attempts ADD COLUMN log TEXT NOT NULL DEFAULT '';`,

	// How long jobs' files are kept. The long texts become the last columns again.
	// A record whose files are to be removed does not expire.
	`ALTER TABLE jobs ADD COLUMN keep INTEGER NOT NULL DEFAULT -1;      -- as the client asked: microseconds, 0 for ever, -1 not at all
	ALTER TABLE jobs ADD COLUMN kept_for INTEGER NOT NULL DEFAULT 0;   -- microseconds after the end, 0 for ever
	ALTER TABLE jobs ADD COLUMN remove_age INTEGER NOT NULL DEFAULT 0; -- the ledger's age when the files are due, 0 for never
	ALTER TABLE jobs ADD COLUMN removal INTEGER NOT NULL DEFAULT 0;    -- that has begun: 1 of the files, 2 of the record, too
	ALTER TABLE jobs ADD COLUMN removed_at INTEGER NOT NULL DEFAULT 0; -- when the files were removed
	ALTER TABLE jobs RENAME COLUMN failure_message TO message_5;
	ALTER TABLE jobs RENAME COLUMN failure_traceback TO traceback_5;
	ALTER TABLE jobs ADD COLUMN failure_message TEXT NOT NULL DEFAULT '';
	ALTER TABLE jobs ADD COLUMN failure_traceback TEXT NOT NULL DEFAULT '';
	UPDATE jobs SET failure_message = message_5, failure_traceback = traceback_5 WHERE message_5 > '' OR traceback_5 > '';
	ALTER TABLE jobs DROP COLUMN message_5;
	ALTER TABLE jobs DROP COLUMN traceback_5;
	DROP INDEX jobs_ended;
	CREATE INDEX jobs_ended ON jobs (ended_age) WHERE ended_age > 0 AND remove_age = 0;
	CREATE INDEX jobs_to_remove ON jobs (remove_age) WHERE remove_age > 0;`,

	// Labels, and what a repeated request is known by. The long texts become the
	// last columns again. The triggers keep the index of labels: one row per label of
	// each job that has any.
	`ALTER TABLE jobs ADD COLUMN labels TEXT NOT NULL DEFAULT '';      -- JSON of an object, '' for none
	ALTER TABLE jobs ADD COLUMN idempotency TEXT NOT NULL DEFAULT '';
	ALTER TABLE jobs RENAME COLUMN failure_message TO message_7;
	ALTER TABLE jobs RENAME COLUMN failure_traceback TO traceback_7;
	ALTER TABLE jobs ADD COLUMN failure_message TEXT NOT NULL DEFAULT '';
	ALTER TABLE jobs ADD COLUMN failure_traceback TEXT NOT NULL DEFAULT '';
	UPDATE jobs SET failure_message = message_7, failure_traceback = traceback_7 WHERE message_7 > '' OR traceback_7 > '';
	ALTER TABLE jobs DROP COLUMN message_7;
	ALTER TABLE jobs DROP COLUMN traceback_7;
	CREATE TABLE labels (
		label_key   TEXT NOT NULL,
		label_value TEXT NOT NULL,
		label_seq   INTEGER NOT NULL, -- the job's seq
		PRIMARY KEY (label_key, label_value, label_seq)
	) STRICT, WITHOUT ROWID;
	CREATE TRIGGER labels_added AFTER INSERT ON jobs WHEN new.labels > '' BEGIN
		INSERT INTO labels SELECT key, value, new.seq FROM json_each(new.labels);
	END;
	CREATE TRIGGER labels_removed AFTER DELETE ON jobs WHEN old.labels > '' BEGIN
		DELETE FROM labels WHERE (label_key, label_value, label_seq) IN (SELECT key, value, old.seq FROM json_each(old.labels));
	END;`,

	// Webhooks of jobs, and messages for receivers.
	webhooksSchema,

	// Jobs that are after others, and groups. The long texts become the last columns
	// again. A job that is blocked is delayed, too. The triggers keep one row in needs for
	// each job that one which has not ended is after.
	`ALTER TABLE jobs ADD COLUMN after_jobs TEXT NOT NULL DEFAULT '';   -- JSON of a list, '' for none
	ALTER TABLE jobs ADD COLUMN blocked INTEGER NOT NULL DEFAULT 0;    -- one of them is not done
	ALTER TABLE jobs ADD COLUMN job_group TEXT NOT NULL DEFAULT '';
	ALTER TABLE jobs RENAME COLUMN failure_message TO message_9;
	ALTER TABLE jobs RENAME COLUMN failure_traceback TO traceback_9;
	ALTER TABLE jobs ADD COLUMN failure_message TEXT NOT NULL DEFAULT '';
	ALTER TABLE jobs ADD COLUMN failure_traceback TEXT NOT NULL DEFAULT '';
	UPDATE jobs SET failure_message = message_9, failure_traceback = traceback_9 WHERE message_9 > '' OR traceback_9 > '';
	ALTER TABLE jobs DROP COLUMN message_9;
	ALTER TABLE jobs DROP COLUMN traceback_9;
	DROP INDEX jobs_delayed;
	CREATE INDEX jobs_delayed ON jobs (not_before) WHERE delayed = 1 AND blocked = 0;
	CREATE INDEX jobs_blocked ON jobs (blocked) WHERE blocked = 1;
	CREATE INDEX jobs_of_group ON jobs (job_group) WHERE job_group > '';
	CREATE TABLE needs (
		needed    TEXT NOT NULL,
		dependent INTEGER NOT NULL, -- seq of the job that is after it
		PRIMARY KEY (needed, dependent)
	) STRICT, WITHOUT ROWID;
	CREATE TRIGGER needs_added AFTER INSERT ON jobs WHEN new.after_jobs > '' BEGIN
		INSERT INTO needs SELECT value, new.seq FROM json_each(new.after_jobs);
	END;
	CREATE TRIGGER needs_ended AFTER UPDATE OF state ON jobs WHEN new.after_jobs > '' AND new.state IN ('done', 'failed', 'cancelled') BEGIN
		DELETE FROM needs WHERE (needed, dependent) IN (SELECT value, new.seq FROM json_each(new.after_jobs));
	END;`,

	// Places in storage that are reserved for jobs.
	uploadsSchema,
}

// migrate migrates the ledger at path to the newest schema, each version in its own
// transaction.
func migrate(ctx context.Context, conn *sql.Conn, path string) error {
	var version, application, tables int
	err := conn.QueryRowContext(ctx, `SELECT user_version, application_id, (SELECT count(*) FROM sqlite_schema)
		FROM pragma_user_version, pragma_application_id`).Scan(&version, &application, &tables)
	if err != nil {
		return err
	}
	if version == 0 && tables > 0 || version > 0 && application != applicationID {
		return &foreignError{path: path}
	}
	if version > len(migrations) {
		return &newerError{path: path, schema: version, known: len(migrations)}
	}
	for ; version < len(migrations); version++ {
		if err := migrateStep(ctx, conn, version); err != nil {
			return fmt.Errorf("migrate the schema from version %d to %d: %w", version, version+1, err)
		}
	}
	return nil
}

func migrateStep(ctx context.Context, conn *sql.Conn, from int) error {
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	script := fmt.Sprintf("%s\nPRAGMA application_id = %d; PRAGMA user_version = %d;", migrations[from], applicationID, from+1)
	if _, err := tx.ExecContext(ctx, script); err != nil {
		return err
	}
	return tx.Commit()
}
