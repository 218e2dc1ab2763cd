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

// retries is how patiently a registry is asked.
type retries struct {
	attempts int           // per request
	first    time.Duration // before the second attempt; doubled for each further one
	most     time.Duration // between two attempts, Retry-After included
	stall    time.Duration // without a byte until a connection counts as broken
}

// patient rides out a registry's restart; brief is for when there is a local
// image to go on with; tokens is for a token server, asked while a request to
// the registry waits.
var (
	patient = retries{attempts: 8, first: 200 * time.Millisecond, most: 30 * time.Second, stall: 60 * time.Second}
	brief   = retries{attempts: 2, first: 200 * time.Millisecond, most: 2 * time.Second, stall: 10 * time.Second}
	tokens  = retries{attempts: 3, first: 200 * time.Millisecond, most: 5 * time.Second, stall: 10 * time.Second}
)

// within is r, nowhere more patient than bound.
func (r retries) within(bound retries) retries {
	return retries{
		attempts: min(r.attempts, bound.attempts), first: min(r.first, bound.first),
		most: min(r.most, bound.most), stall: min(r.stall, bound.stall),
	}
}

// newTransport makes the connections to the registry.
func newTransport(caFile string) (*http.Transport, error) {
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 30 * time.Second,
		IdleConnTimeout:       60 * time.Second,
		MaxIdleConnsPerHost:   16,
		ForceAttemptHTTP2:     true,
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

// persistent tries a request again while what went wrong may pass: connection
// errors, 429 and 5xx. It ends with a *refusal, which nothing above it tries
// again.
//
// It keeps credentials to the host that they are for: a request that was
// redirected elsewhere, to another port too, goes without. And it keeps them out
// of what is told of answers.
type persistent struct {
	base http.RoundTripper
	retries
	observe Observer // may be nil
	tokens  bool     // it asks token servers, who are sent credentials
}

func (p *persistent) RoundTrip(req *http.Request) (*http.Response, error) {
	for attempt := 1; ; attempt++ {
		// Each attempt has a context of its own so that a body that stalls can
		// be ended.
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
			p.observe(purpose(req), time.Since(sent), answered(resp, err))
		}
		if err == nil && p.tokens {
			err = tokenResponse(req, resp)
		}
		if err == nil && !passing(resp.StatusCode) {
			if resp.StatusCode >= http.StatusBadRequest {
				resp.Body = p.withoutSecrets(again, resp.Body)
				cancel()
				return resp, nil
			}
			resp.Body = newSteadyBody(resp.Body, req.Context().Err, cancel, p.stall)
			return resp, nil
		}
		refused := &refusal{host: req.URL.Host, attempts: attempt}
		wait := p.pause(attempt)
		if err != nil {
			cancel()
			if req.Context().Err() != nil || permanent(err) {
				return nil, err
			}
			refused.detail = err.Error()
		} else {
			refused.status = resp.StatusCode
			text, _ := io.ReadAll(p.withoutSecrets(again, resp.Body))
			cancel()
			refused.detail = detail(text)
			wait = max(wait, retryAfter(resp.Header))
		}
		if attempt >= p.attempts || req.Body != nil && req.GetBody == nil {
			return nil, refused
		}
		timer := time.NewTimer(min(wait, p.most))
		select {
		case <-timer.C:
		case <-req.Context().Done():
			timer.Stop()
			return nil, req.Context().Err()
		}
	}
}

// original is the request that redirects led on from.
func original(req *http.Request) *http.Request {
	for req.Response != nil {
		req = req.Response.Request
	}
	return req
}

// maxErrorBody is how much is read of the body of an answer that is an error.
const maxErrorBody = 64 << 10

// withoutSecrets replaces the body of an answer that is an error. What a token
// server says is reduced to error codes: it was sent credentials in many forms,
// and could repeat any. Of others' texts the request's own credentials are taken
// out.
func (p *persistent) withoutSecrets(req *http.Request, body io.ReadCloser) io.ReadCloser {
	text, _ := io.ReadAll(io.LimitReader(body, maxErrorBody))
	body.Close()
	if p.tokens {
		var kept []byte
		if codes := errorCodes(text); len(codes) > 0 {
			kept = fmt.Appendf(nil, `{"errors":[{"code":%q}]}`, codes[0])
		}
		return io.NopCloser(bytes.NewReader(kept))
	}
	_, shown, _ := strings.Cut(req.Header.Get("Authorization"), " ")
	secrets := []string{shown}
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

// pause is how long to wait after the attempt, give or take a quarter so that
// clients that failed together do not come back together.
func (p *persistent) pause(attempt int) time.Duration {
	d := min(p.first<<min(attempt-1, 20), p.most)
	return d*3/4 + rand.N(d/2+1)
}

// passing says whether a status may be another one soon.
func passing(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// retryAfter reads the header of that name: seconds or a date.
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

// permanent says that an error is about how the registry is set up and not
// about its being there.
func permanent(err error) bool {
	var (
		verification *tls.CertificateVerificationError
		header       tls.RecordHeaderError
	)
	return errors.As(err, &verification) || errors.As(err, &header) || errors.Is(err, http.ErrSchemeMismatch)
}

// steadyBody is a response's body. A connection that breaks or stalls is
// io.ErrUnexpectedEOF to its reader, which is what containerd's fetcher goes on
// after, with a range from where it was.
type steadyBody struct {
	io.ReadCloser
	ended  func() error // whether the request itself was given up
	cancel context.CancelFunc
	timer  *time.Timer
	stall  time.Duration
}

func newSteadyBody(body io.ReadCloser, ended func() error, cancel context.CancelFunc, stall time.Duration) *steadyBody {
	timer := time.AfterFunc(stall, cancel)
	timer.Stop()
	return &steadyBody{ReadCloser: body, ended: ended, cancel: cancel, timer: timer, stall: stall}
}

func (b *steadyBody) Read(p []byte) (int, error) {
	b.timer.Reset(b.stall)
	n, err := b.ReadCloser.Read(p)
	b.timer.Stop()
	if err != nil && err != io.EOF && b.ended() == nil {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (b *steadyBody) Close() error {
	b.timer.Stop()
	err := b.ReadCloser.Close()
	b.cancel()
	return err
}

// unreachable says that a registry could not be asked, as opposed to having
// answered no.
func unreachable(err error) bool {
	var refused *refusal
	return errors.As(err, &refused) || errors.Is(err, io.ErrUnexpectedEOF) || permanent(err)
}
