package config

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
)

// listener is a configured listening address.
type listener struct {
	path string
	host string // empty for every address
	port int
	n    *node // its value in the file; nil for a value from elsewhere
	// origin describes where a value comes from that is not in the file.
	origin string
}

// ports checks that no address is used twice.
func (ch *checker) ports() {
	taken := map[int][]listener{}
	for _, l := range ch.listeners() {
		if l.port <= 0 || l.port > 65535 || ch.problems.cover(l.n, l.path) {
			continue
		}
		i := slices.IndexFunc(taken[l.port], func(other listener) bool { return sameAddress(l.host, other.host) })
		if i < 0 {
			taken[l.port] = append(taken[l.port], l)
			continue
		}
		first := taken[l.port][i]
		where, number, owner := l.n, strconv.Itoa(l.port), first.path+first.origin
		if first.n != nil {
			owner = fmt.Sprintf("%s in line %d", first.path, first.n.line)
		}
		if where == nil {
			where = ch.near(l.path)
		}
		if where.referred {
			number = where.shown()
		}
		ch.wrong(where, l.path, "duplicate port: %s is taken by %s; choose another", number, owner)
	}
}

// sameAddress reports whether two listeners could conflict: their addresses are equal, one
// of them is unspecified, or one is a name.
func sameAddress(a, b string) bool {
	x, errX := netip.ParseAddr(a)
	y, errY := netip.ParseAddr(b)
	if errX != nil || errY != nil || x.IsUnspecified() || y.IsUnspecified() {
		return true
	}
	return x.Unmap() == y.Unmap()
}

// listeners returns all listeners in order of precedence for their ports: defaults and the
// command line first, then by position in the file.
func (ch *checker) listeners() []listener {
	api := listener{path: "api.port", host: ch.API.Host, port: ch.API.Port, n: ch.at("api.port"), origin: ", by default"}
	if ch.overridden["api.port"] {
		api.origin = ", by the command line"
	}
	all := []listener{api}
	if host, port, err := net.SplitHostPort(ch.Storage.Listen); err == nil && ch.embedded() {
		if p, err := strconv.Atoi(port); err == nil {
			all = append(all, listener{path: "storage.listen", host: host, port: p, n: ch.at("storage.listen"), origin: ", by default"})
		}
	}
	for _, s := range ch.Sheep {
		if n := s.section.get("port"); n != nil {
			all = append(all, listener{path: s.path + ".port", port: s.Port, n: n})
		}
	}
	position := func(l listener) (line, column int) {
		if l.n == nil {
			return 0, 0
		}
		return l.n.line, l.n.column
	}
	slices.SortStableFunc(all, func(a, b listener) int {
		aLine, aColumn := position(a)
		bLine, bColumn := position(b)
		return cmp.Or(cmp.Compare(aLine, bLine), cmp.Compare(aColumn, bColumn))
	})
	return all
}
