-- Places in storage that are reserved for jobs which are not submitted yet.

-- +goose Up

CREATE TABLE shepherd.uploads (
	id         text COLLATE "C" PRIMARY KEY,
	created_by uuid NOT NULL, -- the request's key
	tenant     text COLLATE "C" NOT NULL,
	created_at timestamptz NOT NULL,
	expires_at timestamptz NOT NULL,
	due_age    bigint NOT NULL, -- the ledger's age (see moment) when its time is over; 1 for one that is being removed
	removing   boolean NOT NULL DEFAULT false,
	remover    text COLLATE "C" NOT NULL DEFAULT '', -- the node that removes it
	files      text NOT NULL -- JSON of a list of job.UploadFile
);
CREATE INDEX uploads_due ON shepherd.uploads (due_age);

-- A job ends the reservation of its id, or is refused.
-- +goose StatementBegin
CREATE FUNCTION shepherd.end_upload() RETURNS trigger LANGUAGE plpgsql AS $$
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
CREATE TRIGGER upload_ended BEFORE INSERT ON shepherd.jobs FOR EACH ROW EXECUTE FUNCTION shepherd.end_upload();

-- +goose Down
DROP TRIGGER upload_ended ON shepherd.jobs;
DROP FUNCTION shepherd.end_upload();
DROP TABLE shepherd.uploads;
