package api

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"net/http"
	"strings"

	"github.com/iterait/shepherd/job"
)

const problemType = "application/problem+json; charset=utf-8"

// problemPrefix begins the type of a problem; its class's name follows.
const problemPrefix = "urn:shepherd:problem:"

// requestIDHeader names a request, in its answer and in the log.
const requestIDHeader = "X-Request-Id"

// maxRequestID bounds the ids of requests that clients choose, in bytes.
const maxRequestID = 128

type requestIDKey struct{}

// withRequestID gives the request an id, its own or a new one, and tells its client.
func withRequestID(w http.ResponseWriter, r *http.Request) *http.Request {
	id := r.Header.Get(requestIDHeader)
	if !isRequestID(id) {
		id = newRequestID()
	}
	w.Header().Set(requestIDHeader, id)
	return r.WithContext(context.WithValue(r.Context(), requestIDKey{}, id))
}

// isRequestID reports whether a client's id can be taken into the log as it is.
func isRequestID(id string) bool {
	if id == "" || len(id) > maxRequestID {
		return false
	}
	for i := range len(id) {
		c := id[i]
		if !digit(c) && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && !strings.ContainsRune("-_.:/+=", rune(c)) {
			return false
		}
	}
	return true
}

func newRequestID() string {
	var random [16]byte
	_, _ = rand.Read(random[:]) // never fails
	return hex.EncodeToString(random[:])
}

// requestID is the id of the request that ctx belongs to.
func requestID(ctx context.Context) string {
	id, _ := ctx.Value(requestIDKey{}).(string)
	return id
}

// wantsProblem reports whether errors of the request are answered as problems: those
// of the job API, and where the client asks for them.
func wantsProblem(r *http.Request) bool {
	return needOf(r).job || strings.Contains(strings.ToLower(strings.Join(r.Header.Values("Accept"), ",")), "application/problem+json")
}

// problem is an error of class c as RFC 9457 has it.
func problem(r *http.Request, c class, err error, message string, cause *string) Problem {
	p := Problem{
		Type: problemPrefix + c.name, Title: http.StatusText(c.status), Status: c.status,
		Detail: message, Message: message, RequestId: requestID(r.Context()), Cause: cause,
	}
	if invalid, ok := asError[*job.Invalid](err); ok {
		field := invalid.Field
		if item, ok := asError[*job.ItemError](err); ok {
			field = item.Field(field)
		}
		p.Field = orNull(bounded(field))
	}
	return p
}
