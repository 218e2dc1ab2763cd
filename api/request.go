package api

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/semaphore"

	"github.com/iterait/shepherd/job"
)

// trusted is how much memory is allocated for a Content-Length alone, in bytes.
const trusted = 1 << 20

// readBody reads a request's body of at most limit bytes. The memory for it is
// taken from room as it grows; the caller gives it back, also with an error, when
// the body is no longer used. It returns *http.MaxBytesError when there is more
// than limit, errNoRoom when there is no memory left, errSlowBody when the server's
// read timeout passes and *job.Invalid when the body ends early.
func readBody(w http.ResponseWriter, r *http.Request, limit int64, room *lease) ([]byte, error) {
	if r.ContentLength > limit {
		return nil, &http.MaxBytesError{Limit: limit}
	}
	if err := checkCoding(r); err != nil {
		return nil, err
	}
	size := 512
	if r.ContentLength > 0 {
		size = int(min(r.ContentLength, trusted)) + 1 // one more to see the end without growing
	}
	if !room.take(size) {
		return nil, errNoRoom
	}
	body := make([]byte, 0, size)
	if wrapped, ok := w.(interface{ Unwrap() http.ResponseWriter }); ok {
		w = wrapped.Unwrap() // net/http looks for its own, to close the connection of a body too large
	}
	from := http.MaxBytesReader(w, r.Body, limit)
	for {
		n, err := from.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		var tooLarge *http.MaxBytesError
		switch {
		case err == io.EOF:
			return body, nil
		case errors.As(err, &tooLarge):
			return nil, err
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil, errSlowBody
		case err != nil:
			return nil, &job.Invalid{Field: "body", Problem: "ended before it was complete"}
		}
		if len(body) < cap(body) {
			continue
		}
		// A client that has sent this much is trusted with the rest. One byte beyond
		// limit shows that a body is too large.
		size = int(min(max(2*int64(len(body)), r.ContentLength+1), limit+1))
		if !room.take(size) {
			return nil, errNoRoom
		}
		grown := make([]byte, len(body), size)
		copy(grown, body)
		room.release(cap(body))
		body = grown
	}
}

// compressions are the content codings that HTTP knows.
var compressions = []string{"gzip", "x-gzip", "compress", "x-compress", "deflate", "br", "zstd", "dcb", "dcz"}

// checkCoding refuses a body that is compressed. Other values of the header are ignored: some
// clients give the character set in it.
func checkCoding(r *http.Request) error {
	all := r.Header.Get("Content-Encoding")
	for coding := range strings.SplitSeq(all, ",") {
		if slices.Contains(compressions, strings.ToLower(strings.TrimSpace(coding))) {
			return &job.Invalid{Field: "body", Problem: "has the Content-Encoding " + strconv.Quote(bounded(all)) + "; send it without one"}
		}
	}
	return nil
}

// bodyLimits bounds the bodies that are held in memory.
type bodyLimits struct {
	maxBody int64               // of one, in bytes
	bodies  *semaphore.Weighted // bytes of all together
}

// lease is the part of the memory for request bodies that one request uses.
type lease struct {
	of    *semaphore.Weighted
	taken int64
}

// take reports whether there were so many bytes left.
func (l *lease) take(size int) bool {
	if !l.of.TryAcquire(int64(size)) {
		return false
	}
	l.taken += int64(size)
	return true
}

func (l *lease) release(size int) {
	l.of.Release(int64(size))
	l.taken -= int64(size)
}

// giveBack releases all of it.
func (l *lease) giveBack() { l.release(int(l.taken)) }

// decodeStartJob reads the body of a start-job request. It is strict where a
// lax reader would silently run something other than the client meant: unknown
// and repeated fields, wrong types, trailing data and text that is not UTF-8
// are refused with a *job.Invalid that names the field. The payload of the
// request it returns is a part of body.
func decodeStartJob(body []byte) (job.Request, error) {
	var fields jobFields
	in := &reader{data: body}
	if err := in.document(func() error { return fields.decode(in, func(*reader, string) error { return errNotMine }) }); err != nil {
		return job.Request{}, err
	}
	switch {
	case !fields.id.seen:
		return job.Request{}, missing("job_id")
	case fields.id.value == nil:
		return job.Request{}, &job.Invalid{Field: "job_id", Problem: "cannot be null"}
	}
	request, err := fields.complete()
	if err == nil && len(fields.payload.value) > 0 {
		request.Payload = fields.payload.value
	}
	return request, err
}

// decodeJob reads the description of a job for POST /jobs, as strictly. The job has
// no id where the description has none, and a payload, which may be empty, where
// it has one.
func decodeJob(body []byte) (request job.Request, err error) {
	in := &reader{data: body}
	if in.space(); in.peek() == '[' {
		return request, &job.Invalid{Field: "body", Problem: "must be an object; several jobs are sent to POST /groups, as its jobs"}
	}
	err = in.document(func() error {
		request, err = in.job()
		return err
	})
	return request, err
}

