package webhook

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"syscall"
	"time"

	"code.dny.dev/ssrf"
)

// RefusedAddress is the error for a receiver whose host has an address to which no requests
// are sent.
type RefusedAddress struct {
	Address netip.Addr
	Why     string
}

func (e *RefusedAddress) Error() string {
	return fmt.Sprintf("the receiver's address %s is %s, which is refused; an operator can allow it with webhooks.allow", e.Address, e.Why)
}

// guard decides to which addresses connections may be made.
type guard struct {
	allow   []netip.Prefix
	special *ssrf.Guardian // has the IANA registries of special networks, and hostAgent
	own     func() ([]net.Addr, error)
}

// hostAgent is the public address at which virtual machines of Azure reach their host's agent,
// which hands out their credentials. Other clouds use addresses of the registries.
const hostAgent = "168.63.129.16/32"

func newGuard(allow []netip.Prefix) *guard {
	special := ssrf.New(ssrf.WithAnyPort(), ssrf.WithDeniedV4Prefixes(netip.MustParsePrefix(hostAgent)))
	return &guard{allow: allow, special: special, own: net.InterfaceAddrs}
}

// control is called after the name is resolved and before the connection is made.
func (g *guard) control(_, address string, _ syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("connect to %s: %w", address, err)
	}
	return g.check(to.Addr())
}

// check returns a *RefusedAddress for an address to which no connection may be made.
func (g *guard) check(to netip.Addr) error {
	to = to.Unmap().WithZone("")
	for _, network := range g.allow {
		if network.Contains(to) {
			return nil
		}
	}
	if err := g.special.SafeAddr(to); err != nil {
		return &RefusedAddress{to, "of a private or special network"}
	}
	own, err := g.own()
	if err != nil {
		return fmt.Errorf("list this machine's addresses: %w", err)
	}
	for _, a := range own {
		if network, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(network.IP); ok && ip.Unmap() == to {
				return &RefusedAddress{to, "one of this machine"}
			}
		}
	}
	return nil
}

// Reach connects to the host of a receiver's URL, under the rules of the package, and sends
// nothing. Its error, such as *RefusedAddress, is the reason why a message could not be
// delivered.
func Reach(ctx context.Context, receiver string, allow []netip.Prefix) error {
	u, err := url.Parse(receiver)
	if err != nil {
		return fmt.Errorf("read the URL: %w", err)
	}
	port := u.Port()
	if port == "" {
		port = "80"
		if u.Scheme == "https" {
			port = "443"
		}
	}
	dialer := &net.Dialer{Timeout: connectTime, Control: newGuard(allow).control}
	address := net.JoinHostPort(u.Hostname(), port)
	var conn net.Conn
	if u.Scheme == "https" {
		conn, err = (&tls.Dialer{NetDialer: dialer}).DialContext(ctx, "tcp", address)
	} else {
		conn, err = dialer.DialContext(ctx, "tcp", address)
	}
	if err != nil {
		return err
	}
	return conn.Close()
}

// connectTime bounds how long a connection may take.
const connectTime = 10 * time.Second

// newTransport connects to no address that the guard refuses. It uses no proxy, which would
// connect to any address.
func newTransport(allow []netip.Prefix) *http.Transport {
	dialer := &net.Dialer{Timeout: connectTime, Control: newGuard(allow).control}
	return &http.Transport{
		DialContext: dialer.DialContext, ForceAttemptHTTP2: true, TLSHandshakeTimeout: connectTime, DisableCompression: true,
		MaxIdleConns: senders, MaxIdleConnsPerHost: 2, IdleConnTimeout: 30 * time.Second, MaxResponseHeaderBytes: 64 << 10,
		// Without pings, retries would use an HTTP/2 connection that the network has lost.
		HTTP2: &http.HTTP2Config{SendPingTimeout: connectTime, PingTimeout: connectTime},
	}
}
