package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/proc"
	"github.com/iterait/shepherd/shim"
)

// foreignError is the error when another program listens on the runner's port.
type foreignError struct {
	port    int
	pid     int // 0 when not known
	command string
}

func (e *foreignError) Error() string {
	if e.pid == 0 {
		return fmt.Sprintf("port %d is in use by an unknown process; stop it or give the sheep another port", e.port)
	}
	return fmt.Sprintf("port %d is in use by process %d (%s); stop it or give the sheep another port", e.port, e.pid, e.command)
}

// dialer makes connections to the runner.
type dialer struct {
	spec      shim.Spec
	namespace string // path of the runner's network namespace; "" if it shares the shim's
	pid       int    // of a container's first process
}

// dialer returns a dialer for the runner's present process.
func (s *state) dialer() *dialer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &dialer{spec: s.spec, namespace: s.netns, pid: s.pid}
}

// portFree returns an error if another process listens on the runner's port. It
// returns nil where that cannot be determined: the runner's bind will fail then.
func (s *dialer) portFree() error {
	listeners, err := proc.Listeners(s.spec.Port)
	if err != nil || len(listeners) == 0 {
		return nil
	}
	return foreign(s.spec.Port, listeners)
}

func foreign(port int, listeners []proc.Listener) *foreignError {
	e := &foreignError{port: port}
	all, err := proc.All()
	if err != nil {
		return e
	}
	if holders := proc.Holders(listeners, all); len(holders) > 0 {
		e.pid, e.command = holders[0].PID, proc.Command(holders[0].PID)
	}
	return e
}

// dialFunc returns a function that connects in the runner's network namespace. Where
// the runner shares the shim's namespace, the listener must be the runner or one of its
// descendants; if it is another process, refuse is called with the error.
func (s *dialer) dialFunc(refuse context.CancelCauseFunc) DialFunc {
	if s.namespace != "" {
		return func(ctx context.Context, network, address string) (net.Conn, error) {
			return dialIn(ctx, s.namespace, network, address)
		}
	}
	var dialer net.Dialer
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, address)
		if err != nil || s.spec.Runner == nil && s.spec.Container == nil {
			return conn, err
		}
		if conn.LocalAddr().String() == conn.RemoteAddr().String() { // a TCP self-connect
			if tcp, ok := conn.(*net.TCPConn); ok {
				_ = tcp.SetLinger(0) // free the port at once for the runner to bind
			}
			conn.Close()
			return nil, errors.New("nothing listens there")
		}
		if err := s.verify(); err != nil {
			conn.Close()
			refuse(err)
			return nil, err
		}
		return conn, nil
	}
}

// verify returns an error if the listener on the port belongs to another process than
// the runner. It returns nil where the owner cannot be determined.
func (s *dialer) verify() error {
	listeners, err := proc.Listeners(s.spec.Port)
	if err != nil {
		return nil
	}
	listeners = proc.ForLoopback(listeners)
	all, err := proc.All()
	if err != nil {
		return nil
	}
	ours := proc.Descendants(all, os.Getpid())
	if s.spec.Container != nil {
		ours = slices.DeleteFunc(slices.Clone(all), func(p proc.Process) bool { return p.PID != s.pid })
		ours = append(ours, proc.Descendants(all, s.pid)...)
	}
	if len(proc.Holders(listeners, ours)) > 0 {
		return nil
	}
	if e := foreign(s.spec.Port, listeners); e.pid != 0 {
		return e
	}
	return nil
}

// dialIn connects to a TCP address in a network namespace. A socket stays in the
// namespace of the thread that created it, so only its creation needs a thread in that
// namespace. That thread ends afterwards: it cannot be used for anything else.
func dialIn(ctx context.Context, namespace, network, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil || network != "tcp" || !to.Addr().Is4() {
		return nil, fmt.Errorf("dial %s %s in a network namespace: only TCP over IPv4 is supported", network, address)
	}
	type created struct {
		fd  int
		err error
	}
	result := make(chan created)
	go func() {
		runtime.LockOSThread() // never unlocked, so that the thread ends with the goroutine
		fd, err := socketIn(namespace)
		result <- created{fd, err}
	}()
	socket := <-result
	if socket.err != nil {
		return nil, fmt.Errorf("enter network namespace %s: %w", namespace, socket.err)
	}
	if err := connect(ctx, socket.fd, to); err != nil {
		unix.Close(socket.fd)
		return nil, fmt.Errorf("dial %s in network namespace %s: %w", address, namespace, err)
	}
	file := os.NewFile(uintptr(socket.fd), address)
	defer file.Close()
	return net.FileConn(file)
}

func socketIn(namespace string) (int, error) {
	ns, err := unix.Open(namespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(ns)
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		return -1, err
	}
	return unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
}

func connect(ctx context.Context, fd int, to netip.AddrPort) error {
	err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
	if !errors.Is(err, unix.EINPROGRESS) {
		return err
	}
	const step = 50 * time.Millisecond // between checks of ctx
	for ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(step.Milliseconds()))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n > 0 {
			code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
			if err == nil && code != 0 {
				err = unix.Errno(code)
			}
			return err
		}
	}
	return ctx.Err()
}