// decodeGroup reads several jobs with the name of their group, empty where the daemon is to
// make one, and its webhook. An error about one of them is a *job.ItemError.
func decodeGroup(body []byte) (group string, webhook job.Webhook, requests []job.Request, err error) {
	in := &reader{data: body}
	var name text
	err = in.document(func() error {
		return in.object("", func(field string) error {
			switch field {
			case "group":
				return name.optional(in, field)
			case "webhook":
				return in.optional(func() (err error) { webhook, err = in.webhook(field); return err })
			case "jobs":
				return in.list(field, func(string) error {
					if len(requests) == job.MaxGroup {
						return &job.Invalid{Field: field, Problem: fmt.Sprintf("there are more than %d", job.MaxGroup)}
					}
					request, err := in.job()
					if err != nil {
						return &job.ItemError{Index: len(requests), Err: err}
					}
					requests = append(requests, request)
					return nil
				})
			}
			return unknown(field)
		})
	})
	switch {
	case err != nil:
	case len(requests) == 0:
		err = &job.Invalid{Field: "jobs", Problem: "there is none"}
	case job.CheckGroup(string(name.value)) != nil, name.value != nil && len(name.value) == 0:
		err = &job.Invalid{Field: "group", Problem: "must be a name as a job's id is: letters, digits, '.', '_' and '-'"}
	case webhook.Events != "":
		err = &job.Invalid{Field: "webhook.events", Problem: "a group has one event, its end"}
	}
	return string(name.value), webhook, requests, err
}

// job reads one description of a job.
func (r *reader) job() (job.Request, error) {
	var fields jobFields
	var labels job.Labels
	var copies []job.Copy
	var webhook job.Webhook
	var after []job.ID
	var group text
	err := fields.decode(r, func(in *reader, field string) error {
		switch field {
		case "labels":
			return in.optional(func() (err error) { labels, err = in.labels(field); return err })
		case "inputs":
			return in.optional(func() (err error) { copies, err = in.copies(field); return err })
		case "webhook":
			return in.optional(func() (err error) { webhook, err = in.webhook(field); return err })
		case "after":
			return in.optional(func() (err error) { after, err = in.ids(field); return err })
		case "group":
			return group.optional(in, field)
		}
		return errNotMine
	})
	if err != nil {
		return job.Request{}, err
	}
	request, err := fields.complete()
	if err != nil {
		return job.Request{}, err
	}
	request.Labels, request.Copies, request.Payload, request.Webhook = labels, copies, fields.payload.value, webhook
	request.After, request.Group = after, string(group.value)
	if err := job.CheckAfter(after); err != nil {
		return job.Request{}, &job.Invalid{Field: "after", Problem: err.Error()}
	}
	if err := job.CheckGroup(request.Group); err != nil || group.value != nil && request.Group == "" {
		return job.Request{}, &job.Invalid{Field: "group", Problem: "must be a name as a job's id is: letters, digits, '.', '_' and '-'"}
	}
	if request.Payload != nil && len(copies) > 0 {
		return job.Request{}, &job.Invalid{Field: "payload", Problem: "cannot be combined with inputs; give one of them"}
	}
	return request, nil
}

// errNotMine says that a field is none of those that a function reads.
var errNotMine = errors.New("not a field of this form")

// jobFields are the fields that all descriptions of jobs have.
type jobFields struct {
	request            job.Request
	id, sheep, payload text
	model              modelField
}

// decode reads a description. more reads the fields that only some have, or returns
// errNotMine.
func (f *jobFields) decode(in *reader, more func(in *reader, field string) error) error {
	request := &f.request
	return in.object("", func(field string) error {
		switch field {
		case "job_id":
			return f.id.optional(in, field)
		case "sheep_id":
			return f.sheep.optional(in, field)
		case "node_labels":
			return in.optional(func() (err error) { request.NodeLabels, err = in.labels(field); return err })
		case "payload":
			return f.payload.optional(in, field)
		case "model":
			return f.model.read(in, field)
		case "priority":
			return in.optional(func() error {
				n, err := in.integer(field)
				request.Priority = int(n)
				return err
			})
		case "retries":
			return in.optional(func() error {
				n, err := in.integer(field)
				request.Limits.Retries = new(int(n))
				return err
			})
		case "retry_pause":
			return in.limit(field, &request.Limits.RetryPause)
		case "wait_timeout":
			return in.limit(field, &request.Limits.WaitTimeout)
		case "load_timeout":
			return in.limit(field, &request.Limits.LoadTimeout)
		case "run_timeout":
			return in.limit(field, &request.Limits.RunTimeout)
		case "keep":
			return in.limit(field, &request.Keep)
		case "not_before":
			return in.optional(func() (err error) { request.NotBefore, err = in.time(field); return err })
		case "deadline":
			return in.optional(func() (err error) { request.Deadline, err = in.time(field); return err })
		}
		err := more(in, field)
		if errors.Is(err, errNotMine) {
			return unknown(field)
		}
		return err
	})
}

