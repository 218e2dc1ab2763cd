// Package systemd communicates with the service manager that started the process: it
// takes over the sockets that the manager listens on, and notifies it of the service's
// state. It needs no library of systemd's, and does nothing without a manager.
//
// The protocols are those of sd_listen_fds(3), sd_notify(3) and
// sd_watchdog_enabled(3).
package systemd

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Manager is the service manager. The methods of a nil Manager do nothing.
type Manager struct {
	address   string // of its socket for notifications
	limit     time.Duration
	watchdog  time.Duration
	listeners map[string][]net.Listener
}

// notifyLimit is how long a notification waits for room in the manager's queue: a manager that
// receives nothing must not keep the service from stopping.
const notifyLimit = 20 * time.Second

// firstSocket is the first of the descriptors that are handed over.
const firstSocket = 3

// Take reads the service manager's variables from the environment, and removes them, so that
// child processes do not inherit them. Without a manager it
// returns nil.
func Take() (*Manager, error) {
	mine := func(variable string) bool {
		pid := os.Getenv(variable)
		return pid == "" || pid == strconv.Itoa(os.Getpid())
	}
	m := &Manager{limit: notifyLimit, listeners: make(map[string][]net.Listener)}
	m.address = os.Getenv("NOTIFY_SOCKET")
	if usec, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64); err == nil && usec > 0 && mine("WATCHDOG_PID") {
		m.watchdog = time.Duration(usec) * time.Microsecond
	}
	count, names := 0, strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	if os.Getenv("LISTEN_PID") != "" && mine("LISTEN_PID") {
		count, _ = strconv.Atoi(os.Getenv("LISTEN_FDS"))
	}
	for _, variable := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		if err := os.Unsetenv(variable); err != nil {
			return nil, err
		}
	}
	for i := range count {
		name := ""
		if i < len(names) {
			name = names[i]
		}
		if err := m.take(firstSocket+i, name); err != nil {
			m.Close()
			return nil, fmt.Errorf("take over the socket %q that systemd listens on: %w", name, err)
		}
	}
	if m.address == "" && count == 0 {
		return nil, nil
	}
	return m, nil
}

// take makes a listener from a descriptor.
func (m *Manager) take(fd int, name string) error {
	unix.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), name)
	defer f.Close() // the listener has its own
	l, err := net.FileListener(f)
	if err != nil {
		return err
	}
	key := l.Addr().Network()
	m.listeners[key] = append(m.listeners[key], l)
	return nil
}

// Listeners returns the sockets of a network, "tcp" or "unix", that the manager
// listens on, in the order of its configuration. The caller closes them; the manager
// continues to listen.
func (m *Manager) Listeners(network string) []net.Listener {
	if m == nil {
		return nil
	}
	l := m.listeners[network]
	delete(m.listeners, network)
	return l
}

// Close closes the listeners that Listeners has not returned.
func (m *Manager) Close() {
	if m == nil {
		return
	}
	for _, of := range m.listeners {
		for _, l := range of {
			_ = l.Close()
		}
	}
}

// Notifies reports whether the manager accepts notifications.
func (m *Manager) Notifies() bool { return m.Address() != "" }

// Address returns the manager's socket for notifications, or "".
func (m *Manager) Address() string {
	if m == nil {
		return ""
	}
	return m.address
}

// Watchdog returns the longest time between calls of Alive that the manager accepts; 0 is no
// limit.
func (m *Manager) Watchdog() time.Duration {
	if !m.Notifies() {
		return 0
	}
	return m.watchdog
}

// Ready notifies the manager that the service is ready.
func (m *Manager) Ready() error { return m.tell("READY=1") }

// Reloading notifies the manager that the configuration is being read; Ready ends it.
func (m *Manager) Reloading() error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return err
	}
	return m.tell("RELOADING=1\nMONOTONIC_USEC=" + strconv.FormatInt(now.Nano()/1000, 10))
}

// Stopping notifies the manager that the service stops, and how long that may take.
func (m *Manager) Stopping(within time.Duration) error {
	return m.tell("STOPPING=1\nEXTEND_TIMEOUT_USEC=" + strconv.FormatInt(within.Microseconds(), 10))
}

// Alive sends the watchdog's keep-alive.
func (m *Manager) Alive() error { return m.tell("WATCHDOG=1") }

// Status sets the status line of the service.
func (m *Manager) Status(line string) error {
	return m.tell("STATUS=" + strings.ReplaceAll(line, "\n", " "))
}

func (m *Manager) tell(state string) error {
	if !m.Notifies() {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: m.address, Net: "unixgram"}) // @ is an abstract one
	if err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	defer conn.Close()
	err = conn.SetWriteDeadline(time.Now().Add(m.limit))
	if err == nil {
		_, err = conn.Write([]byte(state))
	}
	if err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	return nil
}

// Journaled reports whether f is the journal's stream, according to JOURNAL_STREAM.
func Journaled(f *os.File) bool {
	var dev, ino uint64
	if _, err := fmt.Sscanf(os.Getenv("JOURNAL_STREAM"), "%d:%d", &dev, &ino); err != nil {
		return false
	}
	info, err := f.Stat()
	if err != nil {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && stat.Dev == dev && stat.Ino == ino
}
