package memory

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/ledger"
	"github.com/iterait/shepherd/ledger/lifecycle"
)

var _ ledger.Uploads = (*Ledger)(nil)

// uploads are the places in storage that are reserved for jobs which are not submitted yet.
type uploads struct{ *database }

// upload is a reservation and the ledger's age when its time is over; 1 where its removal
// has begun.
type upload struct {
	job.Upload
	due int64
}

func (u *upload) copy() job.Upload {
	kept := u.Upload
	kept.Files = slices.Clone(u.Files)
	return kept
}

// keep extends the reservation to a time from m on.
func (u *upload) keep(m lifecycle.Moment, d time.Duration) {
	if due := m.Age + d.Microseconds(); due > u.due {
		u.due, u.Expires = due, m.Now.Add(d.Truncate(time.Microsecond))
	}
}

// ReserveUpload implements ledger.Uploads.
func (p *uploads) ReserveUpload(ctx context.Context, reserve job.Upload, keep time.Duration) (job.Upload, error) {
	var kept job.Upload
	err := p.call(ctx, "reserve the place of job "+string(reserve.ID), func() error {
		if p.uploads[reserve.ID] != nil || p.find(reserve.ID) != nil {
			return ledger.ErrExists
		}
		m := p.moment()
		u := &upload{Upload: job.Upload{ID: reserve.ID, Tenant: reserve.Tenant, Created: m.Now, Files: slices.Clone(reserve.Files)}}
		u.keep(m, keep)
		p.uploads[u.ID], kept = u, u.copy()
		return nil
	})
	return kept, err
}

// KeepUpload implements ledger.Uploads.
func (p *uploads) KeepUpload(ctx context.Context, of job.Upload, files []job.UploadFile, keep time.Duration) (job.Upload, error) {
	var kept job.Upload
	err := p.call(ctx, "keep the place of job "+string(of.ID), func() error {
		u := p.uploads[of.ID]
		switch {
		case u == nil, !u.Created.Equal(of.Created):
			return ledger.ErrNotFound
		case u.Removing:
			return ledger.ErrUploadOver
		}
		if files != nil && !u.PartsBegun() {
			u.Files = slices.Clone(files)
		}
		u.keep(p.moment(), keep)
		kept = u.copy()
		return nil
	})
	return kept, err
}

// Upload implements ledger.Uploads.
func (p *uploads) Upload(ctx context.Context, id job.ID) (job.Upload, error) {
	var found job.Upload
	err := p.call(ctx, "look for the place of job "+string(id), func() error {
		u := p.uploads[id]
		if u == nil {
			return ledger.ErrNotFound
		}
		found = u.copy()
		return nil
	})
	return found, err
}

// DueUploads implements ledger.Uploads.
func (p *uploads) DueUploads(ctx context.Context, limit int) (due []job.Upload, next time.Duration, err error) {
	err = p.call(ctx, "look for uploads to remove", func() error {
		age := p.moment().Age
		var all []*upload
		for _, u := range p.uploads {
			all = append(all, u)
		}
		slices.SortFunc(all, func(a, b *upload) int { return cmp.Or(cmp.Compare(a.due, b.due), cmp.Compare(a.ID, b.ID)) })
		for _, u := range all {
			if u.due > age || len(due) == limit {
				next = max(time.Duration(u.due-age)*time.Microsecond, 1)
				break
			}
			due = append(due, u.copy())
		}
		return nil
	})
	return due, next, err
}

// BeginUploadRemoval implements ledger.Uploads.
func (p *uploads) BeginUploadRemoval(ctx context.Context, id job.ID, due bool) (job.Upload, error) {
	var begun job.Upload
	err := p.call(ctx, "begin the removal of the upload of job "+string(id), func() error {
		u := p.uploads[id]
		if u == nil || due && u.due > p.moment().Age {
			return ledger.ErrNotFound
		}
		u.Removing, u.due = true, 1
		begun = u.copy()
		return nil
	})
	return begun, err
}

// EndUploadRemoval implements ledger.Uploads.
func (p *uploads) EndUploadRemoval(ctx context.Context, id job.ID) error {
	return p.call(ctx, "end the removal of the upload of job "+string(id), func() error {
		if u := p.uploads[id]; u != nil && u.Removing {
			delete(p.uploads, id)
		}
		return nil
	})
}

// checkUpload returns the error with which a new record is refused because of the
// reservation of its id.
func (d *database) checkUpload(rec job.Record) error {
	u := d.uploads[rec.ID]
	switch {
	case u == nil:
		return nil
	case u.Tenant != rec.Tenant:
		return ledger.ErrOthers
	case u.Removing:
		return ledger.ErrUploadOver
	}
	return nil
}
