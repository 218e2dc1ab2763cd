package image

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"

	"github.com/iterait/shepherd/image/containerderr"
)

// failure is an error with a message for operators and clients, and a class by which
// the caller decides whether to retry. The message includes the cause, which is not
// wrapped because its own class could differ.
type failure struct {
	message string
	class   error
}

func (f *failure) Error() string { return f.message }
func (f *failure) Unwrap() error { return f.class }

func failf(class error, format string, args ...any) *failure {
	return &failure{message: fmt.Sprintf(format, args...), class: class}
}

// refusal is the error of a request to a registry or token server after the last
// attempt.
type refusal struct {
	host     string
	attempts int
	status   int    // of the last response; 0 without one
	detail   string // the response's text or the connection's error
}

func (r *refusal) Error() string {
	text := "answers " + fmt.Sprint(r.status) + " " + http.StatusText(r.status)
	if r.status == 0 {
		text = "cannot be reached"
	}
	if r.detail != "" {
		text += ": " + r.detail
	}
	if r.attempts > 1 {
		text += fmt.Sprintf(" (%d attempts)", r.attempts)
	}
	return r.host + " " + text
}

// explain turns the error of a pull of r into a failure with a message for people.
// Where ctx has ended it wraps ctx's cause instead.
func (s *remote) explain(ctx context.Context, r ref, err error) error {
	if err == nil {
		return nil
	}
	var known *failure
	if errors.As(err, &known) {
		return &failure{message: fmt.Sprintf("image %s: %s", r, known.message), class: known.class}
	}
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("pull image %s: %w", r, cause)
	}
	f := s.explanation(err)
	f.message = fmt.Sprintf("image %s: %s", r, f.message)
	return f
}

func (s *remote) explanation(err error) *failure {
	registry := "registry " + s.endpoint.Host

	var refused *refusal
	if errors.As(err, &refused) {
		where := "registry"
		if refused.host != s.endpoint.Host {
			where = "host"
		}
		if refused.status == http.StatusTooManyRequests {
			return failf(errdefs.ErrUnavailable, "%s %v: it limits how often it is asked; try again later, or with credentials, which may raise the limit", where, refused)
		}
		return failf(errdefs.ErrUnavailable, "%s %v; check registry.url and whether it is up", where, refused)
	}
	var (
		authority x509.UnknownAuthorityError
		invalid   x509.CertificateInvalidError
		hostname  x509.HostnameError
		header    tls.RecordHeaderError
	)
	switch {
	case errors.As(err, &authority):
		return failf(errdefs.ErrFailedPrecondition, "the certificate of %s is signed by an unknown authority; set registry.ca_file to the authority's certificate", registry)
	case errors.As(err, &invalid), errors.As(err, &hostname):
		return failf(errdefs.ErrFailedPrecondition, "the certificate of %s is not valid: %v", registry, innermost(err))
	case errors.As(err, &header), errors.Is(err, http.ErrSchemeMismatch):
		return failf(errdefs.ErrFailedPrecondition, "%s does not speak TLS; write http:// in registry.url if that is intended", registry)
	}

	var status remoteerrors.ErrUnexpectedStatus
	if errors.As(err, &status) {
		switch redirected := s.redirectHost(status); {
		case redirected != "" && !containerderr.TokenRefused(err):
			return failf(errdefs.ErrUnavailable, "%s, to which %s redirects for it, answers %s%s; check whether this machine may reach it, and that the clock is right: such addresses expire",
				redirected, registry, status.Status, bodySuffix(status.Body))
		case status.StatusCode == http.StatusUnauthorized, status.StatusCode == http.StatusForbidden:
			return s.denied(strings.Join(errorCodes(status.Body), ", "))
		case status.StatusCode == http.StatusNotFound:
			return failf(errdefs.ErrNotFound, "%s does not have it; check the model's name and version, or push the image", registry)
		case status.StatusCode == http.StatusBadRequest && s.api.Scheme == "http":
			return failf(errdefs.ErrFailedPrecondition, "%s answers %s to plain HTTP; if it speaks TLS, write https:// in registry.url", registry, status.Status)
		case status.StatusCode >= 500:
			return failf(errdefs.ErrUnavailable, "%s answers %s%s", registry, status.Status, bodySuffix(status.Body))
		}
		return failf(errdefs.ErrFailedPrecondition, "%s answers %s%s", registry, status.Status, bodySuffix(status.Body))
	}
	switch {
	case errors.Is(err, docker.ErrInvalidAuthorization):
		return s.denied("")
	case containerderr.DiskFull(err):
		return failf(errdefs.ErrResourceExhausted, "the disk that containerd keeps images on is full; remove images (shepherdd models rm) or set a smaller images budget")
	case containerderr.SchemaOne(err):
		return schemaOne()
	case containerderr.NoPlatform(err):
		return failf(errdefs.ErrNotFound, "it has no variant for this machine (%s); build it for this platform", s.platform)
	case errdefs.IsNotFound(err):
		return failf(errdefs.ErrNotFound, "%s does not have it; check the model's name and version, or push the image", registry)
	case containerderr.WrongContent(err):
		return failf(errdefs.ErrFailedPrecondition, "%s sends data that does not match the image's manifest (%s); push the image again", registry, containerderr.Core(err))
	case errors.Is(err, io.ErrUnexpectedEOF):
		return failf(errdefs.ErrUnavailable, "the connection to %s keeps breaking; what was fetched is kept", registry)
	case containerderr.Unreachable(err):
		return failf(errdefs.ErrUnavailable, "containerd cannot be reached (%v); check whether it is running (systemctl status containerd)", innermost(err))
	case errdefs.IsPermissionDenied(err):
		return failf(errdefs.ErrPermissionDenied, "%v", err)
	case errdefs.IsInvalidArgument(err), errdefs.IsNotImplemented(err), errdefs.IsFailedPrecondition(err):
		return failf(errdefs.ErrFailedPrecondition, "%v", err)
	}
	return failf(errdefs.ErrUnknown, "%v", err)
}

