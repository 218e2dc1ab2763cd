package sqlite

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
)

var _ ledger.Uploads = (*Ledger)(nil)

// uploads are the places in storage that are reserved for jobs which are not submitted yet.
type uploads struct{ *database }

// uploadsSchema is a migration. Times are microseconds since 1970.
const uploadsSchema = `
	-- One row per place that is reserved for a job which is not submitted yet. An id is
	-- here or in jobs, never in both.
	CREATE TABLE uploads (
		id         TEXT PRIMARY KEY,
		tenant     TEXT NOT NULL,
		created_at INTEGER NOT NULL,
		expires_at INTEGER NOT NULL,
		due_age    INTEGER NOT NULL, -- the ledger's age (see age.go) when its time is over; 1 for one that is being removed
		removing   INTEGER NOT NULL DEFAULT 0,
		files      TEXT NOT NULL     -- JSON of a list of job.UploadFile
	) STRICT;
	CREATE INDEX uploads_due ON uploads (due_age);`

// uploadStatements are those of the writer.
type uploadStatements struct {
	find, insert, keep, remove, drop *sql.Stmt
}

const (
	uploadColumns     = `id, tenant, created_at, expires_at, due_age, removing, files`
	queryUpload       = `SELECT ` + uploadColumns + ` FROM uploads WHERE id = ?`
	queryDueUploads   = `SELECT ` + uploadColumns + ` FROM uploads ORDER BY due_age LIMIT ?`
	queryCountUploads = `SELECT count(*) FROM uploads`
)

func (s *uploadStatements) list() []statement {
	return []statement{
		{"findUpload", &s.find, queryUpload},
		{"reserveUpload", &s.insert, `INSERT INTO uploads (` + uploadColumns + `) VALUES (?, ?, ?, ?, ?, 0, ?)`},
		{"keepUpload", &s.keep, `UPDATE uploads SET expires_at = ?, due_age = ?, files = ? WHERE id = ?`},
		{"removeUpload", &s.remove, `UPDATE uploads SET removing = 1, due_age = 1 WHERE id = ?`},
		{"dropUpload", &s.drop, `DELETE FROM uploads WHERE id = ?`},
	}
}

// upload is a row of the table uploads.
type upload struct {
	job.Upload
	dueAge int64
}

func scanUpload(scan func(...any) error) (u upload, err error) {
	var created, expires int64
	var files string
	if err := scan(&u.ID, &u.Tenant, &created, &expires, &u.dueAge, &u.Removing, &files); err != nil {
		return u, err
	}
	u.Created, u.Expires = time.UnixMicro(created).UTC(), time.UnixMicro(expires).UTC()
	if err := json.Unmarshal([]byte(files), &u.Files); err != nil {
		return u, fmt.Errorf("the files of the upload of job %s: %w", u.ID, err)
	}
	return u, nil
}

// keepFor extends the reservation to a time from now on.
func (u *upload) keepFor(t *tx, keep time.Duration) {
	if due := t.age + keep.Microseconds(); due > u.dueAge {
		u.dueAge, u.Expires = due, t.now.Add(keep.Truncate(time.Microsecond))
	}
}

// upload reads a reservation; nil where there is none.
func (t *tx) upload(id job.ID) (*upload, error) {
	if t.w.tally.uploadCount()+t.uploads <= 0 { // the normal case
		return nil, nil
	}
	var found *upload
	err := t.query(func(scan func(...any) error) error {
		u, err := scanUpload(scan)
		found = &u
		return err
	}, t.stmts.uploads.find, string(id))
	return found, err
}

// checkUpload returns the error with which a new record is refused because of the
// reservation of its id.
func (t *tx) checkUpload(rec job.Record) error {
	u, err := t.upload(rec.ID)
	switch {
	case err != nil || u == nil:
		return err
	case u.Tenant != rec.Tenant:
		return ledger.ErrOthers
	case u.Removing:
		return ledger.ErrUploadOver
	}
	return nil
}

// endUpload removes the reservation of an id, where there is one.
func (t *tx) endUpload(id job.ID) error {
	if t.w.tally.uploadCount()+t.uploads <= 0 {
		return nil
	}
	result, err := t.exec(t.stmts.uploads.drop, string(id))
	if err != nil {
		return err
	}
	n, err := result.RowsAffected()
	t.uploads -= int(n)
	return err
}

