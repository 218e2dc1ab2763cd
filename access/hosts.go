package access

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// HostAllowed reports whether a request may address the daemon by the name in its
// Host header. On a loopback address and on the unix socket only names that no
// foreign web page can have are allowed: an IP address, localhost and what ends in
// .localhost, the name of the socket's own clients, and those in also. This defeats
// DNS rebinding, by which a page makes its own name lead to 127.0.0.1. On other
// addresses every name is allowed: the daemon cannot know what it is called there.
func HostAllowed(r *http.Request, also []string) bool {
	socket, loopback := arrivedLocally(r.Context())
	if !socket && !loopback {
		return true
	}
	host := hostOf(r.Host)
	if host == "" || host == "localhost" || strings.HasSuffix(host, ".localhost") || socket && host == SocketHost {
		return true
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	return slices.ContainsFunc(also, func(name string) bool { return strings.EqualFold(name, host) })
}

// SocketHost is the name by which clients of the unix socket address the daemon.
const SocketHost = "shepherd"

// arrivedLocally reports whether a request came by the unix socket or by a loopback
// address.
func arrivedLocally(ctx context.Context) (socket, loopback bool) {
	switch at := ctx.Value(http.LocalAddrContextKey).(type) {
	case *net.UnixAddr:
		return true, false
	case *net.TCPAddr:
		return false, at.IP.IsLoopback()
	}
	return false, false
}

// hostOf is the name of a Host header, without port, brackets and a final dot, in
// lower case.
func hostOf(header string) string {
	host := header
	if name, _, err := net.SplitHostPort(header); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	return strings.ToLower(strings.TrimSuffix(host, "."))
}