// bodySuffix formats a response's body to be appended to a message.
func bodySuffix(body []byte) string {
	if text := excerpt(body); text != "" {
		return ": " + text
	}
	return ""
}

// redirectHost returns the host that sent a response if a redirect led to it, and ""
// if it is the registry or one of its mirrors.
func (s *remote) redirectHost(status remoteerrors.ErrUnexpectedStatus) string {
	u, err := url.Parse(status.RequestURL)
	if err != nil || u.Host == "" || u.Host == s.api.Host || u.Host == s.endpoint.Host {
		return ""
	}
	s.auth.mu.Lock()
	defer s.auth.mu.Unlock()
	if s.auth.hosts[u.Host] {
		return ""
	}
	return u.Host
}

// authorizationFailed reports whether a request failed because its token or
// credentials were missing or refused. Some registries answer 400 to an expired token.
func (s *remote) authorizationFailed(err error) bool {
	var status remoteerrors.ErrUnexpectedStatus
	if errors.As(err, &status) && status.StatusCode == http.StatusBadRequest && s.redirectHost(status) == "" {
		return true
	}
	return errdefs.IsPermissionDenied(s.explanation(err))
}

// storageRefused reports whether a host that a redirect led to refused to send a
// layer, for example because the redirect's signature had expired.
func (s *remote) storageRefused(err error) bool {
	var status remoteerrors.ErrUnexpectedStatus
	return errors.As(err, &status) && s.redirectHost(status) != "" && !containerderr.TokenRefused(err)
}

// denied explains which credentials were refused, and where they are configured.
// codes are the error codes of the response.
func (s *remote) denied(codes string) *failure {
	if codes != "" {
		codes = " (" + codes + ")"
	}
	reg := s.registry
	switch helper := s.missingHelper(); {
	case reg.Username == "" && helper != "":
		return failf(errdefs.ErrPermissionDenied, "registry %s asks for credentials%s, and %s, the credential helper in %s, is not installed: install it, or log in without it (docker login %s)",
			s.endpoint.Host, codes, helper, reg.DockerConfig, s.endpoint.Host)
	case reg.Username != "":
		return failf(errdefs.ErrPermissionDenied, "registry %s refused user %q%s; check registry.username and registry.password, and that the user may pull this image", s.endpoint.Host, reg.Username, codes)
	case reg.DockerConfig != "":
		return failf(errdefs.ErrPermissionDenied, "registry %s refused the credentials of %s%s; log in again (docker login %s)", s.endpoint.Host, reg.DockerConfig, codes, s.endpoint.Host)
	}
	return failf(errdefs.ErrPermissionDenied, "registry %s asks for credentials and none are configured%s; set registry.username and registry.password, or registry.docker_config", s.endpoint.Host, codes)
}

// innermost returns the last error of a chain that has a text of its own. It says
// what happened without the URLs that outer errors add.
func innermost(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil || strings.TrimSpace(next.Error()) == "" {
			return err
		}
		if errors.Unwrap(next) == nil && isClass(next) {
			return err // next is a bare class
		}
		err = next
	}
}

func isClass(err error) bool {
	for _, class := range []error{errdefs.ErrUnavailable, errdefs.ErrNotFound, errdefs.ErrFailedPrecondition, errdefs.ErrInvalidArgument, errdefs.ErrPermissionDenied} {
		if err == class {
			return true
		}
	}
	return false
}

// excerpt returns the first 200 bytes of a foreign text in one line, without control
// characters.
func excerpt(body []byte) string {
	const limit = 200
	text := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return ' '
		}
		return r
	}, string(body[:min(len(body), limit)]))
	return strings.TrimSpace(text)
}

// knownCodes are error codes of the OCI distribution specification and of OAuth
// (RFC 6749) that concern credentials.
var knownCodes = []string{
	"UNAUTHORIZED", "DENIED", "UNSUPPORTED", "NAME_UNKNOWN", "NAME_INVALID", "TOOMANYREQUESTS",
	"invalid_request", "invalid_client", "invalid_grant", "invalid_scope", "invalid_token", "unauthorized_client",
	"unsupported_grant_type", "access_denied", "insufficient_scope", "server_error", "temporarily_unavailable",
}

// errorCodes returns the known codes in the body of a response to a request with
// credentials. The rest of the body is dropped, because it may repeat the credentials.
func errorCodes(body []byte) (codes []string) {
	var answer struct {
		Error  string `json:"error"`
		Errors []struct {
			Code string `json:"code"`
		} `json:"errors"`
	}
	if json.Unmarshal(body, &answer) != nil {
		return nil
	}
	for _, e := range answer.Errors {
		codes = append(codes, e.Code)
	}
	codes = append(codes, answer.Error)
	codes = slices.DeleteFunc(codes, func(c string) bool { return !slices.Contains(knownCodes, c) })
	return slices.Compact(codes[:min(len(codes), 5)])
}
