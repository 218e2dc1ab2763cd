package image

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// retryPolicy says how requests to a registry are retried.
type retryPolicy struct {
	attempts int           // per request, the first included
	first    time.Duration // pause before the second attempt; it doubles for each further one
	maxPause time.Duration // the longest pause between two attempts, Retry-After included
	stall    time.Duration // a connection that transfers nothing for so long is broken
}

// patient outlasts a registry's restart; brief is for when there is a local image to
// use instead; tokens is for a token server, which is asked while a request to the
// registry waits.
var (
	patient = retryPolicy{attempts: 8, first: 200 * time.Millisecond, maxPause: 30 * time.Second, stall: 60 * time.Second}
	brief   = retryPolicy{attempts: 2, first: 200 * time.Millisecond, maxPause: 2 * time.Second, stall: 10 * time.Second}
	tokens  = retryPolicy{attempts: 3, first: 200 * time.Millisecond, maxPause: 5 * time.Second, stall: 10 * time.Second}
)

// within returns the lower of the two policies' values.
func (r retryPolicy) within(bound retryPolicy) retryPolicy {
	return retryPolicy{
		attempts: min(r.attempts, bound.attempts), first: min(r.first, bound.first),
		maxPause: min(r.maxPause, bound.maxPause), stall: min(r.stall, bound.stall),
	}
}

// newTransport makes the transport for requests to the registry.
func newTransport(caFile string) (*http.Transport, error) {
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 30 * time.Second,
		IdleConnTimeout:       60 * time.Second,
		MaxIdleConnsPerHost:   16,
		ForceAttemptHTTP2:     true,
		// All requests to a host share one HTTP/2 connection. Without pings, retries would
		// use it until TCP gives it up, a quarter of an hour after the network has lost it.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second},
	}
	if caFile == "" {
		return t, nil
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("registry.ca_file: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("registry.ca_file: %s holds no certificate in PEM form", caFile)
	}
	t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	return t, nil
}

// retryTransport retries requests after errors that may pass: connection errors, 408,
// 429 and most 5xx. After the last attempt it returns a *refusal, which its callers do
// not retry.
//
// It sends credentials only to the host for which they are: a request that was
// redirected to another host, port or scheme is sent without them. And it removes them
// from the bodies of error responses.
type retryTransport struct {
	base http.RoundTripper
	retryPolicy
	observe Observer // may be nil
	tokens  bool     // for token servers, which are sent credentials
}

func (p *retryTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	for attempt := 1; ; attempt++ {
		// Each attempt has a context of its own, by which a stalled body is
		// cancelled.
		ctx, cancel := context.WithCancel(req.Context())
		again := req.Clone(ctx)
		if first := original(req).URL; first.Host != req.URL.Host || first.Scheme != req.URL.Scheme {
			again.Header.Del("Authorization")
		}
		if attempt > 1 && req.GetBody != nil {
			body, err := req.GetBody()
			if err != nil {
				cancel()
				return nil, err
			}
			again.Body = body
		}
		sent := time.Now()
		resp, err := p.base.RoundTrip(again)
		if p.observe != nil {
			p.observe(requestKind(req), time.Since(sent), responseError(resp, err))
		}
		if err == nil && resp.StatusCode == http.StatusSwitchingProtocols {
			resp.Body.Close() // no context would end a read of it
			resp.Body = http.NoBody
		}
		if err != nil {
			cancel()
		} else { // also for the bodies that are read here
			resp.Body = newStallGuard(resp.Body, req.Context().Err, cancel, p.stall)
		}
		if err == nil && p.tokens {
			err = tokenResponse(req, resp)
		}
		if err == nil && !isTransient(resp.StatusCode) {
			if resp.StatusCode >= http.StatusBadRequest {
				resp.Body = p.withoutSecrets(again, resp.Body)
			}
			return resp, nil
		}
		refused := &refusal{host: req.URL.Host, attempts: attempt}
		wait := p.pause(attempt)
		if err != nil {
			if req.Context().Err() != nil || permanent(err) {
				return nil, err
			}
			refused.detail = err.Error()
		} else {
			refused.status = resp.StatusCode
			text, _ := io.ReadAll(p.withoutSecrets(again, resp.Body))
			refused.detail = excerpt(text)
			wait = max(wait, retryAfter(resp.Header))
		}
		if attempt >= p.attempts || req.Body != nil && req.GetBody == nil {
			return nil, refused
		}
		timer := time.NewTimer(min(wait, p.maxPause))
		select {
		case <-timer.C:
		case <-req.Context().Done():
			timer.Stop()
			return nil, req.Context().Err()
		}
	}
}

