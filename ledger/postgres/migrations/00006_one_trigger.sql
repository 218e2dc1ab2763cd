-- One trigger for all that follows from a change of a job: the server reads the condition of
-- each trigger again for every statement, and calls a function for each trigger. With one, a
-- job takes a tenth less of its CPU time.

-- +goose Up

DROP TRIGGER labels_added ON shepherd.jobs;
DROP TRIGGER labels_removed ON shepherd.jobs;
DROP TRIGGER count_job ON shepherd.jobs;
DROP TRIGGER job_webhooks_removed ON shepherd.jobs;
DROP TRIGGER needs_added ON shepherd.jobs;
DROP TRIGGER needs_ended ON shepherd.jobs;
DROP FUNCTION shepherd.add_labels(), shepherd.remove_labels(), shepherd.count_job(), shepherd.remove_webhooks(), shepherd.add_needs(), shepherd.end_needs();

-- +goose StatementBegin
CREATE FUNCTION shepherd.follow_job() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF TG_OP = 'UPDATE' THEN
		IF OLD.state = NEW.state AND OLD.claimable = NEW.claimable AND (OLD.remove_age > 0) = (NEW.remove_age > 0) THEN
			RETURN NULL;
		END IF;
		INSERT INTO shepherd.tally VALUES
			(OLD.state, OLD.claimable, NOT OLD.claimable AND OLD.remove_age > 0, CASE WHEN OLD.claimable THEN OLD.model_name ELSE '' END,
				CASE WHEN OLD.claimable THEN OLD.model_version ELSE '' END, CASE WHEN OLD.claimable THEN OLD.sheep ELSE '' END, -1),
			(NEW.state, NEW.claimable, NOT NEW.claimable AND NEW.remove_age > 0, CASE WHEN NEW.claimable THEN NEW.model_name ELSE '' END,
				CASE WHEN NEW.claimable THEN NEW.model_version ELSE '' END, CASE WHEN NEW.claimable THEN NEW.sheep ELSE '' END, 1);
		IF NEW.state IN ('done', 'failed', 'cancelled') AND OLD.state IN ('queued', 'processing') THEN
			UPDATE shepherd.needs SET ended = true WHERE needed = NEW.id;
			IF NEW.after_jobs > '' THEN
				DELETE FROM shepherd.needs n USING json_array_elements_text(NEW.after_jobs::json) a(id) WHERE n.needed = a.id AND n.dependent = NEW.seq;
			END IF;
		END IF;
	ELSIF TG_OP = 'INSERT' THEN
		INSERT INTO shepherd.tally VALUES
			(NEW.state, NEW.claimable, NOT NEW.claimable AND NEW.remove_age > 0, CASE WHEN NEW.claimable THEN NEW.model_name ELSE '' END,
				CASE WHEN NEW.claimable THEN NEW.model_version ELSE '' END, CASE WHEN NEW.claimable THEN NEW.sheep ELSE '' END, 1);
		IF NEW.labels > '' THEN
			INSERT INTO shepherd.labels SELECT key, value, NEW.seq FROM json_each_text(NEW.labels::json);
		END IF;
		IF NEW.after_jobs > '' AND NEW.state IN ('queued', 'processing') THEN
			INSERT INTO shepherd.needs SELECT a.id, NEW.seq,
					NEW.blocked AND coalesce((SELECT j.state IN ('done', 'failed', 'cancelled') FROM shepherd.jobs j WHERE j.id = a.id), true)
				FROM json_array_elements_text(NEW.after_jobs::json) a(id);
		END IF;
	ELSE
		INSERT INTO shepherd.tally VALUES
			(OLD.state, OLD.claimable, NOT OLD.claimable AND OLD.remove_age > 0, CASE WHEN OLD.claimable THEN OLD.model_name ELSE '' END,
				CASE WHEN OLD.claimable THEN OLD.model_version ELSE '' END, CASE WHEN OLD.claimable THEN OLD.sheep ELSE '' END, -1);
		IF OLD.labels > '' THEN
			DELETE FROM shepherd.labels l USING json_each_text(OLD.labels::json) o WHERE l.key = o.key AND l.value = o.value AND l.seq = OLD.seq;
		END IF;
		DELETE FROM shepherd.job_webhooks WHERE job = OLD.id AND complete;
	END IF;
	RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER job_followed AFTER INSERT OR UPDATE OR DELETE ON shepherd.jobs FOR EACH ROW EXECUTE FUNCTION shepherd.follow_job();

-- Most jobs have no reservation: one statement finds that.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION shepherd.end_upload() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
	reserved record;
BEGIN
	SELECT tenant, removing INTO reserved FROM shepherd.uploads WHERE id = NEW.id FOR UPDATE;
	IF NOT FOUND THEN
		RETURN NEW;
	ELSIF reserved.tenant <> NEW.tenant THEN
		RAISE EXCEPTION '%', NEW.id USING ERRCODE = 'SHUO1';
	ELSIF reserved.removing THEN
		RAISE EXCEPTION '%', NEW.id USING ERRCODE = 'SHUO2';
	END IF;
	DELETE FROM shepherd.uploads WHERE id = NEW.id;
	RETURN NEW;
END $$;
-- +goose StatementEnd

-- +goose Down
DROP TRIGGER job_followed ON shepherd.jobs;
DROP FUNCTION shepherd.follow_job();
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
-- +goose StatementBegin
CREATE FUNCTION shepherd.remove_webhooks() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	DELETE FROM shepherd.job_webhooks WHERE job = OLD.id AND complete;
	RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER job_webhooks_removed AFTER DELETE ON shepherd.jobs FOR EACH ROW EXECUTE FUNCTION shepherd.remove_webhooks();
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
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION shepherd.end_upload() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
	reserved record;
BEGIN
	DELETE FROM shepherd.uploads WHERE id = NEW.id AND tenant = NEW.tenant AND NOT removing;
	IF NOT FOUND THEN
		SELECT tenant, removing INTO reserved FROM shepherd.uploads WHERE id = NEW.id;
		IF FOUND AND reserved.tenant <> NEW.tenant THEN
			RAISE EXCEPTION '%', NEW.id USING ERRCODE = 'SHUO1';
		ELSIF FOUND THEN
			RAISE EXCEPTION '%', NEW.id USING ERRCODE = 'SHUO2';
		END IF;
	END IF;
	RETURN NEW;
END $$;
-- +goose StatementEnd
