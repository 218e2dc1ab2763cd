package container

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	cnitypes "github.com/containernetworking/cni/pkg/types"
)

// Where a machine's name servers are written down. With systemd-resolved the
// first names a stub on the loopback address, and the second what it asks.
const (
	resolvConf   = "/etc/resolv.conf"
	resolvedConf = "/run/systemd/resolve/resolv.conf"
)

// resolvConfOf is a life's own resolv.conf, which is mounted in its container
// with network cni.
func resolvConfOf(folder string) string { return filepath.Join(folder, "resolv.conf") }

// writeResolvConf writes for a container with a loopback interface of its own
// what a machine's files, of which the first that is of use counts, say of name
// servers: those on the machine's loopback addresses are out of its reach.
func writeResolvConf(path string, sources ...string) error {
	var best []byte
	for _, source := range sources {
		text, err := os.ReadFile(source)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		reachable, servers := withoutLoopback(string(text))
		if best == nil || servers > 0 {
			best = reachable
		}
		if servers > 0 {
			break
		}
	}
	return writeShared(path, best)
}

// withoutLoopback leaves name servers on loopback addresses out of a resolv.conf,
// and counts the others. See resolv.conf(5).
func withoutLoopback(text string) (reachable []byte, servers int) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) >= 2 && fields[0] == "nameserver" {
			address, err := netip.ParseAddr(fields[1])
			if err != nil || address.Unmap().IsLoopback() {
				continue
			}
			servers++
		}
		reachable = append(reachable, line...)
	}
	return reachable, servers
}

// formatResolvConf writes what CNI's plugins say of name servers.
func formatResolvConf(dns cnitypes.DNS) []byte {
	var text []byte
	for _, server := range dns.Nameservers {
		text = fmt.Appendf(text, "nameserver %s\n", server)
	}
	search := dns.Search
	if dns.Domain != "" && !slices.Contains(search, dns.Domain) {
		search = append([]string{dns.Domain}, search...)
	}
	if len(search) > 0 {
		text = fmt.Appendf(text, "search %s\n", strings.Join(search, " "))
	}
	if len(dns.Options) > 0 {
		text = fmt.Appendf(text, "options %s\n", strings.Join(dns.Options, " "))
	}
	return text
}

// writeShared writes a file that the users of containers read, whatever the daemon's
// umask. It is written in place, because it may be mounted already.
func writeShared(path string, data []byte) error {
	if err := os.WriteFile(path, data, 0o644); err != nil {
		return err
	}
	return os.Chmod(path, 0o644)
}
