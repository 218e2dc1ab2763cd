package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

var _ ledger.Uploads = (*Ledger)(nil)

const (
	uploadColumns = `u.id, u.tenant, u.created_at, u.expires_at, u.due_age, u.removing, u.files`

	queryUpload = `SELECT ` + uploadColumns + ` FROM shepherd.uploads u WHERE u.id = @id`
	// A reservation, unless the id has a record or a reservation.
	queryReserveUpload = `INSERT INTO shepherd.uploads AS u (id, created_by, tenant, created_at, expires_at, due_age, files)
		SELECT @id::text, @key::uuid, @tenant::text, m.now, m.now + @keep::bigint * interval '1 microsecond', m.age + @keep::bigint, @files::text
		FROM shepherd.moment m WHERE NOT EXISTS (SELECT FROM shepherd.jobs WHERE id = @id)
		ON CONFLICT (id) DO NOTHING RETURNING ` + uploadColumns
	// The reservation that an earlier try has made.
	queryUploadReserved = `SELECT ` + uploadColumns + ` FROM shepherd.uploads u WHERE u.id = @id AND u.created_by = @key::uuid`
	queryKeepUpload     = `UPDATE shepherd.uploads u SET
			files = CASE WHEN jsonb_path_exists(u.files::jsonb, '$[*].parts') THEN u.files ELSE coalesce(@files::text, u.files) END,
			due_age = greatest(u.due_age, m.age + @keep::bigint),
			expires_at = CASE WHEN m.age + @keep::bigint > u.due_age THEN m.now + @keep::bigint * interval '1 microsecond' ELSE u.expires_at END
		FROM shepherd.moment m WHERE u.id = @id AND u.created_at = @created::timestamptz AND NOT u.removing RETURNING ` + uploadColumns
	// Without removals that another live node has begun.
	queryDueUploads = `SELECT m.age, ` + uploadColumns + ` FROM shepherd.moment m, LATERAL (
			SELECT * FROM shepherd.uploads WHERE NOT removing OR remover = ANY(@nodes::text[])
				OR NOT EXISTS (SELECT FROM shepherd.nodes WHERE name = remover AND expires_at > clock_timestamp())
			ORDER BY due_age LIMIT @limit) u`
	// Begins a removal, unless another live node has. If a record of the id was created
	// concurrently with the reservation, there is nothing to remove.
	queryRemoveUpload = `UPDATE shepherd.uploads u SET removing = true, due_age = 1, remover = @node
		FROM shepherd.moment m WHERE u.id = @id AND (NOT @due::boolean OR u.due_age <= m.age) AND NOT EXISTS (SELECT FROM shepherd.jobs WHERE id = @id)
			AND (NOT u.removing OR u.remover = ANY(@nodes::text[]) OR NOT EXISTS (SELECT FROM shepherd.nodes WHERE name = u.remover AND expires_at > clock_timestamp()))
		RETURNING ` + uploadColumns
	queryDropUpload = `DELETE FROM shepherd.uploads WHERE id = @id AND removing AND remover = ANY(@nodes::text[])`
	// Drops a reservation of an id that has a record.
	queryDropStrayUpload = `DELETE FROM shepherd.uploads WHERE id = @id AND EXISTS (SELECT FROM shepherd.jobs WHERE id = @id)`
)

// uploads are the places in storage that are reserved for jobs which are not submitted yet.
type uploads struct {
	*database
	leases *leases
}

// The codes of the errors by which the database refuses a record for the sake of a
// reservation; the message is the id.
const (
	codeOthersUpload = "SHUO1"
	codeUploadOver   = "SHUO2"
)

// refusedForUpload translates the error of a statement that inserts records.
func refusedForUpload(err error, several bool) error {
	var failure *pgconn.PgError
	if !errors.As(err, &failure) {
		return err
	}
	var meaning error
	switch failure.Code {
	case codeOthersUpload:
		meaning = ledger.ErrOthers
	case codeUploadOver:
		meaning = ledger.ErrUploadOver
	default:
		return err
	}
	if several {
		return &ledger.RecordError{ID: job.ID(failure.Message), Err: meaning}
	}
	return meaning
}

func scanUpload(rows pgx.Rows, before ...any) (u job.Upload, dueAge int64, err error) {
	var files string
	if err := rows.Scan(append(before, &u.ID, &u.Tenant, &u.Created, &u.Expires, &dueAge, &u.Removing, &files)...); err != nil {
		return u, 0, err
	}
	u.Created, u.Expires = u.Created.UTC(), u.Expires.UTC()
	if err := json.Unmarshal([]byte(files), &u.Files); err != nil {
		return u, 0, fmt.Errorf("the files of the upload of job %s: %w", u.ID, err)
	}
	return u, dueAge, nil
}

// oneUpload runs a statement that returns at most one reservation.
func (p *uploads) oneUpload(ctx context.Context, sql string, args pgx.NamedArgs) (u job.Upload, found bool, err error) {
	err = p.query(ctx, sql, args, func(rows pgx.Rows) (err error) {
		found = true
		u, _, err = scanUpload(rows)
		return err
	})
	return u, found, err
}

