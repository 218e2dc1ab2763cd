package sqlite

import (
	"context"
	"database/sql"
	"fmt"
)

// applicationID marks the file as a ledger of shepherd ("shpl"), so that file(1)
// can tell and another program's database is not taken for one.
const applicationID = 0x7368706c

// migrations[n] takes a ledger from schema n to schema n+1. The schema's number
// is the file's user_version. A migration that was released is never edited.
//
// A list of statements and a number in the file's header are all that one file
// with one owner needs; a migration library would cost start-up time and memory
// to do the same.
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
}

// migrate brings the ledger at path to the newest schema, each step in its own
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
		if err := step(ctx, conn, version); err != nil {
			return fmt.Errorf("bring the schema from version %d to %d: %w", version, version+1, err)
		}
	}
	return nil
}

func step(ctx context.Context, conn *sql.Conn, from int) error {
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
