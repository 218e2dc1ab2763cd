package embedded

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/iterait/shepherd/internal/diskspace"
	"github.com/iterait/shepherd/storage/embedded/internal/folder"
)

// Codes of errors, as described at
// https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html. For a
// full disk S3 has none, and status 507 says it to any HTTP client.
const (
	codeAccessDenied       = "AccessDenied"
	codeBadAuthorization   = "AuthorizationHeaderMalformed"
	codeBadDigest          = "BadDigest"
	codeBadQueryAuth       = "AuthorizationQueryParametersError"
	codeBucketNotEmpty     = "BucketNotEmpty"
	codeBucketOwned        = "BucketAlreadyOwnedByYou"
	codeEntityTooLarge     = "EntityTooLarge"
	codeEntityTooSmall     = "EntityTooSmall"
	codeIncompleteBody     = "IncompleteBody"
	codeInternalError      = "InternalError"
	codeInvalidAccessKey   = "InvalidAccessKeyId"
	codeInvalidArgument    = "InvalidArgument"
	codeInvalidBucketName  = "InvalidBucketName"
	codeInvalidDigest      = "InvalidDigest"
	codeInvalidPart        = "InvalidPart"
	codeInvalidPartNumber  = "InvalidPartNumber"
	codeInvalidPartOrder   = "InvalidPartOrder"
	codeInvalidPolicy      = "InvalidPolicyDocument"
	codeInvalidRange       = "InvalidRange"
	codeInvalidRequest     = "InvalidRequest"
	codeInvalidTag         = "InvalidTag"
	codeInvalidURI         = "InvalidURI"
	codeKeyTooLong         = "KeyTooLongError"
	codeMalformedPOST      = "MalformedPOSTRequest"
	codeMalformedTrailer   = "MalformedTrailerError"
	codeMalformedXML       = "MalformedXML"
	codeMetadataTooLarge   = "MetadataTooLarge"
	codeMethodNotAllowed   = "MethodNotAllowed"
	codeMissingLength      = "MissingContentLength"
	codeNoSuchBucket       = "NoSuchBucket"
	codeNoSuchKey          = "NoSuchKey"
	codeNoSuchUpload       = "NoSuchUpload"
	codeNotImplemented     = "NotImplemented"
	codePayloadMismatch    = "XAmzContentSHA256Mismatch"
	codePreconditionFailed = "PreconditionFailed"
	codeRequestTimeout     = "RequestTimeout"
	codeSignatureMismatch  = "SignatureDoesNotMatch"
	codeStorageFull        = "InsufficientStorage"
	codeTimeSkewed         = "RequestTimeTooSkewed"
)

// apiError is an error as a client sees it.
type apiError struct {
	status    int
	code      string
	message   string
	condition string // that did not hold
}

func (e *apiError) Error() string { return e.code + ": " + e.message }

func newError(status int, code, format string, args ...any) *apiError {
	return &apiError{status: status, code: code, message: fmt.Sprintf(format, args...)}
}

func badRequest(code, format string, args ...any) *apiError {
	return newError(http.StatusBadRequest, code, format, args...)
}

func preconditionFailed(condition string) *apiError {
	e := newError(http.StatusPreconditionFailed, codePreconditionFailed, "At least one of the pre-conditions you specified did not hold.")
	e.condition = condition
	return e
}

func notImplemented(format string, args ...any) *apiError {
	return newError(http.StatusNotImplemented, codeNotImplemented, format, args...)
}

var errNotModified = &apiError{status: http.StatusNotModified, code: "NotModified"}

// errorFor translates an error of the folder or of a body. It returns false for
// one that is the server's own.
func errorFor(err error) (*apiError, bool) {
	var known *apiError
	var low *diskspace.LowError
	switch {
	case errors.As(err, &known):
		return known, true
	case errors.As(err, &low):
		return newError(http.StatusInsufficientStorage, codeStorageFull, "Nothing more is stored: %v.", low), true
	case folder.IsFull(err):
		return newError(http.StatusInsufficientStorage, codeStorageFull,
			"The disk of the storage directory is full; make room on it and try again. What was stored before is intact."), true
	case errors.Is(err, folder.ErrNoBucket):
		return newError(http.StatusNotFound, codeNoSuchBucket, "The specified bucket does not exist."), true
	case errors.Is(err, folder.ErrNoKey):
		return newError(http.StatusNotFound, codeNoSuchKey, "The specified key does not exist."), true
	case errors.Is(err, folder.ErrBucketExists):
		return newError(http.StatusConflict, codeBucketOwned, "Your previous request to create the named bucket succeeded and you already own it."), true
	case errors.Is(err, folder.ErrBucketNotEmpty):
		return newError(http.StatusConflict, codeBucketNotEmpty, "The bucket you tried to delete is not empty."), true
	case errors.Is(err, folder.ErrBadKey):
		return badRequest(codeKeyTooLong, "An object's key has 1 to %d bytes of UTF-8.", folder.MaxKey), true
	case errors.Is(err, folder.ErrShortBody):
		return badRequest(codeIncompleteBody, "The body ended before the announced number of bytes."), true
	case errors.Is(err, folder.ErrNoUpload):
		return newError(http.StatusNotFound, codeNoSuchUpload, "The specified multipart upload does not exist. The upload ID may be invalid, or the upload may have been aborted or completed."), true
	case errors.Is(err, folder.ErrBadPart):
		return badRequest(codeInvalidPart, "One or more of the specified parts could not be found. The part may not have been uploaded, or the specified entity tag may not match the part's entity tag: %v.", err), true
	case errors.Is(err, folder.ErrPartOrder):
		return badRequest(codeInvalidPartOrder, "The list of parts was not in ascending order. Parts must be ordered by part number."), true
	}
	return newError(http.StatusInternalServerError, codeInternalError, "The server could not do it; its log says why."), false
}

// errorXML is the body of an answer that says what went wrong.
type errorXML struct {
	XMLName   xml.Name `xml:"Error"`
	Code      string
	Message   string
	Condition string `xml:",omitempty"`
	Resource  string
	RequestID string `xml:"RequestId"`
}

// writeError answers a request with an error.
func writeError(w http.ResponseWriter, r *http.Request, e *apiError) {
	if e.status == http.StatusNotModified {
		w.WriteHeader(e.status)
		return
	}
	if r.Method == http.MethodHead { // no body may say it
		w.Header().Set("X-Minio-Error-Code", e.code)
		w.Header().Set("X-Minio-Error-Desc", strconv.Quote(e.message))
	}
	_ = writeXMLStatus(w, r, e.status, errorXML{ // it is all strings
		Code: e.code, Message: e.message, Condition: e.condition, Resource: r.URL.Path, RequestID: w.Header().Get(requestIDHeader),
	})
}

// writeXML answers with a document.
func writeXML(w http.ResponseWriter, r *http.Request, document any) error {
	return writeXMLStatus(w, r, http.StatusOK, document)
}

func writeXMLStatus(w http.ResponseWriter, r *http.Request, status int, document any) error {
	body, err := xml.Marshal(document)
	if err != nil {
		return err
	}
	body = append([]byte(xml.Header), bytes.ReplaceAll(body, []byte("&#34;"), []byte("&quot;"))...) // as S3 writes it
	w.Header().Set("Content-Type", "application/xml")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // a client that went away needs no answer
	}
	return nil
}

// readXML reads a request's document.
func readXML(r *request, into any) error {
	body, err := r.readBody()
	if err != nil {
		return err
	}
	if err := xml.Unmarshal(body, into); err != nil {
		return badRequest(codeMalformedXML, "The document in the body cannot be read: %v.", err)
	}
	return nil
}
