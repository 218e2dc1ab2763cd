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

// The files that list the machine's name servers. With systemd-resolved the first
// lists a stub resolver on a loopback address, and the second its upstream servers.
const (
	resolvConf   = "/etc/resolv.conf"
	resolvedConf = "/run/systemd/resolve/resolv.conf"
)

// resolvConfOf is the path of a life's own resolv.conf, which is mounted in its
// container with network cni.
func resolvConfOf(folder string) string { return filepath.Join(folder, "resolv.conf") }

// writeResolvConf writes a resolv.conf for a container with a network namespace of
// its own: the first of the sources that has a name server outside the loopback
// addresses, which the container cannot reach, without those on them. Where no source
// has one it writes the first source that exists.
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
	return writeWorldReadable(path, best)
}

// withoutLoopback removes name servers on loopback addresses from a resolv.conf,
// and counts those that remain. See resolv.conf(5).
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

// formatResolvConf formats the name servers of a CNI result as a resolv.conf.
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

// writeWorldReadable writes a file that the users of containers can read, whatever
// the daemon's umask. It writes in place, because the file may be mounted already.
func writeWorldReadable(path string, data []byte) error {
	if err := os.WriteFile(path, data, 0o644); err != nil {
		return err
	}
	return os.Chmod(path, 0o644)
}
