package s3

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/minio/minio-go/v7"
	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/storage"
)

// requestError is the error of a failed storage request: a text for the operator and
// the class.
type requestError struct {
	text  string
	class error
	cause error
	// again says that another try may succeed.
	again bool
	// unsure says that the server may have carried out the request nevertheless.
	unsure bool
}

func (f *requestError) Error() string   { return f.text }
func (f *requestError) Unwrap() []error { return []error{f.class, f.cause} }

// errStalled is the cause with which a watch ends a request.
var errStalled = errors.New("no answer")

// A condition of a request did not hold; callers give these their meaning.
var (
	errCondition   = fmt.Errorf("the stored file is not the expected one: %w", errdefs.ErrUnavailable)
	errNoSuchParts = fmt.Errorf("the upload is gone: %w", errdefs.ErrUnavailable)
)

// classify gives the error of a request one of the classes of storage.Store. ctx is the
// request's own context, a child of the caller's.
func (r *requester) classify(caller, ctx context.Context, err error) error {
	var already *requestError
	switch {
	case err == nil:
		return nil
	case caller.Err() != nil:
		return caller.Err()
	case errors.As(err, &already), errdefs.IsInvalidArgument(err), errdefs.IsResourceExhausted(err):
		return err
	case errors.Is(context.Cause(ctx), errStalled):
		return r.unreachable(context.Cause(ctx))
	}
	var answer minio.ErrorResponse
	if errors.As(err, &answer) && answer.Code != "" {
		return r.refused(answer)
	}
	return r.unreachable(err)
}

// refused returns the error for an answer of the server.
func (r *requester) refused(answer minio.ErrorResponse) error {
	subject := answer.Key
	if subject == "" {
		subject = answer.BucketName
	}
	if answer.Code == minio.NoSuchBucket && subject == "" { // not all servers say which
		return &requestError{text: "the bucket is not in storage", class: storage.ErrNotFound, cause: answer}
	}
	switch answer.Code {
	case minio.NoSuchKey, minio.NoSuchBucket, "NotFound", "NoSuchObject":
		return &requestError{text: fmt.Sprintf("%q is not in storage", subject), class: storage.ErrNotFound, cause: answer}
	case minio.BucketAlreadyOwnedByYou, minio.BucketAlreadyExists:
		return &requestError{text: fmt.Sprintf("bucket %q is there already", subject), class: storage.ErrExists, cause: answer}
	case minio.PreconditionFailed:
		return &requestError{text: errCondition.Error(), class: errCondition, cause: answer}
	case minio.NoSuchUpload:
		return &requestError{text: errNoSuchParts.Error(), class: errNoSuchParts, cause: answer}
	case minio.InvalidRange:
		return &requestError{text: fmt.Sprintf("the requested range lies outside %q", subject), class: errdefs.ErrOutOfRange, cause: answer}
	case minio.InvalidBucketName, minio.XMinioInvalidObjectName, "InvalidObjectName", "KeyTooLongError", "XMinioInvalidResourceName", "InvalidURI":
		return &requestError{text: fmt.Sprintf("storage does not allow the name %q (%s)", subject, answer.Code), class: storage.ErrBadName, cause: answer}
	case minio.EntityTooLarge, "XMinioStorageFull", "QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "TooManyBuckets":
		return &requestError{text: fmt.Sprintf("storage at %s has no room (%s: %s)", r.url, answer.Code, answer.Message), class: errdefs.ErrResourceExhausted, cause: answer}
	}
	if text := r.refusal(answer); text != "" {
		return &requestError{text: text, class: errdefs.ErrPermissionDenied, cause: answer}
	}
	switch {
	case answer.StatusCode == http.StatusInsufficientStorage:
		return &requestError{text: fmt.Sprintf("storage at %s has no room (%s)", r.url, answer.Code), class: errdefs.ErrResourceExhausted, cause: answer}
	case answer.StatusCode == http.StatusNotFound:
		return &requestError{text: fmt.Sprintf("%q is not in storage", subject), class: storage.ErrNotFound, cause: answer}
	case answer.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return &requestError{text: fmt.Sprintf("the requested range lies outside %q", subject), class: errdefs.ErrOutOfRange, cause: answer}
	case answer.StatusCode == http.StatusNotImplemented:
		return &requestError{text: fmt.Sprintf("storage at %s cannot do what shepherd needs of it (%s: %s)", r.url, answer.Code, answer.Message), class: errdefs.ErrUnavailable, cause: answer}
	case answer.StatusCode/100 == 4 && !passing(answer):
		return &requestError{text: fmt.Sprintf("storage at %s does not accept the request for %q (%s: %s)", r.url, subject, answer.Code, answer.Message), class: errdefs.ErrInvalidArgument, cause: answer}
	}
	return &requestError{
		text:  fmt.Sprintf("storage at %s cannot answer now (%s: %s)", r.url, answer.Code, answer.Message),
		class: errdefs.ErrUnavailable, cause: answer, again: true, unsure: answer.StatusCode >= 500 && answer.StatusCode != http.StatusServiceUnavailable,
	}
}

