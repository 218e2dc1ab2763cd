package access

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// HostAllowed reports whether a request may use the name in its Host header. On loopback
// addresses and the unix socket, only names that no foreign web page can have are allowed:
// IP addresses, localhost, names below .localhost, the name used by the socket's own
// clients, and the names in also. This prevents DNS rebinding, where a page's own host name
// resolves to 127.0.0.1. On other addresses every name is allowed, because the daemon cannot
// know its names there.
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

// arrivedLocally reports whether a request arrived on the unix socket or on a loopback
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

// hostOf returns the host of a Host header in lower case, without port, brackets and
// trailing dot.
func hostOf(header string) string {
	host := header
	if name, _, err := net.SplitHostPort(header); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	return strings.ToLower(strings.TrimSuffix(host, "."))
}
