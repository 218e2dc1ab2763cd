package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"syscall"
)

// apiError is an error of the OCI distribution specification.
type apiError struct {
	status  int
	code    string
	message string
}

func (e *apiError) Error() string { return e.message }

// with returns the same error with another message.
func (e *apiError) with(format string, args ...any) *apiError {
	return &apiError{e.status, e.code, fmt.Sprintf(format, args...)}
}

// The specification's error codes that are used here.
var (
	errNoRoute         = &apiError{http.StatusNotFound, "NAME_INVALID", "no such route, or not a valid repository name"}
	errMethod          = &apiError{http.StatusMethodNotAllowed, "UNSUPPORTED", "this registry does not support the method here"}
	errDigest          = &apiError{http.StatusBadRequest, "DIGEST_INVALID", ""}
	errBlobUnknown     = &apiError{http.StatusNotFound, "BLOB_UNKNOWN", ""}
	errUploadUnknown   = &apiError{http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "no such upload; it may have been finished, or removed when the registry was restarted"}
	errUploadInvalid   = &apiError{http.StatusBadRequest, "BLOB_UPLOAD_INVALID", ""}
	errRange           = &apiError{http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID", ""}
	errBusy            = &apiError{http.StatusConflict, "BLOB_UPLOAD_INVALID", "another request is adding to this upload"}
	errTag             = &apiError{http.StatusBadRequest, "TAG_INVALID", ""}
	errManifestUnknown = &apiError{http.StatusNotFound, "MANIFEST_UNKNOWN", ""}
	errManifestInvalid = &apiError{http.StatusBadRequest, "MANIFEST_INVALID", ""}
	errManifestSize    = &apiError{http.StatusRequestEntityTooLarge, "MANIFEST_INVALID", "a manifest may have 4 MiB at most"}
	errManifestBlob    = &apiError{http.StatusNotFound, "MANIFEST_BLOB_UNKNOWN", ""}
	errNameUnknown     = &apiError{http.StatusNotFound, "NAME_UNKNOWN", ""}
	errPage            = &apiError{http.StatusBadRequest, "PAGINATION_NUMBER_INVALID", "n is not a number from 1 on"}
	errDiskFull        = &apiError{http.StatusInsufficientStorage, "UNKNOWN", "the registry's disk is full"}
	errInternal        = &apiError{http.StatusInternalServerError, "UNKNOWN", "the registry could not do this; its log says why"}
)

// fail responds with an error. An error that is not an apiError is logged, and the client
// gets a general one.
func (r *Registry) fail(w http.ResponseWriter, req *http.Request, err error) {
	var e *apiError
	switch {
	case errors.As(err, &e):
	case errors.Is(err, syscall.ENOSPC):
		e = errDiskFull
	default:
		e = errInternal
	}
	if e == errInternal || e == errDiskFull {
		r.log.Error("the registry could not answer a request", "method", req.Method, "path", req.URL.Path, "error", err)
	}
	type item struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	body, _ := json.Marshal(map[string][]item{"errors": {{e.code, e.message}}}) // strings cannot fail
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(e.status)
	if req.Method != http.MethodHead {
		w.Write(body)
	}
}

func answerJSON(w http.ResponseWriter, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.Write(body)
	return nil
}
