package cli

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/api"
	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/daemon"
)

// Environment variables that replace flags.
const (
	envAPI   = "SHEPHERD_API"
	envToken = "SHEPHERD_TOKEN"
	envCA    = "SHEPHERD_CA_FILE"

	// serviceSocket is the socket of the packaged service.
	serviceSocket = "/run/shepherd/api.sock"
)

// target is the daemon that a command uses.
type target struct {
	file  string // its configuration
	api   string // its address
	token string
	ca    string // a file of authorities to trust beside the system's
}

// add defines its flags.
func (t *target) add(f *pflag.FlagSet) {
	f.StringVarP(&t.file, "config", "c", "", "configuration file of the daemon to ask")
	f.StringVar(&t.api, "api", "", "address of its API instead: http://HOST:PORT, https://… or unix:///PATH ($"+envAPI+")")
	f.StringVar(&t.token, "token", "", "token to send; better put into $"+envToken+", which other users do not see")
	f.StringVar(&t.ca, "ca-file", "", "certificates of authorities to trust there, beside the system's ($"+envCA+")")
}

// errNoDaemon means that no daemon is running with the given configuration.
var errNoDaemon = errors.New("no daemon is running with this configuration; start it, or give another's address with --api")

// find is a client of the daemon: the one at the given address, the one that is
// running with the given configuration, or else the packaged service. The error is
// errNoDaemon where none is running with the configuration.
func (t *target) find() (*client, error) {
	if t.file != "" && t.api != "" {
		return nil, &usageError{errors.New("-c and --api both name a daemon: keep one of them")}
	}
	token := cmp.Or(t.token, os.Getenv(envToken))
	if t.file != "" {
		cfg, err := daemon.LoadConfig(t.file)
		if err != nil {
			return nil, err
		}
		return clientOf(cfg, token)
	}
	if at := cmp.Or(t.api, os.Getenv(envAPI)); at != "" {
		c, err := newClient(at, token)
		if err == nil {
			err = c.trust(cmp.Or(t.ca, os.Getenv(envCA)))
		}
		return c, err
	}
	if _, err := os.Stat(serviceSocket); errors.Is(err, fs.ErrNotExist) {
		return nil, &usageError{errors.New("a configuration file (-c FILE) or a daemon's address (--api URL) is needed: shepherd is not running as a service here")}
	}
	return newClient("unix://"+serviceSocket, token)
}

// clientOf is a client of the daemon that is running with cfg, or errNoDaemon.
func clientOf(cfg *config.Config, token string) (*client, error) {
	running, err := daemon.Running(cfg.StateDir)
	if err != nil {
		return nil, err
	}
	if !running {
		return nil, errNoDaemon
	}
	at, err := daemon.Address(cfg.StateDir)
	if err != nil {
		return nil, err
	}
	return newClient(at, token)
}

// client is a client of a daemon's API.
type client struct {
	shown string // the daemon's address, for people
	base  string
	token string
	http  *http.Client
}

// newClient does not connect yet. The address is http://HOST[:PORT], https:// or
// unix:///PATH.
func newClient(at, token string) (*client, error) {
	u, err := url.Parse(at)
	c := &client{shown: strings.TrimRight(at, "/"), base: strings.TrimRight(at, "/"), token: token}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true}
	switch {
	case err == nil && u.Scheme == "unix" && u.Host == "" && u.Path != "":
		c.base = "http://shepherd" // no name is looked up
		transport.Proxy = nil
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return access.Dial(ctx, u.Path) }
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil:
		return nil, &usageError{fmt.Errorf("%q is not the address of an API; expected http://HOST:PORT, https://HOST:PORT or unix:///PATH", at)}
	}
	c.http = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // a token is sent to nobody else
	}}
	return c, nil
}

// trust adds the authorities whose certificates are in a file; empty for none.
func (c *client) trust(file string) error {
	if file == "" {
		return nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read the authorities to trust: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(text) {
		return fmt.Errorf("read the authorities to trust: %s holds no certificate in PEM form", file)
	}
	c.http.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	return nil
}

// close closes idle connections.
func (c *client) close() { c.http.CloseIdleConnections() }

// call sends a request and returns the response if its status is 200; the caller
// closes its body. body is sent as JSON, unless it is nil. Other responses are
// returned as an error with the daemon's message.
func (c *client) call(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		content = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, c.base+path, content)
	if err != nil {
		return nil, err
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		request.Header.Set("Authorization", "Bearer "+c.token)
	}
	response, err := c.http.Do(request)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOENT):
		return nil, fmt.Errorf("no daemon answers at %s; start it (systemctl start shepherdd), or name its address with --api", c.shown)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("this user may not use %s; ask as root, or for membership in the group of api.socket_group", c.shown)
	case err != nil:
		return nil, fmt.Errorf("ask the daemon at %s: %w", c.shown, err)
	case response.StatusCode == http.StatusOK:
		return response, nil
	}
	defer response.Body.Close()
	var said api.Error
	if err := json.NewDecoder(io.LimitReader(response.Body, 1<<20)).Decode(&said); err != nil || said.Message == "" {
		return nil, fmt.Errorf("%s answers %s; is it a shepherd of this version?", c.shown, response.Status)
	}
	return nil, errors.New(said.Message)
}

// ask is call for a JSON response, which it decodes into into, unless that is nil.
func (c *client) ask(ctx context.Context, method, path string, body, into any) error {
	response, err := c.call(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if into == nil {
		return nil
	}
	if err := json.NewDecoder(response.Body).Decode(into); err != nil {
		return fmt.Errorf("read the answer of the daemon at %s: %w", c.shown, err)
	}
	return nil
}
