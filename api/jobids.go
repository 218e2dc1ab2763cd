package api

import (
	"context"
	"net/http"
	"net/url"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/job"
)

// jobIDs finds out which job an address names.
type jobIDs struct {
	owners interface {
		Owner(ctx context.Context, id job.ID) (tenant string, err error)
	}
}

// jobID decodes a job's id from a path. An invalid id is answered like the id of an
// unknown job, and so is that of another tenant's job.
func (s jobIDs) jobID(r *http.Request, raw string) (job.ID, error) {
	text, err := url.PathUnescape(raw)
	if err != nil {
		return "", &job.UnknownJob{ID: raw}
	}
	id, err := job.ParseID(text)
	if err != nil {
		return "", &job.UnknownJob{ID: text}
	}
	if tenant := access.From(r.Context()).Tenant; tenant != "" {
		owner, err := s.owners.Owner(r.Context(), id)
		if err != nil {
			return "", err
		}
		if owner != tenant {
			return "", &job.UnknownJob{ID: text}
		}
	}
	return id, nil
}
