package daemon

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/iterait/shepherd/access"
	"github.com/iterait/shepherd/api"
	"github.com/iterait/shepherd/config"
)

// setAccess configures the gate with the callers of the configuration, from the next request
// on.
func (a *admission) setAccess(c config.API) error {
	rules := access.Config{Local: a.local, Rate: c.RateLimit, Burst: c.RateBurst}
	for _, t := range c.Tokens {
		digest, err := digestOf(t)
		if err != nil {
			return fmt.Errorf("token %s: %w", t.Name, err)
		}
		rules.Tokens = append(rules.Tokens, access.Token{Digest: digest, Caller: callerOf(t.Name, t.Scopes, t.Tenant)})
	}
	if p := c.TrustedProxies; p != nil {
		rules.Proxy = &access.Proxy{Addresses: p.Networks(), Header: p.UserHeader, Scopes: callerOf("", p.Scopes, "").Scopes}
		for _, u := range p.Users {
			rules.Proxy.Users = append(rules.Proxy.Users, access.ProxyUser{Name: u.Name, Caller: callerOf(u.Name, u.Scopes, u.Tenant)})
		}
	}
	if c.TLS != nil && c.TLS.ClientCAFile != "" {
		rules.ClientCA = true
		for _, client := range c.TLS.Clients {
			caller := callerOf(client.Name, client.Scopes, client.Tenant)
			caller.Ambient = true
			rules.Certificates = append(rules.Certificates, access.Certificate{Subject: client.Name, Caller: caller})
		}
	}
	a.gate.Set(rules)
	a.certificates.Store(len(rules.Tokens) == 0 && rules.Proxy == nil)
	a.browsers.Set(api.BrowserConfig{Origins: c.CORSOrigins, Hosts: c.Hosts})
	return nil
}

func callerOf(name string, scopes []string, tenant string) access.Caller {
	caller := access.Caller{Name: name, Tenant: tenant}
	for _, s := range scopes {
		caller.Scopes = append(caller.Scopes, access.Scope(s)) // the configuration was checked
	}
	return caller
}

// shortestToken is the minimum length of a token in a file: 128 bits in hexadecimal digits.
const shortestToken = 32

func digestOf(t config.Token) (access.Digest, error) {
	if t.TokenFile == "" {
		return access.ParseDigest(t.Hash)
	}
	f, err := os.Open(t.TokenFile)
	if err != nil {
		return access.Digest{}, err
	}
	defer f.Close()
	line, err := bufio.NewReader(io.LimitReader(f, 4096)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return access.Digest{}, fmt.Errorf("read %s: %w", t.TokenFile, err)
	}
	token := strings.TrimSpace(line)
	if len(token) < shortestToken {
		return access.Digest{}, fmt.Errorf("the first line of %s is shorter than %d characters: a token that can be guessed lets everyone in; create one with `shepherdd token new`", t.TokenFile, shortestToken)
	}
	if !access.ValidToken(token) {
		return access.Digest{}, fmt.Errorf("the first line of %s is not a token: an Authorization header carries letters, digits and -._~+/= only; create one with `shepherdd token new`", t.TokenFile)
	}
	return access.DigestOf(token), nil
}

// tlsOf returns the TLS configuration of the network listener; nil for none. If required
// returns true, the handshake requires a client certificate.
func tlsOf(c config.API, required func() bool, log *slog.Logger) (*tls.Config, error) {
	if c.TLS == nil {
		return nil, nil
	}
	return access.TLS{
		CertFile: c.TLS.CertFile, KeyFile: c.TLS.KeyFile, ClientCAFile: c.TLS.ClientCAFile,
		Required: required, Log: log,
	}.Server()
}
