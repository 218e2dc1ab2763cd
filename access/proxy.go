package access

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// Proxy configures reverse proxies that authenticate users themselves, for example by single
// sign-on, and name them in a header. The header is used only in requests from the proxies'
// addresses; a proxy must remove it from its clients' requests.
type Proxy struct {
	// Addresses are the networks of the proxies.
	Addresses []netip.Prefix
	// Header names the user, such as X-Forwarded-User.
	Header string
	// Scopes are the scopes of users not in Users. If empty, only Users are admitted.
	Scopes []Scope
	// Users are users with their own Caller.
	Users []ProxyUser
}

// ProxyUser is a user of a Proxy.
type ProxyUser struct {
	Name   string
	Caller Caller
}

// trusts reports whether a remote address is one of the proxies.
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

// user returns the user that a proxy names in a request; ok is false for none. A repeated
// header is ignored: one of the values may come from the client.
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

// longestUser bounds the length of a user's name, in bytes.
const longestUser = 256

// caller returns the caller for a user's name.
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

// clientAddress returns the address of a request's client: behind a trusted proxy, the last
// address in X-Forwarded-For that is not a proxy's.
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

// ClientAddress returns the address of a request's client for logs: the one that a trusted
// proxy reports, or that of the connection.
func (g *Gate) ClientAddress(r *http.Request) string {
	by := g.rules()
	if by.proxy.trusts(r.RemoteAddr) {
		return by.clientAddress(r)
	}
	return r.RemoteAddr
}