// ReserveUpload implements ledger.Uploads.
func (p *uploads) ReserveUpload(ctx context.Context, u job.Upload, keep time.Duration) (job.Upload, error) {
	files, err := json.Marshal(append([]job.UploadFile{}, u.Files...))
	if err != nil {
		return job.Upload{}, fmt.Errorf("write the files of an upload as JSON: %w", err)
	}
	args := pgx.NamedArgs{"id": text(u.ID), "key": newKey(), "tenant": text(u.Tenant), "keep": keep.Microseconds(), "files": string(files)}
	return read(ctx, p.database, "reserve the place of job "+string(u.ID), func(ctx context.Context) (job.Upload, error) {
		kept, made, err := p.oneUpload(ctx, queryReserveUpload, args)
		if err != nil || made {
			return kept, err
		}
		kept, made, err = p.oneUpload(ctx, queryUploadReserved, args)
		if err == nil && !made {
			err = ledger.ErrExists
		}
		return kept, err
	})
}

// KeepUpload implements ledger.Uploads.
func (p *uploads) KeepUpload(ctx context.Context, u job.Upload, files []job.UploadFile, keep time.Duration) (job.Upload, error) {
	args := pgx.NamedArgs{"id": text(u.ID), "created": u.Created, "keep": keep.Microseconds(), "files": nil}
	if files != nil {
		encoded, err := json.Marshal(files)
		if err != nil {
			return job.Upload{}, fmt.Errorf("write the files of an upload as JSON: %w", err)
		}
		args["files"] = string(encoded)
	}
	return read(ctx, p.database, "keep the place of job "+string(u.ID), func(ctx context.Context) (job.Upload, error) {
		kept, found, err := p.oneUpload(ctx, queryKeepUpload, args)
		if err != nil || found {
			return kept, err
		}
		there, found, err := p.oneUpload(ctx, queryUpload, args)
		switch {
		case err != nil:
		case found && there.Created.Equal(u.Created):
			err = ledger.ErrUploadOver
		default:
			err = ledger.ErrNotFound
		}
		return job.Upload{}, err
	})
}

// Upload implements ledger.Uploads.
func (p *uploads) Upload(ctx context.Context, id job.ID) (job.Upload, error) {
	return read(ctx, p.database, "look for the place of job "+string(id), func(ctx context.Context) (job.Upload, error) {
		u, found, err := p.oneUpload(ctx, queryUpload, pgx.NamedArgs{"id": text(id)})
		if err == nil && !found {
			err = ledger.ErrNotFound
		}
		return u, err
	})
}

// dueUploads is what is to be removed.
type dueUploads struct {
	uploads []job.Upload
	next    time.Duration
}

// DueUploads implements ledger.Uploads.
func (p *uploads) DueUploads(ctx context.Context, limit int) ([]job.Upload, time.Duration, error) {
	d, err := read(ctx, p.database, "look for uploads to remove", func(ctx context.Context) (dueUploads, error) {
		var d dueUploads
		err := p.query(ctx, queryDueUploads, pgx.NamedArgs{"limit": limit + 1, "nodes": p.leases.nodes()}, func(rows pgx.Rows) error {
			var age int64
			u, dueAge, err := scanUpload(rows, &age)
			switch {
			case err != nil:
				return err
			case d.next > 0: // the first that is not due
			case dueAge > age || len(d.uploads) == limit:
				d.next = max(time.Duration(dueAge-age)*time.Microsecond, 1)
			default:
				d.uploads = append(d.uploads, u)
			}
			return nil
		})
		return d, err
	})
	return d.uploads, d.next, err
}

// BeginUploadRemoval implements ledger.Uploads.
func (p *uploads) BeginUploadRemoval(ctx context.Context, id job.ID, due bool) (job.Upload, error) {
	return read(ctx, p.database, "begin the removal of the upload of job "+string(id), func(ctx context.Context) (job.Upload, error) {
		nodes := p.leases.nodes()
		args := pgx.NamedArgs{"id": text(id), "due": due, "nodes": nodes, "node": nodes[0]}
		begun, found, err := p.oneUpload(ctx, queryRemoveUpload, args)
		if err != nil || found {
			return begun, err
		}
		if _, err := p.exec(ctx, queryDropStrayUpload, args); err != nil {
			return job.Upload{}, err
		}
		others, found, err := p.oneUpload(ctx, queryUpload, args)
		switch {
		case err != nil:
		case found && others.Removing:
			err = ledger.ErrRemoving
		default:
			err = ledger.ErrNotFound
		}
		return job.Upload{}, err
	})
}

// EndUploadRemoval implements ledger.Uploads.
func (p *uploads) EndUploadRemoval(ctx context.Context, id job.ID) error {
	return p.call(ctx, "end the removal of the upload of job "+string(id), func(ctx context.Context) error {
		_, err := p.exec(ctx, queryDropUpload, pgx.NamedArgs{"id": text(id), "nodes": p.leases.nodes()})
		return err
	})
}
