package access

import (
	"crypto/x509"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"
)

// Gate authenticates the callers of a daemon. It is safe for concurrent use; the zero Gate
// requires no credentials.
type Gate struct {
	now      atomic.Pointer[rules]
	sessions sessions
}

// rules are a Gate's configuration.
type rules struct {
	local        Local
	tokens       []Token
	certificates []Certificate
	anyone       *Caller // callers with an unlisted certificate; nil refuses them
	proxy        *Proxy  // nil for none
	required     bool    // callers on the network need credentials

	requests *limits // of each caller
	failures *limits // of each address
}

// Config configures a Gate. Without Tokens, ClientCA and Proxy everyone on the network may
// submit and read, as with the original shepherd, and only the peers that Local admits may
// administer.
type Config struct {
	Local  Local
	Tokens []Token
	// ClientCA is set if client certificates are verified. Certificates lists the accepted
	// ones; if it is empty, everyone with a verified certificate may submit and read.
	ClientCA     bool
	Certificates []Certificate
	// Proxy, if not nil, are reverse proxies whose header names the caller.
	Proxy *Proxy
	// Rate is how many requests per second one caller may make, and Burst how many at once;
	// 0 is no limit. Anonymous callers are distinguished by address.
	Rate  float64
	Burst int
}

// Anonymous is the caller's name if no credentials are required.
const Anonymous = "anonymous"

// failureRate and failureBurst limit failed authentications from one address, each of which
// is logged.
const (
	failureRate  = 1
	failureBurst = 20
)

// NewGate returns a Gate. Tokens and certificates are searched in the given order.
func NewGate(c Config) *Gate {
	g := new(Gate)
	g.Set(c)
	return g
}

// Set replaces the configuration, from the next request on.
func (g *Gate) Set(c Config) {
	r := &rules{
		local: c.Local, tokens: c.Tokens, certificates: c.Certificates,
		proxy: c.Proxy, required: len(c.Tokens) > 0 || c.ClientCA || c.Proxy != nil,
		requests: newLimits(c.Rate, c.Burst), failures: newLimits(failureRate, failureBurst),
	}
	if c.ClientCA && len(c.Certificates) == 0 {
		r.anyone = &Caller{Scopes: []Scope{Submit, Read}, Ambient: true}
	}
	g.now.Store(r)
}

func (g *Gate) rules() *rules {
	if r := g.now.Load(); r != nil {
		return r
	}
	return new(rules)
}

// Asks reports whether callers on the network need credentials.
func (g *Gate) Asks() bool { return g.rules().required }

// Unknown is the error for a caller without valid credentials. Its text is sent to the
// caller. Shown is set if the request had credentials.
type Unknown struct {
	Reason string
	Shown  bool
}

func (e *Unknown) Error() string { return e.Reason }

// TooMany is the error for a caller, or an address, that exceeds its rate.
type TooMany struct{ After time.Duration }

func (e *TooMany) Error() string { return "Too many requests; try again later" }

// Identify returns the caller of a request. The error is *Unknown, *Refused or *TooMany,
// each of which may be shown to the caller.
func (g *Gate) Identify(r *http.Request) (Caller, error) {
	by := g.rules()
	caller, err := g.callerOf(by, r)
	if err != nil {
		return Caller{}, by.failed(r, err)
	}
	who := "caller " + caller.Name
	if caller.Name == Anonymous {
		who = by.clientAddress(r)
	}
	if wait, ok := by.requests.take(who); !ok {
		return caller, &TooMany{After: wait}
	}
	return caller, nil
}

// failed counts a failed authentication. It returns err, or *TooMany above the rate.
func (by *rules) failed(r *http.Request, err error) error {
	if wait, ok := by.failures.take(by.clientAddress(r)); !ok {
		return &TooMany{After: wait}
	}
	return err
}

func (g *Gate) callerOf(by *rules, r *http.Request) (Caller, error) {
	peer, local, err := PeerFrom(r.Context())
	switch {
	case local && err != nil:
		return Caller{}, &Refused{Reason: "The kernel does not know the peer of the socket"}
	case local:
		return by.local.Caller(peer)
	case !by.required:
		return Caller{Name: Anonymous, Scopes: []Scope{Submit, Read}, Ambient: true}, nil
	}
	if shown := r.Header.Values("Authorization"); len(shown) > 0 {
		if token, ok := bearer(shown[0]); ok && len(shown) == 1 {
			if caller, known := find(by.tokens, token); known {
				return caller, nil
			}
		}
		return Caller{}, &Unknown{Reason: "The Authorization header holds no token that is known here", Shown: true}
	}
	if name, ok := by.proxy.user(r); ok {
		return by.proxy.caller(name)
	}
	if caller, ok := g.sessions.caller(by, r); ok {
		return caller, nil
	}
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		return by.byCertificate(r.TLS.VerifiedChains[0][0])
	}
	return Caller{}, &Unknown{Reason: "Credentials are needed: send a token in the header Authorization: Bearer TOKEN"}
}

// byCertificate returns the caller with a verified certificate.
func (by *rules) byCertificate(cert *x509.Certificate) (Caller, error) {
	for _, c := range by.certificates {
		if c.matches(cert) {
			return c.Caller, nil
		}
	}
	if by.anyone == nil {
		return Caller{}, &Refused{Reason: "This certificate is not among those that may ask here"}
	}
	caller := *by.anyone
	caller.Name = nameOf(cert)
	return caller, nil
}

// address returns a key for a remote host: its IPv4 address, or the /64 network of its IPv6
// address, because a host can use any address of that network.
func address(remote string) string {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return remote
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return host
	}
	if ip = ip.Unmap().WithZone(""); ip.Is6() {
		network, _ := ip.Prefix(64)
		return network.String()
	}
	return ip.String()
}
