// Package client is a client of shepherd's API. Its operations and types are
// generated from api/openapi.yaml: [New] returns a [ClientWithResponses], whose
// methods have the names of the contract's operations.
//
// An answer that is not a success is returned as a [*StatusError], and a daemon that
// cannot be reached as an [*UnreachableError]. So if the error is nil, JSON200 of a
// response is set wherever the contract has one, unless the server is not a daemon.
// The package builds on every system that Go supports.
package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

//go:generate go tool oapi-codegen -config oapi-codegen.yaml ../api/openapi.yaml

// largestError bounds how much of an error's body is read, in bytes.
const largestError = 1 << 20

// Config says which daemon is asked, and by whom.
type Config struct {
	// Server is http://HOST[:PORT], https://HOST[:PORT], either with a path before
	// the API's own, or unix:///PATH.
	Server string
	// Token is sent with each request; empty for none.
	Token string
	// Authorities are trusted for https; nil for the system's.
	Authorities *x509.CertPool
	// DialSocket connects to the socket of a unix:// address; nil for the system's
	// call, which takes paths of about 100 bytes at most.
	DialSocket func(ctx context.Context, path string) (net.Conn, error)
}

// ErrAddress means that Config.Server is not the address of an API.
var ErrAddress = errors.New("not the address of an API; expected http://HOST:PORT, https://HOST:PORT or unix:///PATH")

// New returns a client. It does not connect yet. Redirects are not followed, so that
// the token is sent to nobody else. The error wraps ErrAddress.
func New(c Config) (*ClientWithResponses, error) {
	doer, base, err := newDoer(c)
	if err != nil {
		return nil, err
	}
	return NewClientWithResponses(base, WithHTTPClient(doer))
}

// newDoer makes the HTTP client for an address, and the URL below which the API is.
func newDoer(c Config) (*doer, string, error) {
	server := strings.TrimRight(c.Server, "/")
	u, err := url.Parse(server)
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, IdleConnTimeout: time.Minute,
		// Without pings, retries would use an HTTP/2 connection that the network has lost.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 10 * time.Second},
	}
	base := server
	switch {
	case err == nil && u.Scheme == "unix" && u.Host == "" && u.Path != "":
		base = "http://shepherd" // no name is looked up
		transport.Proxy = nil
		dial := c.DialSocket
		if dial == nil {
			dial = func(ctx context.Context, path string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", path)
			}
		}
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, u.Path) }
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return nil, "", fmt.Errorf("%q is %w", c.Server, ErrAddress)
	}
	if c.Authorities != nil {
		transport.TLSClientConfig = &tls.Config{RootCAs: c.Authorities, MinVersion: tls.VersionTLS12}
	}
	return &doer{
		server: server,
		token:  c.Token,
		http: &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		}},
	}, base, nil
}

// doer sends the requests of the generated client.
type doer struct {
	server string // as configured, for errors
	token  string
	http   *http.Client
}

// Do sends a request and returns the response if it is a success or says that the
// client has the answer already (304).
func (d *doer) Do(r *http.Request) (*http.Response, error) {
	if d.token != "" {
		r.Header.Set("Authorization", "Bearer "+d.token)
	}
	response, err := d.http.Do(r)
	if err != nil {
		var failed *url.Error
		if errors.As(err, &failed) {
			err = failed.Err // the address is said below, without the query
		}
		return nil, &UnreachableError{Server: d.server, Err: err}
	}
	if response.StatusCode >= 200 && response.StatusCode < 300 || response.StatusCode == http.StatusNotModified {
		return response, nil
	}
	withoutSwitch(response)
	defer response.Body.Close()
	return nil, statusError(d.server, response)
}

// withoutSwitch drops what follows an answer that switches protocols: the end of the request's
// context would not end a read of it.
func withoutSwitch(response *http.Response) {
	if response.StatusCode == http.StatusSwitchingProtocols {
		response.Body.Close()
		response.Body = http.NoBody
	}
}

// UnreachableError means that there was no answer.
type UnreachableError struct {
	Server string // as configured
	Err    error
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("ask the daemon at %s: %v", e.Server, e.Err)
}

func (e *UnreachableError) Unwrap() error { return e.Err }

// StatusError is an answer of the daemon that is no success.
type StatusError struct {
	Status  int    // of HTTP
	Message string // for people; what is wrong and, where something can be done, what
	// Problem is set where the answer is a problem as in RFC 9457.
	Problem *Problem
	// Body is the answer's, at most 1 MiB of it, for operations whose errors say more,
	// such as /readyz.
	Body []byte
	// RetryAfter is when it is worth asking again; 0 where the daemon does not say.
	RetryAfter time.Duration
}

func (e *StatusError) Error() string { return e.Message }

// statusError reads an answer that is no success.
func statusError(server string, response *http.Response) *StatusError {
	e := &StatusError{Status: response.StatusCode}
	if seconds, err := strconv.Atoi(response.Header.Get("Retry-After")); err == nil && seconds > 0 {
		e.RetryAfter = time.Duration(seconds) * time.Second
	}
	var said struct {
		Problem
		Detail *string `json:"detail"` // of the other form it is something else
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, largestError))
	if err == nil {
		e.Body = body
		err = json.Unmarshal(body, &said)
	}
	if err != nil || said.Message == "" {
		next := "is it a shepherd of this version?"
		switch e.Status {
		case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout: // the daemon's own have a message
			next = "a proxy is there that does not reach a daemon"
		}
		e.Message = fmt.Sprintf("%s answers %s; %s", server, response.Status, next)
		return e
	}
	e.Message = said.Message
	if said.Type != "" {
		e.Problem = &said.Problem
		e.Problem.Detail = said.Message
	}
	return e
}

// Is reports whether the daemon answered with an HTTP status.
func Is(err error, status int) bool {
	var e *StatusError
	return errors.As(err, &e) && e.Status == status
}

// Call sends a request that the contract does not have, such as those of /admin, and
// decodes the JSON answer into into, unless that is nil. body is sent as JSON, unless
// it is nil. Path begins with a slash.
func (c *ClientWithResponses) Call(ctx context.Context, method, path string, body, into any) error {
	raw, ok := c.ClientInterface.(*Client)
	if !ok {
		return errors.New("this client was not made by New")
	}
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		content = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, strings.TrimRight(raw.Server, "/")+path, content)
	if err != nil {
		return err
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := raw.Client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if into == nil {
		return nil
	}
	if err := json.NewDecoder(response.Body).Decode(into); err != nil {
		return fmt.Errorf("read the answer to %s %s: %w", method, path, err)
	}
	return nil
}

// CloseIdle closes connections that no request uses.
func (c *ClientWithResponses) CloseIdle() {
	if raw, ok := c.ClientInterface.(*Client); ok {
		if d, ok := raw.Client.(*doer); ok {
			d.http.CloseIdleConnections()
		}
	}
}
