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

// Where commands look for what no flag says.
const (
	envAPI   = "SHEPHERD_API"
	envToken = "SHEPHERD_TOKEN"
	envCA    = "SHEPHERD_CA_FILE"

	// serviceSocket is that of the daemon that the system runs as a service.
	serviceSocket = "/run/shepherd/api.sock"
)

// target says which daemon a command means.
type target struct {
	file  string // its configuration
	api   string // its address
	token string
	ca    string // a file of authorities to trust beside the system's
}

// add defines the flags that set it.
func (t *target) add(f *pflag.FlagSet) {
	f.StringVarP(&t.file, "config", "c", "", "configuration file of the daemon that is meant")
	f.StringVar(&t.api, "api", "", "address of its API instead: http://HOST:PORT, https://… or unix:///PATH ($"+envAPI+")")
	f.StringVar(&t.token, "token", "", "token to show there; better put into $"+envToken+", which nobody else sees")
	f.StringVar(&t.ca, "ca-file", "", "certificates of authorities to trust there, beside the system's ($"+envCA+")")
}

// errNoDaemon says that no daemon is up with the configuration that was given.
var errNoDaemon = errors.New("no daemon is up with this configuration; start it, or name another's address with --api")

// find is the client of the daemon that is meant: with an address, the one
// there; with a configuration, the one that is up with it, or errNoDaemon; with
// neither, the one that the system runs as a service.
func (t *target) find() (*client, error) {
	if t.file != "" && t.api != "" {
		return nil, &usageError{errors.New("-c and --api are two ways of saying whom to ask: keep one")}
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
		return nil, &usageError{errors.New("a configuration file (-c FILE) or a daemon's address (--api URL) is needed: shepherd is not up as a service here")}
	}
	return newClient("unix://"+serviceSocket, token)
}

// clientOf is the client of the daemon that is up with cfg, or errNoDaemon.
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

// client speaks with a daemon by its API.
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
		return http.ErrUseLastResponse // a token is shown to nobody else
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

// close gives up the connections that are idle.
func (c *client) close() { c.http.CloseIdleConnections() }

// call asks and returns the answer, if that is a 200; the caller closes its
// body. body is sent as JSON, unless it is nil. Other answers are returned as an
// error in the daemon's own words.
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

// ask is call for an answer in JSON, which it reads into what into points to;
// nil for none that is of interest.
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
