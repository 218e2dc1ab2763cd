package api

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/job"
)

// A page of a listing has at most maxPage jobs, and somePage where the client
// does not say.
const (
	maxPage  = 1000
	somePage = 100
)

// ListJobs answers GET /jobs.
func (s *jobServer) ListJobs(w http.ResponseWriter, r *http.Request, params ListJobsParams) {
	query, err := queryOf(params)
	cursor, limit := int64(0), somePage
	if err == nil && params.After != nil {
		if cursor, err = strconv.ParseInt(*params.After, 10, 64); err != nil || cursor < 0 {
			err = &job.Invalid{Field: "after", Problem: "must be the `next` of an earlier answer"}
		}
	}
	if err == nil && params.Limit != nil {
		if limit, err = strconv.Atoi(*params.Limit); err != nil || limit < 1 || limit > maxPage {
			err = &job.Invalid{Field: "limit", Problem: fmt.Sprintf("must be a number from 1 to %d", maxPage)}
		}
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	query.Tenant = access.From(r.Context()).Tenant
	views, next, err := s.service.Jobs(r.Context(), query, cursor, limit)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	answer := JobList{Jobs: make([]Job, len(views))}
	for i, view := range views {
		answer.Jobs[i] = s.shown(view)
	}
	if next != 0 {
		answer.Next = orNull(strconv.FormatInt(next, 10))
	}
	s.answer(w, r, http.StatusOK, answer)
}

func queryOf(params ListJobsParams) (job.Query, error) {
	var q job.Query
	if params.State != nil {
		for _, named := range *params.State {
			switch state := job.State(named); state {
			case job.Queued, job.Processing, job.Done, job.Failed, job.Cancelled:
				q.States = append(q.States, state)
			default:
				return q, &job.Invalid{Field: "state", Problem: fmt.Sprintf("%q is none of queued, processing, done, failed and cancelled", named)}
			}
		}
	}
	if params.Model != nil {
		m, err := parseModel(*params.Model)
		if err != nil {
			return q, err
		}
		q.Model = m
	}
	if params.SheepId != nil {
		q.Sheep = *params.SheepId
	}
	var err error
	if params.Label != nil {
		if q.Labels, err = parseLabels(*params.Label); err != nil {
			return q, err
		}
	}
	if params.Group != nil {
		if err := job.CheckGroup(*params.Group); err != nil || *params.Group == "" {
			return q, &job.Invalid{Field: "group", Problem: "is not a valid name of a group"}
		}
		q.Group = *params.Group
	}
	if params.Prefix != nil {
		q.Prefix = job.ID(*params.Prefix)
	}
	if params.Since != nil {
		if q.Since, err = parseMoment("since", *params.Since); err != nil {
			return q, err
		}
	}
	if params.Before != nil {
		if q.Before, err = parseMoment("before", *params.Before); err != nil {
			return q, err
		}
	}
	if params.Order != nil {
		switch *params.Order {
		case "oldest":
		case "newest":
			q.Newest = true
		default:
			return q, &job.Invalid{Field: "order", Problem: fmt.Sprintf("%q is neither oldest nor newest", *params.Order)}
		}
	}
	return q, nil
}

// parseLabels reads labels that a query names, each KEY=VALUE.
func parseLabels(texts []string) (job.Labels, error) {
	labels := make(job.Labels, len(texts))
	for _, text := range texts {
		key, value, ok := strings.Cut(text, "=")
		if !ok {
			return nil, &job.Invalid{Field: "label", Problem: fmt.Sprintf("%q is not KEY=VALUE", bounded(text))}
		}
		if err := job.ValidateLabel(key, value); err != nil {
			return nil, &job.Invalid{Field: "label", Problem: err.Error()}
		}
		if other, twice := labels[key]; twice && other != value {
			return nil, &job.Invalid{Field: "label", Problem: fmt.Sprintf("no job has two values of %s", key)}
		}
		labels[key] = value
	}
	if len(labels) > job.MaxLabels {
		return nil, &job.Invalid{Field: "label", Problem: fmt.Sprintf("there are more than %d", job.MaxLabels)}
	}
	return labels, nil
}

// parseMoment reads a time with its zone, or how long ago it is.
func parseMoment(field, text string) (time.Time, error) {
	if ago, err := job.ParseDuration(text); err == nil && ago >= 0 {
		return job.Now().Add(-ago), nil
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return time.Time{}, &job.Invalid{Field: field, Problem: "must be a time with its zone, as in RFC 3339, such as 2006-01-02T15:04:05Z, or how long ago, such as 30m or 7d"}
	}
	return t.UTC(), nil
}
