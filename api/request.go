package api

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
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
	var request job.Request
	var id, sheep, payload text
	var model modelField

	in := &reader{data: body}
	err := in.document(func() error {
		return in.object("", func(field string) error {
			switch field {
			case "job_id":
				return id.required(in, field)
			case "sheep_id":
				return sheep.optional(in, field)
			case "payload":
				return payload.optional(in, field)
			case "model":
				return model.read(in, field)
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
			return unknown(field)
		})
	})
	if err != nil {
		return job.Request{}, err
	}
	if !id.seen {
		return job.Request{}, missing("job_id")
	}
	if err := model.complete(); err != nil {
		return job.Request{}, err
	}

	request.ID, err = job.ParseID(string(id.value))
	if err != nil {
		return job.Request{}, &job.Invalid{Field: "job_id", Problem: err.Error()}
	}
	if request.Model, err = model.value(); err != nil {
		return job.Request{}, err
	}
	if request.Sheep, err = sheep.sheep(); err != nil {
		return job.Request{}, err
	}
	if len(payload.value) > 0 {
		request.Payload = payload.value
	}
	if wrong := request.Limits.Validate(); len(wrong) > 0 {
		return job.Request{}, wrong[0]
	}
	if request.Keep != nil && (*request.Keep < 0 || *request.Keep > job.MaxKeep) {
		return job.Request{}, &job.Invalid{Field: "keep", Problem: "must lie between 0, which is for ever, and a hundred years"}
	}
	if !request.Deadline.IsZero() && !request.Deadline.After(request.NotBefore) {
		return job.Request{}, &job.Invalid{Field: "deadline", Problem: "must be later than not_before"}
	}
	return request, nil
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
