package api

import (
	"context"
	"errors"
	"mime"
	"net/http"
	"net/url"
	"strconv"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/job"
)

// GroupService looks at groups of jobs, of a tenant, or of all where that is empty, and
// changes their course. The error is job.ErrNoGroup where there is no such group.
type GroupService interface {
	Group(ctx context.Context, id, tenant string) (job.Group, error)

	// CancelGroup is Cancel for the jobs that have not ended.
	CancelGroup(ctx context.Context, id, tenant string) error

	// RetryGroup is Retry for the jobs that failed or were cancelled.
	RetryGroup(ctx context.Context, id, tenant string, trace job.Trace) error
}

// groupServer serves groups of jobs.
type groupServer struct {
	answers
	views
	bodyLimits
	submitter
	groups GroupService
}

// CreateGroup answers POST /groups.
func (s *groupServer) CreateGroup(w http.ResponseWriter, r *http.Request, params CreateGroupParams) {
	room := lease{of: s.bodies}
	defer room.giveBack()
	group, requests, key, err := s.readGroup(w, r, params, &room)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	unbounded(w) // there may be many inputs to store
	again, err := s.submitGroupOnce(r.Context(), requests, key)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	made, err := s.groups.Group(r.Context(), group, access.From(r.Context()).Tenant)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	w.Header().Set("Location", "/groups/"+group)
	status := http.StatusCreated
	if again {
		status = http.StatusOK
	}
	s.answer(w, r, status, s.shownGroup(made))
}

// readGroup reads the jobs of a group, complete, and its name.
func (s *groupServer) readGroup(w http.ResponseWriter, r *http.Request, params CreateGroupParams, room *lease) (group string, requests []job.Request, key string, err error) {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err == nil && kind != "application/json" && kind != "application/x-www-form-urlencoded" || err != nil && r.Header.Get("Content-Type") != "" {
		return "", nil, "", errMediaType
	}
	body, err := readBody(w, r, s.maxBody, room)
	if err != nil {
		return "", nil, "", err
	}
	if key, err = idempotencyKey(params.IdempotencyKey); err != nil {
		return "", nil, "", err
	}
	group, webhook, requests, err := decodeGroup(body)
	if err != nil {
		return "", nil, "", err
	}
	if !webhook.IsZero() {
		if err := s.checkWebhook(); err != nil {
			return "", nil, "", err
		}
	}
	if group == "" {
		group = "group-" + newID(access.From(r.Context()), key, "group")
	}
	for i := range requests {
		if err := s.prepareItem(r, &requests[i], i, group, webhook, key); err != nil {
			return "", nil, "", &job.ItemError{Index: i, Err: err}
		}
		if key != "" { // a request with the first of these jobs is another one
			requests[i].Idempotency += "-" + strconv.Itoa(len(requests))
		}
	}
	return group, requests, key, nil
}

// prepareItem completes one job of a group, as prepare does.
func (s *groupServer) prepareItem(r *http.Request, request *job.Request, index int, group string, webhook job.Webhook, key string) error {
	if request.Group != "" && request.Group != group {
		return &job.Invalid{Field: "group", Problem: "must be the group of the request, or left out"}
	}
	request.Group = group
	if !webhook.IsZero() {
		if !request.Webhook.IsZero() {
			return &job.Invalid{Field: "webhook", Problem: "cannot be combined with a webhook of the group"}
		}
		request.Webhook = job.Webhook{URL: webhook.URL, Group: group}
	}
	if key == "" {
		return s.prepare(r, request, len(request.Copies) > 0, "")
	}
	return s.prepare(r, request, len(request.Copies) > 0, key+" "+strconv.Itoa(index))
}

// submitGroupOnce submits jobs. again says that the same request has done so before.
func (s *groupServer) submitGroupOnce(ctx context.Context, requests []job.Request, key string) (again bool, err error) {
	if key != "" {
		if again, err := s.groupSubmitted(ctx, requests); again || err != nil {
			return again, err
		}
	}
	err = s.service.SubmitAll(ctx, requests)
	if key != "" && errors.Is(err, job.ErrSubmitted) { // since
		if again, lookErr := s.groupSubmitted(ctx, requests); again || lookErr != nil {
			return again, lookErr
		}
	}
	return false, err
}

// groupSubmitted reports whether the request has made all its jobs before. The error is
// errKeyReused where another request with the same key has made one of them.
func (s *groupServer) groupSubmitted(ctx context.Context, requests []job.Request) (bool, error) {
	for i, request := range requests {
		again, err := s.submitted(ctx, request)
		switch {
		case err != nil:
			return false, err
		case !again && i > 0: // some of its jobs are gone
			return false, errKeyReused
		case !again:
			return false, nil
		}
	}
	return true, nil
}

// GetGroup answers GET /groups/{group_id}.
func (s *groupServer) GetGroup(w http.ResponseWriter, r *http.Request, raw string) {
	id, err := groupID(raw)
	var group job.Group
	if err == nil {
		group, err = s.groups.Group(r.Context(), id, access.From(r.Context()).Tenant)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.answer(w, r, http.StatusOK, s.shownGroup(group))
}

// CancelGroup answers POST /groups/{group_id}/cancel.
func (s *groupServer) CancelGroup(w http.ResponseWriter, r *http.Request, raw string) {
	unbounded(w) // there may be many jobs
	id, err := groupID(raw)
	if err == nil {
		err = s.groups.CancelGroup(r.Context(), id, access.From(r.Context()).Tenant)
	}
	s.succeed(w, r, err)
}

// RetryGroup answers POST /groups/{group_id}/retry.
func (s *groupServer) RetryGroup(w http.ResponseWriter, r *http.Request, raw string) {
	unbounded(w) // there may be many jobs
	id, err := groupID(raw)
	if err == nil {
		err = s.groups.RetryGroup(r.Context(), id, access.From(r.Context()).Tenant, traceOf(r))
	}
	s.succeed(w, r, err)
}

// groupID is the name of a group in an address.
func groupID(raw string) (string, error) {
	id, err := url.PathUnescape(raw)
	if err != nil || id == "" || job.CheckGroup(id) != nil {
		return "", job.ErrNoGroup
	}
	return id, nil
}
