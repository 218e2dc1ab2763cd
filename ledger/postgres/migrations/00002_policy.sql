-- What the ledger's policy needs (package ledger, Policy).

-- +goose Up

-- The claimable jobs of each tenant and model, of which a claim takes the first.
CREATE INDEX jobs_claimable_by_tenant ON shepherd.jobs (sheep, tenant, model_name, model_version, priority DESC, seq) WHERE claimable;
CREATE INDEX jobs_queued_by_tenant ON shepherd.jobs (tenant) WHERE state = 'queued' AND tenant > '';

-- The GPU time that tenants have used, in microseconds, each row as of an age of the
-- ledger. Changes only add rows, so that none waits for another; they are summed up now
-- and then.
CREATE TABLE shepherd.used (
	tenant text COLLATE "C" NOT NULL,
	used   bigint NOT NULL,
	age    bigint NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);

-- +goose Down
DROP TABLE shepherd.used;
DROP INDEX shepherd.jobs_queued_by_tenant, shepherd.jobs_claimable_by_tenant;