// complete checks the fields that were read, and returns them as a request without
// its payload.
func (f *jobFields) complete() (job.Request, error) {
	if err := f.model.complete(); err != nil {
		return job.Request{}, err
	}
	request := f.request
	var err error
	if f.id.value != nil {
		if request.ID, err = job.ParseID(string(f.id.value)); err != nil {
			return job.Request{}, &job.Invalid{Field: "job_id", Problem: err.Error()}
		}
	}
	if request.Model, err = f.model.value(); err != nil {
		return job.Request{}, err
	}
	if request.Sheep, err = f.sheep.sheep(); err != nil {
		return job.Request{}, err
	}
	if wrong := request.Limits.Validate(); len(wrong) > 0 {
		return job.Request{}, wrong[0]
	}
	if request.Keep != nil && (*request.Keep < 0 || *request.Keep > job.MaxKeep) {
		return job.Request{}, &job.Invalid{Field: "keep", Problem: "must be from 0, which is indefinitely, to a hundred years"}
	}
	if !request.Deadline.IsZero() && !request.Deadline.After(request.NotBefore) {
		return job.Request{}, &job.Invalid{Field: "deadline", Problem: "must be later than not_before"}
	}
	return request, nil
}

// labels reads an object whose values are strings.
func (r *reader) labels(field string) (job.Labels, error) {
	labels := make(job.Labels)
	err := r.object(field, func(name string) error {
		key := strings.TrimPrefix(name, field+".")
		value, err := r.text(name)
		if err != nil {
			return err
		}
		if err := job.ValidateLabel(key, string(value)); err != nil {
			return &job.Invalid{Field: field, Problem: err.Error()}
		}
		labels[key] = string(value)
		if len(labels) > job.MaxLabels {
			return &job.Invalid{Field: field, Problem: fmt.Sprintf("there are more than %d", job.MaxLabels)}
		}
		return nil
	})
	return labels, err
}

// copies reads a list of references to files of other jobs.
func (r *reader) copies(field string) ([]job.Copy, error) {
	var copies []job.Copy
	err := r.list(field, func(element string) error {
		if len(copies) == job.MaxCopies {
			return &job.Invalid{Field: field, Problem: fmt.Sprintf("there are more than %d", job.MaxCopies)}
		}
		var from, path, as text
		err := r.object(element, func(name string) error {
			switch name {
			case element + ".job":
				return from.required(r, name)
			case element + ".path":
				return path.optional(r, name)
			case element + ".as":
				return as.optional(r, name)
			}
			return unknown(name)
		})
		if err != nil {
			return err
		}
		c, err := copyOf(element, from, path, as)
		copies = append(copies, c)
		return err
	})
	return copies, err
}

// ids reads the names of jobs.
func (r *reader) ids(field string) ([]job.ID, error) {
	var ids []job.ID
	err := r.list(field, func(element string) error {
		if len(ids) == job.MaxAfter {
			return &job.Invalid{Field: field, Problem: fmt.Sprintf("there are more than %d", job.MaxAfter)}
		}
		id, err := r.text(element)
		ids = append(ids, job.ID(id))
		return err
	})
	return ids, err
}

// webhook reads where messages about the job are sent.
func (r *reader) webhook(field string) (job.Webhook, error) {
	var address text
	var events []job.EventKind
	err := r.object(field, func(name string) error {
		switch name {
		case field + ".url":
			return address.required(r, name)
		case field + ".events":
			return r.optional(func() error {
				return r.list(name, func(element string) error {
					if len(events) == len(job.WebhookEvents()) {
						return &job.Invalid{Field: name, Problem: "there are more entries than kinds of events"}
					}
					kind, err := r.text(element)
					events = append(events, job.EventKind(kind))
					return err
				})
			})
		}
		return unknown(name)
	})
	switch {
	case err != nil:
		return job.Webhook{}, err
	case !address.seen:
		return job.Webhook{}, missing(field + ".url")
	}
	return job.NewWebhook(string(address.value), events)
}