// original returns the request from which redirects led to req.
func original(req *http.Request) *http.Request {
	for req.Response != nil {
		req = req.Response.Request
	}
	return req
}

// maxErrorBody is how many bytes of an error response's body are read.
const maxErrorBody = 64 << 10

// withoutSecrets returns the body of an error response without credentials. The body of
// a token server is reduced to error codes: the server was sent credentials in several
// forms and could repeat any of them. From other bodies the request's own credentials
// are removed.
func (p *retryTransport) withoutSecrets(req *http.Request, body io.ReadCloser) io.ReadCloser {
	text, _ := io.ReadAll(io.LimitReader(body, maxErrorBody))
	body.Close()
	if p.tokens {
		var kept []byte
		if codes := errorCodes(text); len(codes) > 0 {
			kept = fmt.Appendf(nil, `{"errors":[{"code":%q}]}`, codes[0])
		}
		return io.NopCloser(bytes.NewReader(kept))
	}
	_, credentials, _ := strings.Cut(req.Header.Get("Authorization"), " ")
	secrets := []string{credentials}
	if _, password, ok := req.BasicAuth(); ok {
		secrets = append(secrets, password)
	}
	for _, secret := range secrets {
		if secret != "" {
			text = bytes.ReplaceAll(text, []byte(secret), []byte("***"))
		}
	}
	return io.NopCloser(bytes.NewReader(text))
}

// pause returns how long to wait after an attempt, with 25 % jitter so that clients
// that failed together do not retry together.
func (p *retryTransport) pause(attempt int) time.Duration {
	d := min(p.first<<min(attempt-1, 20), p.maxPause)
	return d*3/4 + rand.N(d/2+1)
}

// isTransient reports whether a request with this status is worth a retry.
func isTransient(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// retryAfter parses the Retry-After header: seconds or a date.
func retryAfter(h http.Header) time.Duration {
	value := h.Get("Retry-After")
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return time.Until(at)
	}
	return 0
}

// permanent reports whether an error comes from the registry's TLS configuration and
// not from its being unreachable.
func permanent(err error) bool {
	var (
		verification *tls.CertificateVerificationError
		header       tls.RecordHeaderError
	)
	return errors.As(err, &verification) || errors.As(err, &header) || errors.Is(err, http.ErrSchemeMismatch)
}

// stallGuard is a response's body. If the connection breaks or stalls, Read returns
// io.ErrUnexpectedEOF, after which containerd's fetcher continues with a range request.
type stallGuard struct {
	io.ReadCloser
	ended  func() error // the error of the request's own context
	cancel context.CancelFunc
	timer  *time.Timer
	stall  time.Duration
}

func newStallGuard(body io.ReadCloser, ended func() error, cancel context.CancelFunc, stall time.Duration) *stallGuard {
	timer := time.AfterFunc(stall, cancel)
	timer.Stop()
	return &stallGuard{ReadCloser: body, ended: ended, cancel: cancel, timer: timer, stall: stall}
}

func (b *stallGuard) Read(p []byte) (int, error) {
	b.timer.Reset(b.stall)
	n, err := b.ReadCloser.Read(p)
	b.timer.Stop()
	if err != nil && err != io.EOF && b.ended() == nil {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (b *stallGuard) Close() error {
	b.timer.Stop()
	err := b.ReadCloser.Close()
	b.cancel()
	return err
}

// unreachable reports whether err means that the registry could not be asked, rather
// than that it refused.
func unreachable(err error) bool {
	var refused *refusal
	return errors.As(err, &refused) || errors.Is(err, io.ErrUnexpectedEOF) || permanent(err)
}
