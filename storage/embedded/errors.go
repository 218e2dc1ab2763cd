package embedded

import (
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/rclone/gofakes3"

	"github.com/iterait/shepherd/storage/embedded/internal/folder"
)

// Codes that gofakes3 does not know. Those of S3 are described at
// https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html; for a
// full disk S3 has none, and 507 says it to any HTTP client.
const (
	codeAccessDenied      gofakes3.ErrorCode = "AccessDenied"
	codeBadAuthorization  gofakes3.ErrorCode = "AuthorizationHeaderMalformed"
	codeBadQueryAuth      gofakes3.ErrorCode = "AuthorizationQueryParametersError"
	codeBucketOwned       gofakes3.ErrorCode = "BucketAlreadyOwnedByYou"
	codeInvalidAccessKey  gofakes3.ErrorCode = "InvalidAccessKeyId"
	codeSignatureMismatch gofakes3.ErrorCode = "SignatureDoesNotMatch"
	codePayloadMismatch   gofakes3.ErrorCode = "XAmzContentSHA256Mismatch"
	codeStorageFull       gofakes3.ErrorCode = "InsufficientStorage"
	codeRequestTimeout    gofakes3.ErrorCode = "RequestTimeout"
)

// fault is an error as a client sees it. gofakes3 writes it as any of its own,
// except that it answers 500 for a code it does not know; exchange puts the
// right status in.
type fault struct {
	gofakes3.ErrorResponse
	status int
}

func newFault(status int, code gofakes3.ErrorCode, format string, args ...any) *fault {
	return &fault{
		ErrorResponse: gofakes3.ErrorResponse{Code: code, Message: fmt.Sprintf(format, args...)},
		status:        status,
	}
}

// faultOf translates an error of the folder or of a body. It answers false for
// one that is the server's own trouble.
func faultOf(err error) (*fault, bool) {
	var f *fault
	var known *gofakes3.ErrorResponse
	var code gofakes3.ErrorCode
	var internal gofakes3.InternalErrorCode
	switch {
	case errors.As(err, &f):
		return f, true
	case errors.As(err, &known):
		return &fault{ErrorResponse: *known, status: known.Code.Status()}, true
	case errors.As(err, &internal):
		return serverFault(), false
	case errors.As(err, &code):
		return newFault(code.Status(), code, "%s", messageOf(code)), true
	case folder.IsFull(err):
		return newFault(http.StatusInsufficientStorage, codeStorageFull,
			"The disk of the storage directory is full; make room on it and try again. What was stored before is intact."), true
	case errors.Is(err, folder.ErrNoBucket):
		return newFault(http.StatusNotFound, gofakes3.ErrNoSuchBucket, "The specified bucket does not exist."), true
	case errors.Is(err, folder.ErrNoKey):
		return newFault(http.StatusNotFound, gofakes3.ErrNoSuchKey, "The specified key does not exist."), true
	case errors.Is(err, folder.ErrBucketExists):
		return newFault(http.StatusConflict, codeBucketOwned, "The bucket exists already, and it is yours."), true
	case errors.Is(err, folder.ErrBucketNotEmpty):
		return newFault(http.StatusConflict, gofakes3.ErrBucketNotEmpty, "The bucket is not empty; delete its objects first."), true
	case errors.Is(err, folder.ErrBadKey):
		return newFault(http.StatusBadRequest, gofakes3.ErrInvalidArgument, "An object's key has 1 to %d bytes of UTF-8.", folder.MaxKey), true
	case errors.Is(err, folder.ErrShortBody):
		return newFault(http.StatusBadRequest, gofakes3.ErrIncompleteBody, "The body ended before the announced number of bytes."), true
	case errors.Is(err, folder.ErrNoUpload):
		return newFault(http.StatusNotFound, gofakes3.ErrNoSuchUpload, "The upload does not exist; it may have been completed, aborted or given up."), true
	case errors.Is(err, folder.ErrBadPart):
		return newFault(http.StatusBadRequest, gofakes3.ErrInvalidPart, "A part was not uploaded, or with another ETag: %v.", err), true
	case errors.Is(err, folder.ErrPartOrder):
		return newFault(http.StatusBadRequest, gofakes3.ErrInvalidPartOrder, "The parts are not in ascending order."), true
	}
	return serverFault(), false
}

func serverFault() *fault {
	return newFault(http.StatusInternalServerError, gofakes3.ErrInternal,
		"The server could not do it; its log says why.")
}

func messageOf(code gofakes3.ErrorCode) string {
	if m := code.Message(); m != "" {
		return m
	}
	if code == gofakes3.ErrPreconditionFailed {
		return "A condition of the request does not hold."
	}
	return string(code)
}

// errorXML is the body of an answer that says what went wrong.
type errorXML struct {
	XMLName   xml.Name `xml:"Error"`
	Code      string
	Message   string
	Resource  string
	RequestID string `xml:"RequestId"`
}

// writeFault answers a request that gofakes3 has no part in.
func writeFault(w http.ResponseWriter, r *http.Request, f *fault) {
	body, err := xml.Marshal(errorXML{
		Code:      string(f.Code),
		Message:   f.Message,
		Resource:  r.URL.Path,
		RequestID: w.Header().Get(requestIDHeader),
	})
	if err != nil { // cannot be: it is all strings
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	if r.Method == http.MethodHead { // no body may say it
		w.Header().Set("X-Minio-Error-Code", string(f.Code))
		w.Header().Set("X-Minio-Error-Desc", strconv.Quote(f.Message))
	}
	writeXMLBytes(w, r, f.status, body)
}

// writeXML answers with a document.
func writeXML(w http.ResponseWriter, r *http.Request, document any) error {
	body, err := xml.Marshal(document)
	if err != nil {
		return err
	}
	writeXMLBytes(w, r, http.StatusOK, body)
	return nil
}

func writeXMLBytes(w http.ResponseWriter, r *http.Request, status int, body []byte) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		// A client that went away needs no answer.
		_, _ = w.Write(append([]byte(xml.Header), body...))
	}
}
