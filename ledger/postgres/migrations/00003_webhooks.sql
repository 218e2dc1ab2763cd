-- Webhooks of jobs, and messages for receivers.

-- +goose Up

-- The webhook of a run, for as long as its messages are not complete or the job has a
-- record of the run.
CREATE TABLE shepherd.job_webhooks (
	job      text COLLATE "C" NOT NULL,
	run      bigint NOT NULL,
	webhook  text NOT NULL, -- JSON of job.Webhook
	complete boolean NOT NULL DEFAULT false,
	PRIMARY KEY (job, run)
);

-- +goose StatementBegin
CREATE FUNCTION shepherd.remove_webhooks() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	DELETE FROM shepherd.job_webhooks WHERE job = OLD.id AND complete;
	RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER job_webhooks_removed AFTER DELETE ON shepherd.jobs FOR EACH ROW EXECUTE FUNCTION shepherd.remove_webhooks();

-- One row per message for a receiver. A message waits until settled_age is set; it is due
-- at due_at, NULL while one ahead of it waits.
CREATE TABLE shepherd.deliveries (
	seq         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	id          text COLLATE "C" NOT NULL CONSTRAINT deliveries_id UNIQUE,
	receiver    text COLLATE "C" NOT NULL,
	job         text COLLATE "C" NOT NULL,
	run         bigint NOT NULL,
	tenant      text COLLATE "C" NOT NULL,
	kind        text NOT NULL,
	state       text NOT NULL DEFAULT 'waiting',
	created_at  timestamptz NOT NULL,
	began_at    timestamptz NOT NULL,
	due_at      timestamptz,
	settled_at  timestamptz,
	settled_age bigint NOT NULL DEFAULT 0, -- the ledger's age (see moment)
	again       boolean NOT NULL DEFAULT false, -- out of order, on request
	tries       bigint NOT NULL DEFAULT 0,
	status      bigint NOT NULL DEFAULT 0,
	problem     text NOT NULL DEFAULT '',
	payload     text NOT NULL
) WITH (fillfactor = 80);
CREATE INDEX deliveries_due ON shepherd.deliveries (due_at, receiver) WHERE due_at IS NOT NULL;
CREATE INDEX deliveries_in_order ON shepherd.deliveries (receiver, job, seq) WHERE state = 'waiting' AND NOT again;
CREATE INDEX deliveries_settled ON shepherd.deliveries (settled_age) WHERE settled_age > 0;
CREATE INDEX deliveries_of_job ON shepherd.deliveries (job, seq);
CREATE INDEX deliveries_of_tenant ON shepherd.deliveries (tenant, seq) WHERE tenant > '';

-- +goose Down
DROP TRIGGER job_webhooks_removed ON shepherd.jobs;
DROP FUNCTION shepherd.remove_webhooks();
DROP TABLE shepherd.deliveries, shepherd.job_webhooks;
