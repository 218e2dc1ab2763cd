package fleet

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/testenv"
)

// place is a network namespace, for a machine.
type place struct {
	t    *testing.T
	name string
}

// newPlace makes a namespace with only a loopback device, until the test ends.
func newPlace(t *testing.T, name string) *place {
	t.Helper()
	p := &place{t, fmt.Sprintf("shepherd-%d-%s", os.Getpid(), name)}
	ip := testenv.Command(t, "ip", "iproute2")
	if out, err := exec.Command(ip, "netns", "add", p.name).CombinedOutput(); err != nil {
		testenv.Missing(t, "a network namespace", fmt.Sprintf("run the tests as root, with CAP_SYS_ADMIN (%v: %s)", err, out))
	}
	t.Cleanup(func() { ipRun(t, "netns", "delete", p.name) })
	ipRun(t, "-n", p.name, "link", "set", "lo", "up")
	return p
}

func ipRun(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Errorf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// inside runs do in the namespace. Processes and listeners that it starts stay there.
func (p *place) inside(do func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer home.Close()
	away, err := os.Open("/run/netns/" + p.name)
	if err != nil {
		return err
	}
	defer away.Close()
	if err := unix.Setns(int(away.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	failed := do()
	if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
		return err // the thread is used for nothing else
	}
	runtime.UnlockOSThread()
	return failed
}

// dial connects to an address in the namespace.
func (p *place) dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = p.inside(func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// link is a cable between two places.
type link struct {
	from, to     *place
	nearby, away string // its devices in the namespaces
	// Near and Far are the addresses of its ends.
	Near, Far string
}

// links counts the links that were made, for their addresses.
type links int

// connect makes a link between two places.
func (n *links) connect(from, to *place) *link {
	from.t.Helper()
	*n++
	near, far := fmt.Sprintf("l%da", *n), fmt.Sprintf("l%db", *n)
	l := &link{from: from, to: to, nearby: near, away: far, Near: fmt.Sprintf("10.77.%d.1", *n), Far: fmt.Sprintf("10.77.%d.2", *n)}
	ipRun(from.t, "-n", from.name, "link", "add", near, "type", "veth", "peer", "name", far, "netns", to.name)
	for _, end := range []struct{ place, device, address string }{{from.name, near, l.Near}, {to.name, far, l.Far}} {
		ipRun(from.t, "-n", end.place, "address", "add", end.address+"/30", "dev", end.device)
		ipRun(from.t, "-n", end.place, "link", "set", end.device, "up")
	}
	return l
}

// cut sets the link down; mend sets it up again.
func (l *link) cut()  { ipRun(l.to.t, "-n", l.to.name, "link", "set", l.away, "down") }
func (l *link) mend() { ipRun(l.to.t, "-n", l.to.name, "link", "set", l.away, "up") }

// nobody is the address of no device: packets to it are lost.
const nobody = "02:00:00:00:00:01"

// cutOut silently drops packets from the near place, and cutIn packets to it, until mendOut
// and mendIn.
func (l *link) cutOut()  { l.from.lose(l.Far, l.nearby) }
func (l *link) mendOut() { l.from.find(l.Far, l.nearby) }
func (l *link) cutIn()   { l.to.lose(l.Near, l.away) }
func (l *link) mendIn()  { l.to.find(l.Near, l.away) }

func (p *place) lose(address, device string) {
	ipRun(p.t, "-n", p.name, "neigh", "replace", address, "lladdr", nobody, "dev", device, "nud", "permanent")
}

func (p *place) find(address, device string) {
	ipRun(p.t, "-n", p.name, "neigh", "del", address, "dev", device)
}
