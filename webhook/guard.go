package webhook

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"

	"code.dny.dev/ssrf"
)

// RefusedAddress says that a receiver's host has an address to which no request goes.
type RefusedAddress struct {
	Address netip.Addr
	Why     string
}

func (e *RefusedAddress) Error() string {
	return fmt.Sprintf("the receiver's address %s is %s, which is refused; an operator can allow it with webhooks.allow", e.Address, e.Why)
}

// guard decides where connections may be made to.
type guard struct {
	allow   []netip.Prefix
	special *ssrf.Guardian // knows the registries of special networks (IANA)
	own     func() ([]net.Addr, error)
}

func newGuard(allow []netip.Prefix) *guard {
	return &guard{allow: allow, special: ssrf.New(ssrf.WithAnyPort()), own: net.InterfaceAddrs}
}

// control is called when a name has been looked up, before the connection is made.
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

// newTransport connects to nothing that the guard refuses, and uses no proxy: that would
// connect wherever it is told to.
func newTransport(allow []netip.Prefix) *http.Transport {
	dialer := &net.Dialer{Timeout: 10 * time.Second, Control: newGuard(allow).control}
	return &http.Transport{
		DialContext: dialer.DialContext, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second, DisableCompression: true,
		MaxIdleConns: senders, MaxIdleConnsPerHost: 2, IdleConnTimeout: 30 * time.Second, MaxResponseHeaderBytes: 64 << 10,
	}
}
