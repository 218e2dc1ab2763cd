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

// requestError is a failed storage request in words for an operator, with its class.
type requestError struct {
	text  string
	class error
	cause error
	// again says that another try may succeed.
	again bool
	// unsure says that the server may have done what was asked all the same.
	unsure bool
}

func (f *requestError) Error() string   { return f.text }
func (f *requestError) Unwrap() []error { return []error{f.class, f.cause} }

// errStalled is the cause of a request's end when nothing moved for too long.
var errStalled = errors.New("no answer")

// Conditions of a request that did not hold; the callers know what they mean.
var (
	errCondition   = fmt.Errorf("the stored file is not the expected one: %w", errdefs.ErrUnavailable)
	errNoSuchParts = fmt.Errorf("the upload is gone: %w", errdefs.ErrUnavailable)
)

// classify turns what a request ended with into an error of one of the
// contract's classes. ctx is the request's own context, below the caller's.
func (s *Store) classify(caller, ctx context.Context, err error) error {
	var already *requestError
	switch {
	case err == nil:
		return nil
	case caller.Err() != nil:
		return caller.Err()
	case errors.As(err, &already), errdefs.IsInvalidArgument(err), errdefs.IsResourceExhausted(err):
		return err
	case errors.Is(context.Cause(ctx), errStalled):
		return s.unreachable(context.Cause(ctx))
	}
	var answer minio.ErrorResponse
	if errors.As(err, &answer) && answer.Code != "" {
		return s.refused(answer)
	}
	return s.unreachable(err)
}

// refused is the error for what the server answered.
func (s *Store) refused(answer minio.ErrorResponse) error {
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
		return &requestError{text: fmt.Sprintf("storage at %s has no room (%s: %s)", s.url, answer.Code, answer.Message), class: errdefs.ErrResourceExhausted, cause: answer}
	}
	if text := s.refusal(answer); text != "" {
		return &requestError{text: text, class: errdefs.ErrPermissionDenied, cause: answer}
	}
	switch {
	case answer.StatusCode == http.StatusInsufficientStorage:
		return &requestError{text: fmt.Sprintf("storage at %s has no room (%s)", s.url, answer.Code), class: errdefs.ErrResourceExhausted, cause: answer}
	case answer.StatusCode == http.StatusNotFound:
		return &requestError{text: fmt.Sprintf("%q is not in storage", subject), class: storage.ErrNotFound, cause: answer}
	case answer.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return &requestError{text: fmt.Sprintf("the requested range lies outside %q", subject), class: errdefs.ErrOutOfRange, cause: answer}
	case answer.StatusCode == http.StatusNotImplemented:
		return &requestError{text: fmt.Sprintf("storage at %s cannot do what shepherd needs of it (%s: %s)", s.url, answer.Code, answer.Message), class: errdefs.ErrUnavailable, cause: answer}
	case answer.StatusCode/100 == 4 && !passing(answer):
		return &requestError{text: fmt.Sprintf("storage at %s does not accept the request for %q (%s: %s)", s.url, subject, answer.Code, answer.Message), class: errdefs.ErrInvalidArgument, cause: answer}
	}
	return &requestError{
		text:  fmt.Sprintf("storage at %s cannot answer now (%s: %s)", s.url, answer.Code, answer.Message),
		class: errdefs.ErrUnavailable, cause: answer, again: true, unsure: answer.StatusCode >= 500 && answer.StatusCode != http.StatusServiceUnavailable,
	}
}

// passing tells the answers 4xx that another try may not get: the server is
// overloaded, the request was garbled on its way or met another one.
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

// refusal says why the credentials are refused and what to do; empty when that
// is not what answer says.
func (s *Store) refusal(answer minio.ErrorResponse) string {
	head := fmt.Sprintf("storage at %s refuses access key %q: %s", s.url, s.accessKey, answer.Code)
	switch answer.Code {
	case minio.InvalidAccessKeyID, "XAdminUserNotFound": // the latter is versitygw's
		return head + " (it does not know the key): check storage.access_key"
	case minio.SignatureDoesNotMatch:
		return head + " (the secret is wrong): check storage.secret_key"
	case minio.RequestTimeTooSkewed:
		return fmt.Sprintf("storage at %s refuses requests because the clocks differ (%s): it is %s here; set both clocks, for example with NTP",
			s.url, answer.Code, time.Now().UTC().Format(time.RFC3339))
	case minio.AuthorizationHeaderMalformed, minio.InvalidRegion, "PermanentRedirect", "IllegalLocationConstraintException":
		return fmt.Sprintf("storage at %s is in another region (%s: %s): set storage.region", s.url, answer.Code, answer.Message)
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

// unreachable is the error for a request that got no answer.
func (s *Store) unreachable(err error) error {
	f := &requestError{class: errdefs.ErrUnavailable, cause: err, again: true, unsure: true}
	if op := new(net.OpError); errors.As(err, &op) && op.Op == "dial" {
		f.unsure = false // nothing was asked
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
	f.text = fmt.Sprintf("storage at %s is not reachable: %v%s", s.url, shorten(err), hint)
	return f
}

// shorten drops the URL and method that net/http puts before the reason.
func shorten(err error) error {
	if inner := errors.Unwrap(err); inner != nil && strings.Contains(err.Error(), "://") {
		return inner
	}
	return err
}

// localError gives an error of the local file system its class where it has one.
func localError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return fmt.Errorf("%w: %w", err, errdefs.ErrResourceExhausted)
	}
	return err
}