// passing reports whether an answer 4xx is temporary: the server is overloaded, the
// request was damaged on its way or conflicted with another one.
func passing(answer minio.ErrorResponse) bool {
	switch answer.StatusCode {
	case http.StatusRequestTimeout, http.StatusConflict, http.StatusTooEarly, http.StatusTooManyRequests, 499:
		return true
	}
	switch answer.Code {
	case minio.BadDigest, minio.InvalidDigest, minio.IncompleteBody, minio.XAmzContentSHA256Mismatch, "RequestTimeout", "IncompleteSignature":
		return true
	}
	return false
}

// refusal returns why the credentials are refused and what to do; empty for an answer
// that does not refuse them.
func (r *requester) refusal(answer minio.ErrorResponse) string {
	head := fmt.Sprintf("storage at %s refuses access key %q: %s", r.url, r.accessKey, answer.Code)
	switch answer.Code {
	case minio.InvalidAccessKeyID, "XAdminUserNotFound": // the latter is versitygw's
		return head + " (it does not know the key): check storage.access_key"
	case minio.SignatureDoesNotMatch:
		return head + " (the secret is wrong): check storage.secret_key"
	case minio.RequestTimeTooSkewed:
		return fmt.Sprintf("storage at %s refuses requests because the clocks differ (%s): it is %s here; set both clocks, for example with NTP",
			r.url, answer.Code, time.Now().UTC().Format(time.RFC3339))
	case minio.AuthorizationHeaderMalformed, minio.InvalidRegion, "PermanentRedirect", "IllegalLocationConstraintException":
		return fmt.Sprintf("storage at %s is in another region (%s: %s): set storage.region", r.url, answer.Code, answer.Message)
	case minio.AccessDenied, minio.AllAccessDisabled, "AccountProblem":
		return head + ": give the key the right to make buckets and to list, read, write and delete what is in them"
	case "ExpiredToken", "InvalidToken":
		return head + ": get new credentials"
	}
	if answer.StatusCode == http.StatusForbidden || answer.StatusCode == http.StatusUnauthorized {
		return head + ": check storage.access_key and storage.secret_key"
	}
	return ""
}

// unreachable returns the error for a request that got no answer.
func (r *requester) unreachable(err error) error {
	f := &requestError{class: errdefs.ErrUnavailable, cause: err, again: true, unsure: true}
	if op := new(net.OpError); errors.As(err, &op) && op.Op == "dial" {
		f.unsure = false // no request was sent
	}
	hint := ""
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var header tls.RecordHeaderError
	switch {
	case errors.As(err, &unknown), errors.As(err, &host), errors.As(err, &invalid):
		hint, f.again = "; its certificate is not one this machine trusts: name the one that signed it in storage.ca_file", false
	case errors.As(err, &header), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		hint, f.again = "; it does not speak TLS: write http:// in storage.url", false
	}
	f.text = fmt.Sprintf("storage at %s is not reachable: %v%s", r.url, shorten(err), hint)
	return f
}

// shorten removes the method and URL that net/http puts before the reason.
func shorten(err error) error {
	if inner := errors.Unwrap(err); inner != nil && strings.Contains(err.Error(), "://") {
		return inner
	}
	return err
}

// localError gives an error of the local file system its class, if it has one.
func localError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return fmt.Errorf("%w: %w", err, errdefs.ErrResourceExhausted)
	}
	return err
}
