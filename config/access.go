package config

import (
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Token is a bearer token of a client.
type Token struct {
	Name string `yaml:"name"`
	// Hash is the token's hash: sha256: and 64 hexadecimal digits. The hash is not secret,
	// because a token is too long to be guessed. An invalid value may be a token in the
	// wrong place, and is not shown.
	Hash string `yaml:"hash,omitempty"`
	// TokenFile is a file with the token itself in its first line, instead of Hash.
	TokenFile string   `yaml:"token_file,omitempty"`
	Scopes    []string `yaml:"scopes"`
	Tenant    string   `yaml:"tenant,omitempty"`
}

// TLS configures the API's encryption.
type TLS struct {
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
	// ClientCAFile holds the authorities of clients' certificates.
	ClientCAFile string `yaml:"client_ca_file,omitempty"`
	// Clients are the names of the accepted client certificates. If empty, every
	// certificate of these authorities is accepted.
	Clients []TLSClient `yaml:"clients,omitempty"`
}

// TLSClient is a client with a certificate of that name.
type TLSClient struct {
	Name   string   `yaml:"name"`
	Scopes []string `yaml:"scopes"`
	Tenant string   `yaml:"tenant,omitempty"`
}

// TrustedProxies are reverse proxies that identify callers themselves.
type TrustedProxies struct {
	// Addresses are the proxies' IP addresses, or networks (10.0.0.0/8).
	Addresses []string `yaml:"addresses"`
	// UserHeader is the header in which they name the caller.
	UserHeader string `yaml:"user_header"`
	// Scopes are the scopes of callers not in Users; if empty, only Users are admitted.
	Scopes []string `yaml:"scopes,omitempty"`
	// Users are callers with scopes of their own.
	Users []TLSClient `yaml:"users,omitempty"`
}

// Networks parses Addresses, which have been checked.
func (t TrustedProxies) Networks() []netip.Prefix {
	var networks []netip.Prefix
	for _, text := range t.Addresses {
		if network, ok := parseNetwork(text); ok {
			networks = append(networks, network)
		}
	}
	return networks
}

// parseNetwork parses an IP address or a network.
func parseNetwork(text string) (netip.Prefix, bool) {
	if ip, err := netip.ParseAddr(text); err == nil && ip.Zone() == "" {
		ip = ip.Unmap()
		return netip.PrefixFrom(ip, ip.BitLen()), true
	}
	network, err := netip.ParsePrefix(text)
	return network.Masked(), err == nil
}

// RequiresCredentials reports whether callers on the network need credentials.
func (a API) RequiresCredentials() bool {
	return len(a.Tokens) > 0 || a.TLS != nil && a.TLS.ClientCAFile != "" || a.TrustedProxies != nil
}

// Loopback reports whether the API listens on a loopback address.
func (a API) Loopback() bool {
	ip, err := netip.ParseAddr(a.Host)
	return err == nil && ip.Unmap().IsLoopback() || a.Host == "localhost"
}

// Open reports whether the API listens to the network without requiring credentials.
func (a API) Open() bool { return !a.Loopback() && !a.RequiresCredentials() }

// Warnings describe settings that are valid and give access to more callers than most
// operators want. Each names the callers and the keys that restrict them.
func (a API) Warnings() []string {
	var warnings []string
	if a.Open() {
		warnings = append(warnings, fmt.Sprintf("Anyone who can connect to port %d of this machine may submit jobs and read all results. "+
			"Set api.tokens (shepherdd token new), api.tls.client_ca_file, or api.host to 127.0.0.1", a.Port))
	}
	if slices.Contains(a.CORSOrigins, "*") && !a.RequiresCredentials() {
		browser := "in a browser on this machine"
		if !a.Loopback() {
			browser = fmt.Sprintf("in a browser that can connect to port %d of this machine", a.Port)
		}
		warnings = append(warnings, "Any web page opened "+browser+" may read all results: api.cors_origins allows every origin (*). "+
			"Set it to the origins of your own pages, or to []")
	}
	return warnings
}

var scopeWords = []string{"submit", "read", "admin"}

// checkAPI checks the section api.
func checkAPI(r *report, a *API) {
	r.expect(validHost(a.Host), "api.host", "an IP address or host name to listen on")
	r.expect(validPort(a.Port), "api.port", "a port from 1 to 65535, or 0 for a free one")
	r.expect(a.MaxBody > 0, "api.max_body", "a size larger than 0")
	r.expect(a.MaxUpload > 0, "api.max_upload", "a size larger than 0")
	r.expect(a.MaxQueued >= 0, "api.max_queued", "a whole number, 0 (no limit) or more")
	r.expect(a.BodyMemory/2 >= a.MaxBody || r.bad("api.max_body"), "api.body_memory", "at least twice api.max_body")
	checkAccess(r, a)
}

// checkAccess checks the keys that control access.
func checkAccess(r *report, a *API) {
	r.expect(a.RateLimit >= 0, "api.rate_limit", "a number of requests a second, or 0 for no limit")
	r.expect(a.RateBurst > 0, "api.rate_burst", "a whole number, 1 or more")
	r.expect(a.ReadTimeout > 0, "api.read_timeout", "a duration longer than 0")
	if n := r.at("api.cors_origins"); n != nil {
		for i, origin := range a.CORSOrigins {
			r.item(n, i, "api.cors_origins", originProblem(origin))
		}
	}
	if n := r.at("api.hosts"); n != nil {
		for i, host := range a.Hosts {
			if !hostName.MatchString(host) {
				r.item(n, i, "api.hosts", "expected a host name such as gpu.example.com, without a port")
			}
		}
	}
	r.expect(a.MaxConnections >= 0, "api.max_connections", "a whole number, or 0 for no limit")
	checkTokens(r, a.Tokens)
	checkTLS(r, a.TLS)
	checkTrustedProxies(r, a.TrustedProxies)
}

// HTTP's token (RFC 9110, section 5.6.2), as far as headers use it.
var headerName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9-]{0,127}$`)

// checkTrustedProxies checks api.trusted_proxies, which may be nil.
func checkTrustedProxies(r *report, t *TrustedProxies) {
	if t == nil {
		return
	}
	const path = "api.trusted_proxies"
	r.missing(path+".addresses", "a list of the proxies' addresses, such as [10.0.0.7]")
	if n := r.at(path + ".addresses"); n != nil {
		if len(t.Addresses) == 0 {
			r.reject(path+".addresses", "is empty; expected the proxies' addresses")
		}
		for i, text := range t.Addresses {
			network, ok := parseNetwork(text)
			switch {
			case !ok:
				r.item(n, i, path+".addresses", "expected an IP address, or a network such as 10.0.0.0/8")
			case network.Bits() == 0:
				r.item(n, i, path+".addresses", "is everyone's address: anyone could name any caller")
			}
		}
	}
	r.missing(path+".user_header", "the header that names the caller, such as X-Forwarded-User")
	r.expect(t.UserHeader == "" || headerName.MatchString(t.UserHeader) && !strings.EqualFold(t.UserHeader, "Authorization"), path+".user_header",
		"the header that names the caller, such as X-Forwarded-User")
	if n := r.at(path + ".scopes"); n != nil && scopesProblem(t.Scopes) != "" {
		r.reject(path+".scopes", scopesProblem(t.Scopes))
	}
	if len(t.Scopes) == 0 {
		r.missing(path+".users", "a list of users with their scopes, or scopes for all of them")
	}
	list := r.at(path + ".users")
	if list == nil {
		return
	}
	names := map[string]bool{}
	for i, u := range t.Users {
		wrong := func(key, problem string) { r.within(list, i, path+".users", key, problem) }
		problem := ""
		switch {
		case u.Name == "":
			problem = requiredKey + " or has no value; expected a user's name as the proxy gives it"
		case names[u.Name]:
			problem = "is the name of another user, too"
		}
		names[u.Name] = true
		wrong("name", problem)
		wrong("scopes", scopesProblem(u.Scopes))
		wrong("tenant", tenantProblem(u.Tenant, u.Scopes))
	}
}

// checkTokens checks api.tokens.
func checkTokens(r *report, tokens []Token) {
	const path = "api.tokens"
	list := r.at(path)
	if list == nil {
		return
	}
	names := map[string]bool{}
	hashes := map[string]bool{}
	for i, t := range tokens {
		wrong := func(key, problem string) { r.within(list, i, path, key, problem) }
		wrong("name", nameProblem("token", t.Name, names))
		wrong("scopes", scopesProblem(t.Scopes))
		wrong("tenant", tenantProblem(t.Tenant, t.Scopes))
		switch {
		case t.Hash == "" && t.TokenFile == "":
			wrong("hash", requiredKey+" or has no value; expected the hash of the token, as `shepherdd token new` prints, or token_file")
		case t.Hash != "" && t.TokenFile != "":
			wrong("token_file", "is there beside hash; remove one of them")
		case t.TokenFile != "" && !filepath.IsAbs(t.TokenFile):
			wrong("token_file", "expected an absolute path")
		case t.Hash != "" && !validHash(t.Hash):
			wrong("hash", "not the hash of a token; expected sha256: and 64 hexadecimal digits, as `shepherdd token new` prints")
		case t.Hash != "" && hashes[strings.ToLower(t.Hash)]:
			wrong("hash", "is that of another token, too; every token has its own")
		}
		hashes[strings.ToLower(t.Hash)] = true
	}
}

func validHash(s string) bool {
	digits, ok := strings.CutPrefix(s, "sha256:")
	return ok && len(digits) == 64 && strings.Trim(digits, "0123456789abcdefABCDEF") == ""
}

// checkTLS checks api.tls, which may be nil.
func checkTLS(r *report, t *TLS) {
	if t == nil {
		return
	}
	r.missing("api.tls.cert_file", "the path of the API's certificate in PEM form")
	r.missing("api.tls.key_file", "the path of the certificate's key in PEM form")
	for _, f := range []struct{ key, path string }{
		{"api.tls.cert_file", t.CertFile}, {"api.tls.key_file", t.KeyFile}, {"api.tls.client_ca_file", t.ClientCAFile},
	} {
		r.notEmpty(f.key, f.path == "")
		r.expect(f.path == "" || filepath.IsAbs(f.path), f.key, "an absolute path")
	}
	const path = "api.tls.clients"
	list := r.at(path)
	if list == nil {
		return
	}
	if t.ClientCAFile == "" {
		r.reject(path, "needs api.tls.client_ca_file, the authorities of the clients' certificates")
	}
	names := map[string]bool{}
	for i, c := range t.Clients {
		wrong := func(key, problem string) { r.within(list, i, path, key, problem) }
		problem := ""
		switch {
		case c.Name == "":
			problem = requiredKey + " or has no value; expected a name of the certificate"
		case names[c.Name]:
			problem = "is that of another client, too"
		}
		names[c.Name] = true
		wrong("name", problem)
		wrong("scopes", scopesProblem(c.Scopes))
		wrong("tenant", tenantProblem(c.Tenant, c.Scopes))
	}
}

// nameProblem describes what is wrong with a name, "" for a valid one, and adds it to the
// taken ones.
func nameProblem(what, name string, taken map[string]bool) string {
	defer func() { taken[name] = true }()
	switch {
	case name == "":
		return requiredKey + " or has no value; expected a name for the " + what
	case !nodeName.MatchString(name) || len(name) > 63:
		return "expected a name: 1 to 63 of A-Z, a-z, 0-9, _, . and -, a letter or digit first"
	case taken[name]:
		return "is the name of another " + what + ", too"
	}
	return ""
}

func scopesProblem(scopes []string) string {
	unknown := func(s string) bool { return !slices.Contains(scopeWords, s) }
	if len(scopes) == 0 || slices.ContainsFunc(scopes, unknown) {
		return "expected a list of one or more of submit, read, admin"
	}
	return ""
}

func tenantProblem(tenant string, scopes []string) string {
	switch {
	case tenant == "":
		return ""
	case !nodeName.MatchString(tenant) || len(tenant) > 63:
		return "expected a name: 1 to 63 of A-Z, a-z, 0-9, _, . and -, a letter or digit first"
	case slices.Contains(scopes, "admin"):
		return "a tenant sees its own jobs only, and who administers sees all; remove tenant, or the scope admin"
	}
	return ""
}

// originProblem describes what is wrong with an origin; empty for a valid one. Browsers'
// origins are compared byte by byte.
func originProblem(origin string) string {
	const expected = "expected an origin as browsers send it, such as https://app.example.com, or *"
	if origin == "*" {
		return ""
	}
	u, err := url.Parse(origin)
	if err != nil || u.Scheme == "" || u.Host == "" || u.Path != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" ||
		origin != strings.ToLower(origin) {
		return expected
	}
	return ""
}
