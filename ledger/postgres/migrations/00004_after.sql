-- Jobs that are after others, and groups.

-- +goose Up

ALTER TABLE shepherd.jobs
	ADD COLUMN after_jobs text NOT NULL DEFAULT '', -- JSON of a list, '' for none
	ADD COLUMN blocked boolean NOT NULL DEFAULT false, -- one of them is not done; the job is delayed, too
	ADD COLUMN job_group text COLLATE "C" NOT NULL DEFAULT '';
DROP INDEX shepherd.jobs_delayed;
CREATE INDEX jobs_delayed ON shepherd.jobs (not_before) WHERE delayed AND NOT blocked;
CREATE INDEX jobs_of_group ON shepherd.jobs (job_group, seq) WHERE job_group > '';

-- One row for each job that one which has not ended is after, kept by triggers. Whoever
-- creates such a job has locked those that it is after.
CREATE TABLE shepherd.needs (
	needed    text COLLATE "C" NOT NULL,
	dependent bigint NOT NULL, -- seq of the job that is after it
	ended     boolean NOT NULL DEFAULT false, -- and the dependent was not looked at since
	PRIMARY KEY (needed, dependent)
);
CREATE INDEX needs_ended ON shepherd.needs (dependent) WHERE ended;

-- +goose StatementBegin
CREATE FUNCTION shepherd.add_needs() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO shepherd.needs SELECT a.id, NEW.seq,
			NEW.blocked AND coalesce((SELECT j.state IN ('done', 'failed', 'cancelled') FROM shepherd.jobs j WHERE j.id = a.id), true)
		FROM json_array_elements_text(NEW.after_jobs::json) a(id);
	RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER needs_added AFTER INSERT ON shepherd.jobs FOR EACH ROW
	WHEN (NEW.after_jobs > '' AND NEW.state IN ('queued', 'processing')) EXECUTE FUNCTION shepherd.add_needs();

-- +goose StatementBegin
CREATE FUNCTION shepherd.end_needs() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	UPDATE shepherd.needs SET ended = true WHERE needed = NEW.id;
	IF NEW.after_jobs > '' THEN
		DELETE FROM shepherd.needs n USING json_array_elements_text(NEW.after_jobs::json) a(id) WHERE n.needed = a.id AND n.dependent = NEW.seq;
	END IF;
	RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER needs_ended AFTER UPDATE ON shepherd.jobs FOR EACH ROW
	WHEN (NEW.state IN ('done', 'failed', 'cancelled') AND OLD.state IN ('queued', 'processing')) EXECUTE FUNCTION shepherd.end_needs();

-- +goose Down
DROP TRIGGER needs_ended ON shepherd.jobs;
DROP TRIGGER needs_added ON shepherd.jobs;
DROP FUNCTION shepherd.end_needs(), shepherd.add_needs();
DROP TABLE shepherd.needs;
DROP INDEX shepherd.jobs_of_group, shepherd.jobs_delayed;
CREATE INDEX jobs_delayed ON shepherd.jobs (not_before) WHERE delayed;
ALTER TABLE shepherd.jobs DROP COLUMN after_jobs, DROP COLUMN blocked, DROP COLUMN job_group;
