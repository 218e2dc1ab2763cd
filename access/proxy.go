package access

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// Proxy are reverse proxies that identify callers themselves, by single sign-on for
// example, and name them in a header. The header counts only in requests that come
// from one of the proxies' addresses; a proxy has to remove it from what its own
// clients send.
type Proxy struct {
	// Addresses are the networks of the proxies.
	Addresses []netip.Prefix
	// Header names the user, such as X-Forwarded-User.
	Header string
	// Scopes are what users may do who are not among Users. Without any, only Users
	// are admitted.
	Scopes []Scope
	// Users are admitted as their Caller; Subject is the header's value.
	Users []ProxyUser
}

// ProxyUser is a user of a Proxy.
type ProxyUser struct {
	Name   string
	Caller Caller
}

// trusts reports whether a request comes from one of the proxies.
func (p *Proxy) trusts(remote string) bool {
	if p == nil {
		return false
	}
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		host = remote
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	ip = ip.Unmap().WithZone("")
	return slices.ContainsFunc(p.Addresses, func(network netip.Prefix) bool { return network.Contains(ip) })
}

// user is the user that a proxy names in a request; ok is false where none does.
// A header that is there twice is not used: one of them may be the client's own.
func (p *Proxy) user(r *http.Request) (name string, ok bool) {
	if !p.trusts(r.RemoteAddr) {
		return "", false
	}
	values := r.Header.Values(p.Header)
	if len(values) != 1 {
		return "", false
	}
	name = strings.TrimSpace(values[0])
	return name, name != "" && len(name) <= longestUser
}

// longestUser is the longest name of a user that is accepted, in bytes.
const longestUser = 256

// caller is the caller with a user's name.
func (p *Proxy) caller(name string) (Caller, error) {
	for _, u := range p.Users {
		if u.Name == name {
			caller := u.Caller
			caller.Name, caller.Ambient = name, true
			return caller, nil
		}
	}
	if len(p.Scopes) == 0 {
		return Caller{}, &Refused{Reason: "This user is not among those that may use shepherd (api.trusted_proxies.users)"}
	}
	return Caller{Name: name, Scopes: p.Scopes, Ambient: true}, nil
}

// clientAddress is the address of a request's client: behind a trusted proxy the
// last one in X-Forwarded-For that is no proxy's, which the proxies have written.
func (by *rules) clientAddress(r *http.Request) string {
	if !by.proxy.trusts(r.RemoteAddr) {
		return address(r.RemoteAddr)
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for _, hop := range slices.Backward(hops) {
		hop = strings.TrimSpace(hop)
		if _, err := netip.ParseAddr(hop); err != nil {
			break
		}
		if !by.proxy.trusts(hop) {
			return address(net.JoinHostPort(hop, "0"))
		}
	}
	return address(r.RemoteAddr)
}

// ClientAddress is the address of a request's client, for logs: as told by a trusted
// proxy, or that of the connection.
func (g *Gate) ClientAddress(r *http.Request) string {
	by := g.rules()
	if by.proxy.trusts(r.RemoteAddr) {
		return by.clientAddress(r)
	}
	return r.RemoteAddr
}
