package proc

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Listener is a listening TCP socket.
type Listener struct {
	Address netip.AddrPort
	Inode   uint64
}

// Listeners returns the sockets listening on the port in this process's network
// namespace, over IPv4 and IPv6.
func Listeners(port int) ([]Listener, error) {
	var found []Listener
	for _, name := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		f, err := os.Open(name)
		if os.IsNotExist(err) && strings.HasSuffix(name, "6") {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, err
		}
		some, err := parseListeners(f, port)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		found = append(found, some...)
	}
	return found, nil
}

// parseListeners reads /proc/net/tcp or tcp6, proc_pid_net(5): addresses are
// hexadecimal, each 32-bit word in host order (little endian on every machine
// shepherd runs on); state 0A is LISTEN.
func parseListeners(r io.Reader, port int) ([]Listener, error) {
	var found []Listener
	lines := bufio.NewScanner(r)
	for first := true; lines.Scan(); first = false {
		fields := strings.Fields(lines.Text())
		if first || len(fields) < 10 || fields[3] != "0A" {
			continue
		}
		host, tail, ok := strings.Cut(fields[1], ":")
		if !ok {
			continue
		}
		if p, err := strconv.ParseUint(tail, 16, 16); err != nil || int(p) != port {
			continue
		}
		raw, err := hex.DecodeString(host)
		if err != nil || len(raw)%4 != 0 {
			continue
		}
		for i := 0; i < len(raw); i += 4 {
			raw[i], raw[i+1], raw[i+2], raw[i+3] = raw[i+3], raw[i+2], raw[i+1], raw[i]
		}
		addr, ok := netip.AddrFromSlice(raw)
		if !ok {
			continue
		}
		inode, err := strconv.ParseUint(fields[9], 10, 64)
		if err != nil {
			continue
		}
		found = append(found, Listener{Address: netip.AddrPortFrom(addr.Unmap(), uint16(port)), Inode: inode})
	}
	return found, lines.Err()
}

// ForLoopback returns the listeners that a connection to 127.0.0.1 reaches: the kernel
// prefers the most specific address.
func ForLoopback(all []Listener) []Listener {
	rank := func(l Listener) int {
		switch a := l.Address.Addr(); {
		case a == netip.AddrFrom4([4]byte{127, 0, 0, 1}):
			return 3
		case a == netip.IPv4Unspecified():
			return 2
		case a == netip.IPv6Unspecified():
			return 1
		}
		return 0
	}
	best := 1
	var found []Listener
	for _, l := range all {
		switch r := rank(l); {
		case r > best:
			best, found = r, []Listener{l}
		case r == best:
			found = append(found, l)
		}
	}
	return found
}

// Holders returns those of the processes that have one of the listeners open. Processes
// whose descriptors cannot be read are left out.
func Holders(listeners []Listener, among []Process) []Process {
	wanted := make(map[string]bool, len(listeners))
	for _, l := range listeners {
		wanted["socket:["+strconv.FormatUint(l.Inode, 10)+"]"] = true
	}
	if len(wanted) == 0 {
		return nil
	}
	var found []Process
	for _, p := range among {
		if holdsAny(p.PID, wanted) {
			found = append(found, p)
		}
	}
	return found
}

func holdsAny(pid int, wanted map[string]bool) bool {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	f, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer f.Close()
	names, _ := f.Readdirnames(-1)
	for _, name := range names {
		if target, err := os.Readlink(filepath.Join(dir, name)); err == nil && wanted[target] {
			return true
		}
	}
	return false
}
