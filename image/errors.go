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

// failure is an error in words for operators and clients, with the class that
// says whether trying again makes sense. What it came from is part of the words
// and not of the chain: a cause's own class would contradict.
type failure struct {
	message string
	class   error
}

func (f *failure) Error() string { return f.message }
func (f *failure) Unwrap() error { return f.class }

func failf(class error, format string, args ...any) *failure {
	return &failure{message: fmt.Sprintf(format, args...), class: class}
}

// refusal is a registry's or its token server's answer that ends a request.
type refusal struct {
	host     string
	attempts int
	status   int    // 0 when there was no answer
	detail   string // the answer's text or the connection's error
}

func (r *refusal) Error() string {
	said := "answers " + fmt.Sprint(r.status) + " " + http.StatusText(r.status)
	if r.status == 0 {
		said = "cannot be reached"
	}
	if r.detail != "" {
		said += ": " + r.detail
	}
	if r.attempts > 1 {
		said += fmt.Sprintf(" (%d attempts)", r.attempts)
	}
	return r.host + " " + said
}

// explain turns what a pull of r ended with into words. Errors of ctx stay as
// they are.
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
		return failf(errdefs.ErrFailedPrecondition, "the certificate of %s is signed by an authority unknown here; name the authority's certificate in registry.ca_file", registry)
	case errors.As(err, &invalid), errors.As(err, &hostname):
		return failf(errdefs.ErrFailedPrecondition, "the certificate of %s is not valid: %v", registry, innermost(err))
	case errors.As(err, &header), errors.Is(err, http.ErrSchemeMismatch):
		return failf(errdefs.ErrFailedPrecondition, "%s does not speak TLS; write http:// in registry.url if that is intended", registry)
	}

	var status remoteerrors.ErrUnexpectedStatus
	if errors.As(err, &status) {
		switch elsewhere := s.elsewhere(status); {
		case elsewhere != "" && !containerderr.TokenRefused(err):
			return failf(errdefs.ErrUnavailable, "%s, where %s sends us for it, answers %s%s; check whether this machine may reach it, and that the clock is right: such addresses expire",
				elsewhere, registry, status.Status, said(status.Body))
		case status.StatusCode == http.StatusUnauthorized, status.StatusCode == http.StatusForbidden:
			return s.denied(strings.Join(errorCodes(status.Body), ", "))
		case status.StatusCode == http.StatusNotFound:
			return failf(errdefs.ErrNotFound, "%s does not have it; check the model's name and version, or push the image", registry)
		case status.StatusCode == http.StatusBadRequest && s.api.Scheme == "http":
			return failf(errdefs.ErrFailedPrecondition, "%s answers %s to plain HTTP; if it speaks TLS, write https:// in registry.url", registry, status.Status)
		case status.StatusCode >= 500:
			return failf(errdefs.ErrUnavailable, "%s answers %s%s", registry, status.Status, said(status.Body))
		}
		return failf(errdefs.ErrFailedPrecondition, "%s answers %s%s", registry, status.Status, said(status.Body))
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
		return failf(errdefs.ErrFailedPrecondition, "%s sends data that is not what the image's manifest promises (%s); push the image again", registry, containerderr.Core(err))
	case errors.Is(err, io.ErrUnexpectedEOF):
		return failf(errdefs.ErrUnavailable, "the connection to %s keeps breaking; what was fetched is kept", registry)
	case containerderr.Away(err):
		return failf(errdefs.ErrUnavailable, "containerd cannot be reached (%v); check whether it is running (systemctl status containerd)", innermost(err))
	case errdefs.IsPermissionDenied(err):
		return failf(errdefs.ErrPermissionDenied, "%v", err)
	case errdefs.IsInvalidArgument(err), errdefs.IsNotImplemented(err), errdefs.IsFailedPrecondition(err):
		return failf(errdefs.ErrFailedPrecondition, "%v", err)
	}
	return failf(errdefs.ErrUnknown, "%v", err)
}

// said is what an answer's body says, for the end of a message.
func said(body []byte) string {
	if text := detail(body); text != "" {
		return ": " + text
	}
	return ""
}

// elsewhere is the host that an answer came from, where that is not the registry
// nor one of its hosts: one that a redirect led to.
func (s *remote) elsewhere(status remoteerrors.ErrUnexpectedStatus) string {
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

// authorizationFailed reports whether a request failed for lack of a token or
// credentials that are good. Some registries answer 400 to a token that expired.
func (s *remote) authorizationFailed(err error) bool {
	var status remoteerrors.ErrUnexpectedStatus
	if errors.As(err, &status) && status.StatusCode == http.StatusBadRequest && s.elsewhere(status) == "" {
		return true
	}
	return errdefs.IsPermissionDenied(s.explanation(err))
}

// storageRefused reports whether a host that a redirect led to refused to send a
// layer, as when the redirect's signature has expired.
func (s *remote) storageRefused(err error) bool {
	var status remoteerrors.ErrUnexpectedStatus
	return errors.As(err, &status) && s.elsewhere(status) != "" && !containerderr.TokenRefused(err)
}

// denied says whose credentials were refused and where they are set.
func (s *remote) denied(said string) *failure {
	if said != "" {
		said = " (" + said + ")"
	}
	reg := s.registry
	switch helper := s.missingHelper(); {
	case reg.Username == "" && helper != "":
		return failf(errdefs.ErrPermissionDenied, "registry %s asks for credentials%s, and %s, which %s names for them, is not installed: install it, or log in without it (docker login %s)",
			s.endpoint.Host, said, helper, reg.DockerConfig, s.endpoint.Host)
	case reg.Username != "":
		return failf(errdefs.ErrPermissionDenied, "registry %s refused user %q%s; check registry.username and registry.password, and that the user may pull this image", s.endpoint.Host, reg.Username, said)
	case reg.DockerConfig != "":
		return failf(errdefs.ErrPermissionDenied, "registry %s refused the credentials of %s%s; log in again (docker login %s)", s.endpoint.Host, reg.DockerConfig, said, s.endpoint.Host)
	}
	return failf(errdefs.ErrPermissionDenied, "registry %s asks for credentials and there are none%s; set registry.username and registry.password, or registry.docker_config", s.endpoint.Host, said)
}

// innermost is the end of an error's chain, which says what happened without
// the URLs around it.
func innermost(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil || strings.TrimSpace(next.Error()) == "" {
			return err
		}
		if errors.Unwrap(next) == nil && isClass(next) {
			return err // the last link is a bare class, which says nothing
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

// detail is the beginning of an answer's body, on one line and harmless to
// print: it comes from outside.
func detail(body []byte) string {
	const most = 200
	text := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return ' '
		}
		return r
	}, string(body[:min(len(body), most)]))
	return strings.TrimSpace(text)
}

// knownCodes are the error codes of the distribution specification and of OAuth
// (RFC 6749) that have to do with credentials.
var knownCodes = []string{
	"UNAUTHORIZED", "DENIED", "UNSUPPORTED", "NAME_UNKNOWN", "NAME_INVALID", "TOOMANYREQUESTS",
	"invalid_request", "invalid_client", "invalid_grant", "invalid_scope", "invalid_token", "unauthorized_client",
	"unsupported_grant_type", "access_denied", "insufficient_scope", "server_error", "temporarily_unavailable",
}

// errorCodes are the known codes in the body of an answer that has to do with
// credentials. All else is left out: it may repeat what was sent.
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
