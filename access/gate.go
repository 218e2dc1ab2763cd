package access

import (
	"crypto/x509"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"
)

// Gate tells who the requests of a daemon come from. Its methods may be called
// from many goroutines; the zero Gate is the one of a daemon that asks nobody who
// they are.
type Gate struct{ now atomic.Pointer[rules] }

// rules are what a Gate goes by.
type rules struct {
	local        Local
	tokens       []Token
	certificates []Certificate
	anyone       *Caller // with a certificate that is not listed
	asks         bool

	requests *limits // of each caller
	failures *limits // of each address
}

// Config is what a Gate is made of. Without Tokens and ClientCA everyone on the
// network may submit and read, as with the original shepherd, and only those
// that Local lets in may administer.
type Config struct {
	Local  Local
	Tokens []Token
	// ClientCA says that certificates are asked for, and Certificates whose those
	// are. Where it lists none, everyone with a certificate may submit and read.
	ClientCA     bool
	Certificates []Certificate
	// Rate is how many requests a second one caller may make, and Burst how many
	// at once; 0 is no limit. Who is not known by a name is told apart by address.
	Rate  float64
	Burst int
}

// Anonymous is who comes by the network where nobody is asked.
const Anonymous = "anonymous"

// failureRate and failureBurst bound what wrong credentials from one address cost:
// lines in the log, above all.
const (
	failureRate  = 1
	failureBurst = 20
)

// NewGate makes a gate. Tokens and certificates are looked up in the order given.
func NewGate(c Config) *Gate {
	g := new(Gate)
	g.Set(c)
	return g
}

// Set has the gate go by c from the next request on.
func (g *Gate) Set(c Config) {
	r := &rules{
		local: c.Local, tokens: c.Tokens, certificates: c.Certificates,
		asks:     len(c.Tokens) > 0 || c.ClientCA,
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

// Asks reports whether those who come by the network have to say who they are.
func (g *Gate) Asks() bool { return g.rules().asks }

// Unknown says, in words for the caller, that it did not prove who it is. Shown
// says that it tried to.
type Unknown struct {
	Reason string
	Shown  bool
}

func (e *Unknown) Error() string { return e.Reason }

// TooMany says that a caller, or an address, asks too often.
type TooMany struct{ After time.Duration }

func (e *TooMany) Error() string { return "Too many requests; try again later" }

// Identify says who a request comes from. The error is *Unknown, *Refused or
// *TooMany, and every one of them is fit to be shown to whoever asks.
func (g *Gate) Identify(r *http.Request) (Caller, error) {
	by := g.rules()
	caller, err := by.identify(r)
	if err != nil {
		if wait, ok := by.failures.take(address(r.RemoteAddr)); !ok {
			return Caller{}, &TooMany{After: wait}
		}
		return Caller{}, err
	}
	who := "caller " + caller.Name
	if caller.Name == Anonymous {
		who = address(r.RemoteAddr)
	}
	if wait, ok := by.requests.take(who); !ok {
		return caller, &TooMany{After: wait}
	}
	return caller, nil
}

func (by *rules) identify(r *http.Request) (Caller, error) {
	peer, local, err := PeerFrom(r.Context())
	switch {
	case local && err != nil:
		return Caller{}, &Refused{Reason: "The system does not say who is at the other end of the socket"}
	case local:
		return by.local.Caller(peer)
	case !by.asks:
		return Caller{Name: Anonymous, Scopes: []Scope{Submit, Read}}, nil
	}
	if shown := r.Header.Values("Authorization"); len(shown) > 0 {
		if token, ok := bearer(shown[0]); ok && len(shown) == 1 {
			if caller, known := find(by.tokens, token); known {
				return caller, nil
			}
		}
		return Caller{}, &Unknown{Reason: "The Authorization header holds no token that is known here", Shown: true}
	}
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		return by.byCertificate(r.TLS.VerifiedChains[0][0])
	}
	return Caller{}, &Unknown{Reason: "Who asks has to be known: send a token in the header Authorization: Bearer TOKEN"}
}

// byCertificate is who shows a certificate that has been verified.
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

// address is what tells the hosts of a network apart: an IPv4 address, or the
// network part of an IPv6 one, of which a host has as many as it likes.
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
