-- The ledger of jobs. Everything is in the schema shepherd, which is made before.
-- Times are of the server's clock; NULL is for none. Durations and ages are in
-- microseconds.

-- +goose Up

-- Places, tokens and events have numbers from sequences: none is given out twice,
-- and a transaction that fails leaves a gap.
CREATE SEQUENCE shepherd.places;
CREATE SEQUENCE shepherd.tokens;
CREATE SEQUENCE shepherd.event_ids;

-- One row per record. The texts that can be long are the last columns.
CREATE TABLE shepherd.jobs (
	seq               bigint NOT NULL DEFAULT nextval('shepherd.places') PRIMARY KEY,
	version           bigint NOT NULL DEFAULT 1, -- grows with every change of the row
	created_by        uuid   NOT NULL,           -- key of the request that created the run
	changed_by        uuid   NOT NULL,           -- key of the request that changed the row last
	claimed_by        uuid,                      -- key of the claim under way, or the last one
	id                text COLLATE "C" NOT NULL CONSTRAINT jobs_id UNIQUE,
	model_name        text COLLATE "C" NOT NULL,
	model_version     text COLLATE "C" NOT NULL,
	sheep             text COLLATE "C" NOT NULL, -- that the job is addressed to, '' for any
	priority          bigint NOT NULL,
	tenant            text COLLATE "C" NOT NULL,
	trace_parent      text NOT NULL,
	trace_state       text NOT NULL,
	limits            text NOT NULL,             -- JSON of job.Limits, '' for none
	labels            text NOT NULL,             -- JSON of an object, '' for none
	idempotency       text COLLATE "C" NOT NULL, -- what a repeated request is known by, '' for none
	keep              bigint,                    -- as the client asked, 0 for ever
	state             text COLLATE "C" NOT NULL,
	run               bigint NOT NULL,
	attempt           bigint NOT NULL DEFAULT 0,
	spent             bigint NOT NULL DEFAULT 0,
	enqueued_at       timestamptz NOT NULL,
	not_before        timestamptz,
	wait_until        timestamptz,
	deadline          timestamptz,
	claimed_at        timestamptz,               -- when the attempt under way began
	started_at        timestamptz,
	finished_at       timestamptz,
	changed_at        timestamptz NOT NULL,      -- when the row changed last
	holder            text COLLATE "C" NOT NULL DEFAULT '',
	node              text COLLATE "C" NOT NULL DEFAULT '',
	token             bigint NOT NULL DEFAULT 0, -- of the claim that holds the job, 0 for none
	cancelling        boolean NOT NULL DEFAULT false,
	delayed           boolean NOT NULL DEFAULT false, -- queued, and not_before has not come
	ended_age         bigint NOT NULL DEFAULT 0, -- the ledger's age (see moment) when the run ended
	kept_for          bigint NOT NULL DEFAULT 0, -- how long the files are kept after the end, 0 for ever
	remove_age        bigint NOT NULL DEFAULT 0, -- the ledger's age when the files are due, 0 for never
	removal           smallint NOT NULL DEFAULT 0, -- that has begun: 1 of the files, 2 of the record, too
	remover           text COLLATE "C" NOT NULL DEFAULT '', -- the node that began the removal
	removed_at        timestamptz,               -- when the files were removed
	gpu_memory        bigint NOT NULL DEFAULT 0,
	gpu_time          bigint NOT NULL DEFAULT 0,
	warnings          text NOT NULL DEFAULT '',  -- JSON of a list, '' for none
	failure_type      text NOT NULL DEFAULT '',
	failure_message   text NOT NULL DEFAULT '',
	failure_traceback text NOT NULL DEFAULT '',

	-- A job is claimable when it is queued, held by nobody and not delayed; one that
	-- nobody holds fails at give_up_at.
	claimable         boolean GENERATED ALWAYS AS (state = 'queued' AND token = 0 AND NOT delayed) STORED,
	give_up_at        timestamptz GENERATED ALWAYS AS (CASE WHEN state = 'queued' AND token = 0 THEN least(wait_until, deadline) END) STORED
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

-- Claim reads the indexes of claimable jobs alone, so its cost depends neither on
-- the history nor on the jobs that are held or delayed.
CREATE INDEX jobs_claimable ON shepherd.jobs (sheep, priority DESC, seq) WHERE claimable;
CREATE INDEX jobs_claimable_by_model ON shepherd.jobs (sheep, model_name, model_version, priority DESC, seq) WHERE claimable;
CREATE INDEX jobs_claimable_by_age ON shepherd.jobs (model_name, model_version, sheep, seq) WHERE claimable;
CREATE INDEX jobs_delayed ON shepherd.jobs (not_before) WHERE delayed;
CREATE INDEX jobs_given_up ON shepherd.jobs (give_up_at) WHERE give_up_at IS NOT NULL;
CREATE INDEX jobs_held ON shepherd.jobs (node, token) WHERE token > 0;
CREATE INDEX jobs_ended ON shepherd.jobs (ended_age, seq) WHERE ended_age > 0 AND remove_age = 0;
CREATE INDEX jobs_to_remove ON shepherd.jobs (remove_age, seq) WHERE remove_age > 0;
CREATE INDEX jobs_of_state ON shepherd.jobs (state, seq);
CREATE INDEX jobs_of_model ON shepherd.jobs (model_name, model_version, seq);
CREATE INDEX jobs_of_sheep ON shepherd.jobs (sheep, seq) WHERE sheep > '';
CREATE INDEX jobs_of_tenant ON shepherd.jobs (tenant, seq) WHERE tenant > '';

-- One row per label of each job that has any, kept by triggers. Neither a job's
-- labels nor its place ever change.
CREATE TABLE shepherd.labels (
	key   text COLLATE "C" NOT NULL,
	value text COLLATE "C" NOT NULL,
	seq   bigint NOT NULL, -- the job's
	PRIMARY KEY (key, value, seq)
);

-- +goose StatementBegin
CREATE FUNCTION shepherd.add_labels() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO shepherd.labels SELECT key, value, NEW.seq FROM json_each_text(NEW.labels::json);
	RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER labels_added AFTER INSERT ON shepherd.jobs FOR EACH ROW WHEN (NEW.labels > '') EXECUTE FUNCTION shepherd.add_labels();

-- +goose StatementBegin
CREATE FUNCTION shepherd.remove_labels() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	DELETE FROM shepherd.labels l USING json_each_text(OLD.labels::json) o WHERE l.key = o.key AND l.value = o.value AND l.seq = OLD.seq;
	RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER labels_removed AFTER DELETE ON shepherd.jobs FOR EACH ROW WHEN (OLD.labels > '') EXECUTE FUNCTION shepherd.remove_labels();

-- One row per attempt that ended. The one under way is in its job's row.
CREATE TABLE shepherd.attempts (
	job        text COLLATE "C" NOT NULL,
	run        bigint NOT NULL,
	number     bigint NOT NULL,
	node       text NOT NULL,
	sheep      text NOT NULL,
	began      timestamptz,
	started    timestamptz,
	ended      timestamptz NOT NULL,
	cause      text NOT NULL,
	reason     text NOT NULL,
	spent      boolean NOT NULL,
	gpu_memory bigint NOT NULL,
	gpu_time   bigint NOT NULL,
	stage      bigint NOT NULL,
	load       bigint NOT NULL,
	execute    bigint NOT NULL,
	collect    bigint NOT NULL,
	log        text NOT NULL,
	PRIMARY KEY (job, run, number)
);

-- One row per change of a job. The id is given out while the job's row is locked,
-- so the events of one job are in the order of its changes. The last columns are
-- the run's final status, of an event that has one.
CREATE TABLE shepherd.events (
	id                bigint NOT NULL DEFAULT nextval('shepherd.event_ids') PRIMARY KEY,
	at                timestamptz NOT NULL,
	age               bigint NOT NULL, -- of the ledger
	kind              text NOT NULL,
	job               text COLLATE "C" NOT NULL,
	run               bigint NOT NULL,
	model_name        text NOT NULL,
	model_version     text NOT NULL,
	sheep             text NOT NULL, -- that the job is addressed to
	tenant            text COLLATE "C" NOT NULL,
	attempt           bigint NOT NULL,
	holder            text NOT NULL,
	node              text NOT NULL,
	state             text NOT NULL,
	cause             text NOT NULL,
	reason            text NOT NULL,
	delayed           boolean NOT NULL,
	enqueued_at       timestamptz,
	started_at        timestamptz,
	finished_at       timestamptz,
	failure_type      text NOT NULL,
	failure_message   text NOT NULL,
	failure_traceback text NOT NULL
);
CREATE INDEX events_of_job ON shepherd.events (job, id);
CREATE INDEX events_of_tenant ON shepherd.events (tenant, id) WHERE tenant > '';

-- How far each consumer of events has come.
CREATE TABLE shepherd.checkpoints (
	consumer text COLLATE "C" PRIMARY KEY,
	cursor   text NOT NULL
);

-- The keys of claims that were made or called off, for as long as either can
-- still be asked about.
CREATE TABLE shepherd.claim_keys (
	key uuid PRIMARY KEY,
	at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX claim_keys_by_time ON shepherd.claim_keys (at);

-- The nodes that ever joined. A lease ends at expires_at, NULL where it was given
-- up; a node that joins again has another generation. About is what the node tells of
-- itself, as JSON.
CREATE TABLE shepherd.nodes (
	name       text COLLATE "C" PRIMARY KEY,
	generation bigint NOT NULL,
	joined_at  timestamptz NOT NULL,
	expires_at timestamptz,
	draining   boolean NOT NULL DEFAULT false, -- an operator wants it to claim no job
	about      text NOT NULL DEFAULT ''
) WITH (fillfactor = 50);

-- How many records there are of each kind: the sum of n over the rows of the kind.
-- Changes only add rows, so that none waits for another; they are summed up now
-- and then. Model and sheep are those of claimable jobs, and empty for others.
CREATE TABLE shepherd.tally (
	state         text COLLATE "C" NOT NULL,
	claimable     boolean NOT NULL,
	retained      boolean NOT NULL, -- the record stays until its files are removed
	model_name    text COLLATE "C" NOT NULL,
	model_version text COLLATE "C" NOT NULL,
	sheep         text COLLATE "C" NOT NULL,
	n             bigint NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);

-- +goose StatementBegin
CREATE FUNCTION shepherd.count_job() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF TG_OP = 'UPDATE' THEN
		IF (OLD.state, OLD.claimable, OLD.remove_age > 0) = (NEW.state, NEW.claimable, NEW.remove_age > 0) THEN
			RETURN NULL;
		END IF;
	END IF;
	IF TG_OP <> 'INSERT' THEN
		IF OLD.claimable THEN
			INSERT INTO shepherd.tally VALUES (OLD.state, true, false, OLD.model_name, OLD.model_version, OLD.sheep, -1);
		ELSE
			INSERT INTO shepherd.tally VALUES (OLD.state, false, OLD.remove_age > 0, '', '', '', -1);
		END IF;
	END IF;
	IF TG_OP <> 'DELETE' THEN
		IF NEW.claimable THEN
			INSERT INTO shepherd.tally VALUES (NEW.state, true, false, NEW.model_name, NEW.model_version, NEW.sheep, 1);
		ELSE
			INSERT INTO shepherd.tally VALUES (NEW.state, false, NEW.remove_age > 0, '', '', '', 1);
		END IF;
	END IF;
	RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER count_job AFTER INSERT OR UPDATE OR DELETE ON shepherd.jobs
	FOR EACH ROW EXECUTE FUNCTION shepherd.count_job();

-- The ledger's age, which it had at the time wall of the clock, and the last event
-- that was removed.
CREATE TABLE shepherd.ledger (
	single boolean PRIMARY KEY DEFAULT true CHECK (single),
	age    bigint NOT NULL,
	wall   timestamptz NOT NULL,
	pruned bigint NOT NULL
) WITH (fillfactor = 50);
INSERT INTO shepherd.ledger SELECT true, (extract(epoch FROM now()) * 1000000)::bigint, now(), 0;

-- Now, and the ledger's age. Age grows with the time that passes, but by no more
-- than two minutes beyond what was kept last: a clock that jumps forward removes
-- nothing early.
-- +goose StatementBegin
CREATE VIEW shepherd.moment AS
	SELECT now, age + least(greatest((extract(epoch FROM now - wall) * 1000000)::bigint, 0), 120000000) AS age, pruned
	FROM (SELECT clock_timestamp() AS now, age, wall, pruned FROM shepherd.ledger OFFSET 0) l;
-- +goose StatementEnd

-- +goose Down
DROP VIEW shepherd.moment;
DROP TABLE shepherd.ledger, shepherd.tally, shepherd.nodes, shepherd.claim_keys, shepherd.checkpoints, shepherd.events, shepherd.attempts, shepherd.labels, shepherd.jobs;
DROP FUNCTION shepherd.count_job(), shepherd.add_labels(), shepherd.remove_labels();
DROP SEQUENCE shepherd.event_ids, shepherd.tokens, shepherd.places;
