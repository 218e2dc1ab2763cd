// Package port chooses TCP ports for programs that bind them later.
package port

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"syscall"
)

// The ports that Free draws from. The end is lower if the ephemeral ports of the kernel begin
// below it.
const (
	first = 10_000
	end   = 32_000
)

// Free returns a port of the host's address, or of every address if host is empty, that
// nothing listens on. It is not an ephemeral port (ip_local_port_range), so no client's
// connection takes it before the program that it is for binds it. If that range leaves too
// few ports, the kernel chooses one.
func Free(host string) (int, error) {
	last := min(end, ephemeral())
	for range 100 {
		n := 0
		if last-first >= 1000 {
			n = first + rand.IntN(last-first)
		}
		port, err := try(host, n)
		if !errors.Is(err, syscall.EADDRINUSE) {
			return port, err
		}
	}
	return 0, fmt.Errorf("choose a port: a hundred of those from %d to %d are in use", first, last-1)
}

// try binds the port, or one that the kernel chooses if it is 0, and returns it.
func try(host string, port int) (int, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// ephemeral returns the lowest ephemeral port.
func ephemeral() int {
	data, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return end // Linux's default is above it
	}
	var low, high int
	if _, err := fmt.Sscan(string(data), &low, &high); err != nil {
		return end
	}
	return low
}