// copyOf checks a reference.
func copyOf(element string, from, path, as text) (job.Copy, error) {
	if !from.seen {
		return job.Copy{}, missing(element + ".job")
	}
	id, err := job.ParseID(string(from.value))
	if err != nil {
		return job.Copy{}, &job.Invalid{Field: element + ".job", Problem: err.Error()}
	}
	c := job.Copy{From: id, Path: string(path.value), As: string(as.value)}
	if path.value == nil {
		c.Path = job.OutputDir + "/"
	}
	folder, name, _ := strings.Cut(c.Path, "/")
	whole := strings.HasSuffix(c.Path, "/")
	if folder != job.InputDir && folder != job.OutputDir || name == "" && !whole || len(c.Path) > longestName {
		return job.Copy{}, &job.Invalid{Field: element + ".path", Problem: "must begin with inputs/ or outputs/, and name a file, or a directory with a slash at its end"}
	}
	if whole {
		c.As = strings.TrimSuffix(c.As, "/")
	} else if c.As == "" {
		c.As = name[strings.LastIndexByte(name, '/')+1:]
	}
	return c, nil
}

// decodePull reads the body of a pull request, as strictly.
func decodePull(body []byte) (m job.Model, addressed string, err error) {
	var sheep text
	var model modelField
	in := &reader{data: body}
	err = in.document(func() error {
		return in.object("", func(field string) error {
			switch field {
			case "sheep_id":
				return sheep.optional(in, field)
			case "model":
				return model.read(in, field)
			}
			return unknown(field)
		})
	})
	if err == nil {
		err = model.complete()
	}
	if err == nil {
		m, err = model.value()
	}
	if err == nil {
		addressed, err = sheep.sheep()
	}
	return m, addressed, err
}

// decodeLoad reads the body of a request to load a model, as strictly.
func decodeLoad(body []byte) (m job.Model, err error) {
	var model modelField
	in := &reader{data: body}
	err = in.document(func() error {
		return in.object("", func(field string) error {
			if field != "model" {
				return unknown(field)
			}
			return model.read(in, field)
		})
	})
	if err == nil {
		err = model.complete()
	}
	if err != nil {
		return job.Model{}, err
	}
	return model.value()
}

// modelField is the field of a request that names a model.
type modelField struct {
	seen          bool
	name, version text
}

func (m *modelField) read(in *reader, field string) error {
	m.seen = true
	return in.object(field, func(field string) error {
		switch field {
		case "model.name":
			return m.name.required(in, field)
		case "model.version":
			return m.version.required(in, field)
		}
		return unknown(field)
	})
}

// complete returns an error that names the field that is missing.
func (m *modelField) complete() error {
	switch {
	case !m.seen:
		return missing("model")
	case !m.name.seen:
		return missing("model.name")
	case !m.version.seen:
		return missing("model.version")
	}
	return nil
}

func (m *modelField) value() (job.Model, error) {
	return checkedModel(job.Model{Name: string(m.name.value), Version: string(m.version.value)})
}

// parseModel reads NAME:VERSION.
func parseModel(text string) (job.Model, error) {
	return checkedModel(job.ParseModel(text))
}

// checkedModel returns the model, or an error that names its invalid field.
func checkedModel(m job.Model) (job.Model, error) {
	if err := (job.Model{Name: m.Name}).Validate(); err != nil {
		return job.Model{}, &job.Invalid{Field: "model.name", Problem: err.Error()}
	}
	if err := m.Validate(); err != nil {
		return job.Model{}, &job.Invalid{Field: "model.version", Problem: err.Error()}
	}
	return m, nil
}

// sheep is the name of the addressed sheep, empty for null.
func (t *text) sheep() (string, error) {
	if t.value != nil && len(t.value) == 0 {
		return "", &job.UnknownSheep{} // an empty name is not "any": null is
	}
	return string(t.value), nil
}

// text is a string field of a request: whether it was seen, and its value, nil
// for null.
type text struct {
	seen  bool
	value []byte
}

func (t *text) required(in *reader, field string) error {
	if in.null() {
		return &job.Invalid{Field: field, Problem: "cannot be null"}
	}
	return t.optional(in, field)
}

func (t *text) optional(in *reader, field string) (err error) {
	t.seen = true
	if in.null() {
		return nil
	}
	t.value, err = in.text(field)
	return err
}

func missing(field string) error {
	return &job.Invalid{Field: field, Problem: "this field is required"}
}

func unknown(field string) error {
	const most = 100 // bytes of a name that are worth repeating
	if len(field) > most {
		field = strings.ToValidUTF8(field[:most], "") + "…"
	}
	return &job.Invalid{Field: field, Problem: "this field is not known"}
}

// invalidJSON returns the error for a body that is not JSON from some position on.
func invalidJSON(at int, format string, args ...any) error {
	return &job.Invalid{Field: "body", Problem: fmt.Sprintf("not valid JSON at byte %d: %s", at, fmt.Sprintf(format, args...))}
}