// ReserveUpload implements ledger.Uploads.
func (p *uploads) ReserveUpload(ctx context.Context, reserve job.Upload, keep time.Duration) (job.Upload, error) {
	files, err := filesText(reserve.Files)
	if err != nil {
		return job.Upload{}, err
	}
	reserve.Files = slices.Clone(reserve.Files)
	var kept upload
	err = p.change(ctx, "reserve the place of job "+string(reserve.ID), func(t *tx) error {
		switch _, err := t.byID(reserve.ID); {
		case err == nil:
			return ledger.ErrExists
		case !errors.Is(err, ledger.ErrNotFound):
			return err
		}
		if u, err := t.upload(reserve.ID); err != nil || u != nil {
			return cmp.Or(err, ledger.ErrExists)
		}
		kept = upload{Upload: job.Upload{ID: reserve.ID, Tenant: reserve.Tenant, Created: t.now, Files: reserve.Files}}
		kept.keepFor(t, keep)
		_, err := t.exec(t.stmts.uploads.insert, string(kept.ID), kept.Tenant, kept.Created.UnixMicro(), kept.Expires.UnixMicro(), kept.dueAge, files)
		t.uploads++
		return err
	}, nil)
	if err != nil {
		return job.Upload{}, err
	}
	return kept.Upload, nil
}

// KeepUpload implements ledger.Uploads.
func (p *uploads) KeepUpload(ctx context.Context, u job.Upload, files []job.UploadFile, keep time.Duration) (job.Upload, error) {
	files = slices.Clone(files)
	var kept *upload
	err := p.change(ctx, "keep the place of job "+string(u.ID), func(t *tx) (err error) {
		kept, err = t.upload(u.ID)
		switch {
		case err != nil:
			return err
		case kept == nil, !kept.Created.Equal(u.Created):
			return ledger.ErrNotFound
		case kept.Removing:
			return ledger.ErrUploadOver
		}
		if files != nil && !kept.PartsBegun() {
			kept.Files = files
		}
		kept.keepFor(t, keep)
		text, err := filesText(kept.Files)
		if err != nil {
			return err
		}
		_, err = t.exec(t.stmts.uploads.keep, kept.Expires.UnixMicro(), kept.dueAge, text, string(u.ID))
		return err
	}, nil)
	if err != nil {
		return job.Upload{}, err
	}
	return kept.Upload, nil
}

// Upload implements ledger.Uploads.
func (p *uploads) Upload(ctx context.Context, id job.ID) (job.Upload, error) {
	var found upload
	err := p.call("look for the place of job "+string(id), func() (err error) {
		if p.writer.tally.uploadCount() == 0 {
			return cmp.Or(ctx.Err(), ledger.ErrNotFound)
		}
		found, err = scanUpload(p.reads.QueryRowContext(ctx, queryUpload, string(id)).Scan)
		if errors.Is(err, sql.ErrNoRows) {
			err = ledger.ErrNotFound
		}
		return err
	})
	return found.Upload, err
}

// DueUploads implements ledger.Uploads.
func (p *uploads) DueUploads(ctx context.Context, limit int) (due []job.Upload, next time.Duration, err error) {
	err = p.call("look for uploads to remove", func() error {
		if p.writer.tally.uploadCount() == 0 {
			return ctx.Err()
		}
		age := p.writer.clock.now()
		rows, err := p.reads.QueryContext(ctx, queryDueUploads, limit+1)
		if err != nil {
			return err
		}
		defer rows.Close()
		for next == 0 && rows.Next() {
			u, err := scanUpload(rows.Scan)
			switch {
			case err != nil:
				return err
			case u.dueAge > age || len(due) == limit:
				next = max(time.Duration(u.dueAge-age)*time.Microsecond, 1)
			default:
				due = append(due, u.Upload)
			}
		}
		return rows.Err()
	})
	return due, next, err
}

// BeginUploadRemoval implements ledger.Uploads.
func (p *uploads) BeginUploadRemoval(ctx context.Context, id job.ID, due bool) (job.Upload, error) {
	var begun *upload
	err := p.change(ctx, "begin the removal of the upload of job "+string(id), func(t *tx) (err error) {
		begun, err = t.upload(id)
		switch {
		case err != nil:
			return err
		case begun == nil, due && begun.dueAge > t.age:
			return ledger.ErrNotFound
		case begun.Removing:
			return nil
		}
		begun.Removing = true
		_, err = t.exec(t.stmts.uploads.remove, string(id))
		return err
	}, nil)
	if err != nil {
		return job.Upload{}, err
	}
	return begun.Upload, nil
}

// EndUploadRemoval implements ledger.Uploads.
func (p *uploads) EndUploadRemoval(ctx context.Context, id job.ID) error {
	return p.change(ctx, "end the removal of the upload of job "+string(id), func(t *tx) error {
		u, err := t.upload(id)
		if err != nil || u == nil || !u.Removing {
			return err
		}
		return t.endUpload(id)
	}, nil)
}

func filesText(files []job.UploadFile) (string, error) {
	text, err := json.Marshal(append([]job.UploadFile{}, files...)) // [] and not null
	if err != nil {
		return "", fmt.Errorf("write the files of an upload as JSON: %w", err)
	}
	return string(text), nil
}
